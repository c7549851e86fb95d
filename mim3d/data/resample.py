"""Resampling as three products, one an axis, in float32.

Interpolation on a grid is separable: along each axis the new values are W times the old ones. W has
two entries a row for linear interpolation, so that two weighted slabs are added; for cubic
B-splines (evaluation times the inverse of the prefilter) it is dense but for a wide band small
beyond counting, so that bands of rows are multiplied. SciPy's general routine is 5 to 40 times
slower (`benchmarks/throughput/resample.py`); equal to it to 1e-6 of the range. Beyond the outer
voxel centres values are mirrored about them, SciPy's `mirror`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Order = Literal["linear", "cubic"]
Triple = tuple[int, int, int]
Spacing = tuple[float, float, float]

UNCHANGED = 0.01
"""Axes on which no voxel centre moves by more than this many voxels are left as they are."""
BAND = 32
"""Rows multiplied at once, with the columns they need."""
NEGLIGIBLE = 1e-9
"""Weights below it are left out: those of a cubic spline fall to a quarter with every voxel, and 16
voxels away all of them together are below float32's rounding."""
COLUMNS_PER_PASS = 25
"""Columns of a matrix whose product takes as long as one pass over the result (measured)."""
FEW_COLUMNS = 50
"""Up to so many the product is as fast as adding slabs."""


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
    turn = sorted(range(3), key=lambda axis: -indices.strides[axis])
    labels = _largest_weight(indices.transpose(turn), [matrices[axis] for axis in turn])
    return labels.transpose(np.argsort(turn))


def _largest_weight(
    indices: NDArray[np.uint8], matrices: Sequence[NDArray[np.float32] | None]
) -> NDArray[np.uint8]:
    shape = [m.shape[0] if m is not None else n
             for m, n in zip(matrices, indices.shape, strict=True)]  # fmt: skip
    labels = np.zeros(shape, np.uint8)
    best = np.zeros(shape, np.float32)
    counts = np.bincount(indices.ravel(order="K"), minlength=256)
    for index in np.flatnonzero(counts).tolist():
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
    turn = [0, *sorted((1, 2, 3), key=lambda axis: -abs(array.strides[axis]))]
    turned = [len(array), *(to_shape[axis - 1] for axis in turn[1:])]
    values = np.empty(turned, np.float32).transpose(np.argsort(turn))
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
    """Applies one matrix an axis to `c x y z`; None leaves the axis alone.

    The axes go in the order that costs least, and as they lie in memory: a volume out of a file has
    x densest, and so has the result.
    """
    turn = [0, *sorted((1, 2, 3), key=lambda axis: -abs(voxels.strides[axis]))]
    result = voxels.transpose(turn)
    products = [_product(matrices[axis - 1], place) for place, axis in enumerate(turn[1:])]
    for axis in _cheapest_order(result.shape[1:], products):
        product = products[axis]
        if product is not None:
            result = product.along(result, axis + 1)
    return np.ascontiguousarray(result, np.float32).transpose(np.argsort(turn))


@dataclass(frozen=True, eq=False)
class _Dense:
    """Multiplies by the matrix, in bands of rows with the columns that count there."""

    matrix: NDArray[np.float32]

    @property
    def passes(self) -> float:
        """Over the result, that this takes as long as."""
        return float(self.matrix.shape[1] / COLUMNS_PER_PASS)

    def along(self, voxels: NDArray[Any], axis: int) -> NDArray[np.float32]:
        """The product along one axis of `c x y z`."""
        shape, rows = voxels.shape, len(self.matrix)
        before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        old = np.ascontiguousarray(voxels, np.float32).reshape(before, shape[axis], after)
        result = np.empty((before, rows, after), np.float32)
        for start in range(0, rows, BAND):
            block = slice(start, start + BAND)
            columns = extent(np.abs(self.matrix[block]) > NEGLIGIBLE, 1)
            band = self.matrix[block, columns]
            if after == 1:
                np.matmul(old[:, columns, 0], band.T, out=result[:, block, 0])
            else:
                np.matmul(band, old[:, columns], out=result[:, block])
        return result.reshape(*shape[:axis], rows, *shape[axis + 1 :])


@dataclass(frozen=True, eq=False)
class _Taps:
    """Adds two weighted slabs for each new one: a matrix of two entries a row.

    Attributes:
        matrix: (m, n).
        first: column of each row's first entry.
        second: column of its last entry.
    """

    matrix: NDArray[np.float32]
    first: NDArray[np.intp]
    second: NDArray[np.intp]

    passes = 2.0

    def along(self, voxels: NDArray[Any], axis: int) -> NDArray[np.float32]:
        """The product along one axis of `c x y z`, of any type."""
        result = np.empty(
            (*voxels.shape[:axis], len(self.matrix), *voxels.shape[axis + 1 :]), np.float32
        )
        slabs, old = np.moveaxis(result, axis, 0), np.moveaxis(voxels, axis, 0)
        other = np.empty(slabs.shape[1:], np.float32)
        for slab, row, first, second in zip(
            slabs, self.matrix, self.first, self.second, strict=True
        ):
            np.multiply(old[first], row[first], out=slab)
            if first < second:
                np.multiply(old[second], row[second], out=other)
                slab += other
        return result


def _product(matrix: NDArray[np.float32] | None, axis: int) -> _Dense | _Taps | None:
    """How the matrix of one axis of `x y z` is applied."""
    if matrix is None:
        return None
    used = matrix != 0
    first = used.argmax(axis=1)
    second = np.maximum(first, matrix.shape[1] - 1 - used[:, ::-1].argmax(axis=1))
    second[~used.any(axis=1)] = 0
    # Along the last axis voxels would be gathered one by one.
    if axis == 2 or used.sum(axis=1).max(initial=0) > 2 or matrix.shape[1] < FEW_COLUMNS:
        return _Dense(matrix)
    return _Taps(matrix, first, second)


def _cheapest_order(shape: Sequence[int], products: Sequence[_Dense | _Taps | None]) -> Triple:
    """The order of the three axes with the least work; axes that shrink tend to go first."""

    def cost(order: Triple) -> float:
        size, total = list(shape), 0.0
        for axis in order:
            product = products[axis]
            if product is not None:
                size[axis] = len(product.matrix)
                total += product.passes * math.prod(size)
        return total

    return min(((a, b, 3 - a - b) for a, b in itertools.permutations(range(3), 2)), key=cost)


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


def forget_matrices() -> None:
    """Empties the caches of matrices, so that a benchmark can time their making."""
    _centred_matrix.cache_clear()
    _inverse_prefilter.cache_clear()


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
