"""Resampling as three matrix products, one an axis, in float32.

Interpolation on a grid is separable: along each axis the new values are W times the old ones. W has
two entries a row for linear interpolation and is dense for cubic B-splines (evaluation times the
inverse of the prefilter). SciPy's general routine is 2 to 20 times slower; equal to it to 1e-6 of
the range (`tests/data/test_resample.py`). Beyond the outer voxel centres values are mirrored about
them, SciPy's `mirror`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Order = Literal["linear", "cubic"]
Triple = tuple[int, int, int]
Spacing = tuple[float, float, float]

UNCHANGED = 0.01
"""Axes on which no voxel centre moves by more than this many voxels are left as they are."""


def resampled_shape(shape: Triple, spacing_mm: Spacing, new_spacing_mm: Spacing) -> Triple:
    """Voxels along x, y, z that cover the same extent at another spacing, at least one each."""
    x, y, z = (
        max(1, round(n * old / new))
        for n, old, new in zip(shape, spacing_mm, new_spacing_mm, strict=True)
    )
    return (x, y, z)


def resampled_affine(
    affine: NDArray[np.float64], shape: Triple, new_shape: Triple, new_spacing_mm: Spacing
) -> NDArray[np.float64]:
    """The affine of the resampled grid, whose centre is the old grid's centre.

    Args:
        affine: (4, 4) of the old grid.
        shape: voxels of the old grid.
        new_shape: voxels of the new grid.
        new_spacing_mm: voxel size of the new grid.
    """
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    new = affine.copy()
    new[:3, :3] = affine[:3, :3] / spacing_mm * np.array(new_spacing_mm)
    centre = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    new[:3, 3] = centre - new[:3, :3] @ ((np.array(new_shape) - 1) / 2)
    return new


def resample(
    voxels: NDArray[Any], spacing_mm: Spacing, new_spacing_mm: Spacing, order: Order = "linear"
) -> NDArray[np.float32]:
    """The same extent at another spacing.

    Args:
        voxels: `c x y z`.
        spacing_mm: its voxel size.
        new_spacing_mm: the voxel size wanted.
        order: linear, or cubic B-splines.

    Returns:
        `c x y z`, float32, of `resampled_shape`.
    """
    x, y, z = voxels.shape[1:]
    matrices = _centred_matrices((x, y, z), spacing_mm, new_spacing_mm, order)
    return apply_matrices(voxels, matrices)


def resample_labels(
    indices: NDArray[np.uint8], spacing_mm: Spacing, new_spacing_mm: Spacing
) -> NDArray[np.uint8]:
    """The same extent at another spacing: each voxel takes the class of largest linear weight.

    Classes go one at a time, each in its own bounding box, so that many classes cost neither memory
    nor much time. Of equal weights the lowest class wins.

    Args:
        indices: `x y z`, class indices.
        spacing_mm: its voxel size.
        new_spacing_mm: the voxel size wanted.

    Returns:
        `x y z`, class indices, of `resampled_shape`.
    """
    x, y, z = indices.shape
    matrices = _centred_matrices((x, y, z), spacing_mm, new_spacing_mm, "linear")
    shape = [m.shape[0] if m is not None else n
             for m, n in zip(matrices, indices.shape, strict=True)]  # fmt: skip
    labels = np.zeros(shape, np.uint8)
    best = np.zeros(shape, np.float32)
    for index in np.flatnonzero(np.bincount(indices.ravel(), minlength=256)).tolist():
        inside = indices == index
        source, target, parts = [], [], []
        for axis, matrix in enumerate(matrices):
            columns = extent(inside, axis)
            rows = columns if matrix is None else _touched(matrix, columns)
            source.append(columns)
            target.append(rows)
            parts.append(None if matrix is None else matrix[rows, columns])
        weight = apply_matrices(inside[tuple(source)][None], parts)[0]
        region = tuple(target)
        # A margin: the sums of two equal shares differ in the last bit.
        wins = weight > best[region] + 1e-6
        labels[region][wins] = index
        best[region][wins] = weight[wins]
    return labels


def resample_to(
    array: NDArray[Any],
    from_affine: NDArray[np.float64],
    to_affine: NDArray[np.float64],
    to_shape: Triple,
    order: Order = "linear",
    outside: float | Sequence[float] = 0.0,
) -> NDArray[np.float32]:
    """Values on another grid whose axes run along the same directions: a prediction's way back.

    Args:
        array: `k x y z` on the grid of `from_affine`.
        from_affine: (4, 4), voxel to millimetres.
        to_affine: (4, 4), voxel to millimetres, of the grid wanted.
        to_shape: voxels of the grid wanted.
        order: linear, or cubic B-splines.
        outside: value where the grid wanted reaches more than half a voxel beyond the old one; one
            for all channels, or one a channel.

    Returns:
        `k x y z`, float32, of `to_shape`.

    Raises:
        ValueError: the axes of the grids run along other directions.
    """
    relation = np.linalg.inv(from_affine) @ to_affine
    skew = np.abs(relation[:3, :3] - np.diag(np.diag(relation[:3, :3]))) @ np.array(to_shape)
    if skew.max() > 0.05:  # voxels
        raise ValueError("the grids are turned against each other, which no axis-wise map undoes")
    matrices: list[NDArray[np.float32] | None] = []
    inside: list[NDArray[np.bool_]] = []
    for axis, count in enumerate(to_shape):
        positions = relation[axis, axis] * np.arange(count) + relation[axis, 3]
        size = array.shape[1 + axis]
        inside.append((positions >= -0.5 - UNCHANGED) & (positions <= size - 0.5 + UNCHANGED))
        matrices.append(_unless_unchanged(size, positions, order))
    values = np.empty((len(array), *to_shape), np.float32)
    fill = np.broadcast_to(np.asarray(outside, np.float32), len(array))
    for channel in range(len(array)):  # one at a time: logits of many classes are large
        values[channel] = apply_matrices(array[channel : channel + 1], matrices)[0]
        for axis, kept in enumerate(inside):
            np.moveaxis(values[channel], axis, 0)[~kept] = fill[channel]
    return values


def axis_matrix(size: int, positions: NDArray[np.float64], order: Order) -> NDArray[np.float32]:
    """W of one axis: (m, n), values at `positions` from values at 0, 1, ..., n - 1.

    Args:
        size: n.
        positions: m places in voxels; those beyond the ends are mirrored about the outer centres.
        order: linear, or cubic B-splines (Unser 1999: prefilter, then evaluation).
    """
    if size == 1:
        return np.ones((len(positions), 1), np.float32)
    period = 2 * (size - 1)
    folded = np.abs((positions + size - 1) % period - (size - 1))
    low = np.minimum(np.floor(folded).astype(np.int64), size - 2)
    t = folded - low
    if order == "linear":
        taps = [(low, 1 - t), (low + 1, t)]
    else:
        taps = [
            (low - 1, (1 - t) ** 3 / 6),
            (low, (4 - 6 * t**2 + 3 * t**3) / 6),
            (low + 1, (1 + 3 * t + 3 * t**2 - 3 * t**3) / 6),
            (low + 2, t**3 / 6),
        ]
    matrix = np.zeros((len(positions), size))
    for place, weight in taps:
        mirrored = np.abs((place + size - 1) % period - (size - 1))
        np.add.at(matrix, (np.arange(len(positions)), mirrored), weight)
    if order == "cubic":
        matrix = matrix @ _inverse_prefilter(size)
    return matrix.astype(np.float32)


def apply_matrices(
    voxels: NDArray[Any], matrices: Sequence[NDArray[np.float32] | None]
) -> NDArray[np.float32]:
    """Applies one matrix an axis to `c x y z`; None leaves the axis alone. Shrinking axes first."""
    result = np.ascontiguousarray(voxels, np.float32)

    def growth(axis: int) -> float:
        matrix = matrices[axis]
        return 0.0 if matrix is None else matrix.shape[0] / matrix.shape[1]

    for axis in sorted(range(3), key=growth):
        matrix = matrices[axis]
        if matrix is None:
            continue
        shape = list(result.shape)
        after = int(np.prod(shape[axis + 2 :]))
        if after == 1:
            result = result.reshape(-1, shape[axis + 1]) @ matrix.T
        else:
            result = np.matmul(matrix, result.reshape(-1, shape[axis + 1], after))
        shape[axis + 1] = matrix.shape[0]
        result = result.reshape(shape)
    return result


def extent(mask: NDArray[np.bool_], axis: int) -> slice:
    """The smallest range of an axis that holds all True voxels; empty if there is none."""
    others = tuple(a for a in range(mask.ndim) if a != axis)
    found = np.flatnonzero(mask.any(axis=others))
    return slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0, 0)


def _touched(matrix: NDArray[np.float32], columns: slice) -> slice:
    rows = np.flatnonzero(matrix[:, columns].any(axis=1))
    return slice(int(rows[0]), int(rows[-1]) + 1) if rows.size else slice(0, 0)


def _centred_matrices(
    shape: Triple, spacing_mm: Spacing, new_spacing_mm: Spacing, order: Order
) -> list[NDArray[np.float32] | None]:
    new_shape = resampled_shape(shape, spacing_mm, new_spacing_mm)
    return [
        _centred_matrix(shape[axis], new_shape[axis],
                        new_spacing_mm[axis] / spacing_mm[axis], order)
        for axis in range(3)
    ]  # fmt: skip


@lru_cache(maxsize=64)
def _centred_matrix(
    size: int, new_size: int, step: float, order: Order
) -> NDArray[np.float32] | None:
    """The matrix of grids that share their centre; None if no voxel moves."""
    positions = (np.arange(new_size) - (new_size - 1) / 2) * step + (size - 1) / 2
    return _unless_unchanged(size, positions.astype(np.float64), order)


def _unless_unchanged(
    size: int, positions: NDArray[np.float64], order: Order
) -> NDArray[np.float32] | None:
    same = len(positions) == size and np.abs(positions - np.arange(size)).max() < UNCHANGED
    return None if same else axis_matrix(size, positions, order)


@lru_cache(maxsize=32)
def _inverse_prefilter(size: int) -> NDArray[np.float64]:
    """Spline coefficients of unit impulses, (n, n), under the mirror boundary."""
    collocation = np.eye(size) * 4 / 6
    inner = np.arange(size - 1)
    collocation[inner, inner + 1] = collocation[inner + 1, inner] = 1 / 6
    collocation[0, 1] = collocation[-1, -2] = 2 / 6
    return np.linalg.inv(collocation).astype(np.float64)
