"""Distances between two surfaces in millimetres, and the two metrics read from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

Spacing = tuple[float, float, float]

TREE_SHARE = 6
"""Below a sixth of the box's voxels on both surfaces the k-d tree wins over the distance transform
(organs: 1 to 7 times faster; random points cross over at about 20 percent)."""


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """From every voxel of each surface to the nearest voxel of the other, in millimetres.

    Attributes:
        from_reference: one distance a surface voxel of the reference, float32.
        from_prediction: one distance a surface voxel of the prediction, float32.
    """

    from_reference: NDArray[np.float32]
    from_prediction: NDArray[np.float32]

    def percentile(self, percent: float = 95.0) -> float:
        """The larger of the two directed percentiles (linear): HD95 at 95, Hausdorff at 100."""
        directed = (self.from_reference, self.from_prediction)
        return max(float(np.percentile(d.astype(np.float64), percent)) for d in directed)

    def share_within(self, tolerance_mm: float) -> float:
        """The normalised surface Dice: share of both surfaces that lies within the tolerance.

        Nikolov et al., arXiv:1809.04430, with every surface voxel counted alike.
        """
        within = sum(
            int((d <= np.float32(tolerance_mm)).sum())
            for d in (self.from_reference, self.from_prediction)
        )
        return within / (self.from_reference.size + self.from_prediction.size)


def surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels of `mask` with at least one of 6 neighbours outside it; the border is outside."""
    interior = mask.copy()
    for axis in range(mask.ndim):
        inner, outer = np.moveaxis(interior, axis, 0), np.moveaxis(mask, axis, 0)
        inner[1:] &= outer[:-1]
        inner[:-1] &= outer[1:]
        inner[0] = inner[-1] = False
    return mask & ~interior


def surface_distances(
    reference: NDArray[np.bool_], prediction: NDArray[np.bool_], spacing_mm: Spacing
) -> SurfaceDistances:
    """Distances between the surfaces of two masks that both hold a voxel.

    The masks may be cut to any box that holds both: what lies outside counts as outside, which is
    what the image's border counts as.

    Args:
        reference: `x y z`.
        prediction: `x y z`.
        spacing_mm: voxel size along x, y, z.
    """
    ours, theirs = surface(reference), surface(prediction)
    counts = np.count_nonzero(ours) + np.count_nonzero(theirs)
    if counts * TREE_SHARE < ours.size:
        return _by_tree(ours, theirs, spacing_mm)
    return _by_transform(ours, theirs, spacing_mm)


def _by_tree(ours: NDArray[Any], theirs: NDArray[Any], spacing_mm: Spacing) -> SurfaceDistances:
    points = [_points(side) * np.array(spacing_mm) for side in (ours, theirs)]
    trees = [cKDTree(side, leafsize=32) for side in points]
    forward, _ = trees[1].query(points[0])
    backward, _ = trees[0].query(points[1])
    return SurfaceDistances(np.asarray(forward, np.float32), np.asarray(backward, np.float32))


def _points(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """`np.argwhere`, which is several times slower in three dimensions."""
    return np.stack(np.unravel_index(np.flatnonzero(mask), mask.shape), axis=1)


def _by_transform(
    ours: NDArray[Any], theirs: NDArray[Any], spacing_mm: Spacing
) -> SurfaceDistances:
    to_theirs = np.asarray(distance_transform_edt(~theirs, sampling=spacing_mm), np.float32)
    to_ours = np.asarray(distance_transform_edt(~ours, sampling=spacing_mm), np.float32)
    return SurfaceDistances(to_theirs[ours], to_ours[theirs])


def diagonal_mm(shape: tuple[int, ...], spacing_mm: Spacing) -> float:
    """The image's diagonal: longer than any distance between two of its voxels."""
    return float(np.linalg.norm(np.array(shape) * np.array(spacing_mm)))
