"""Where a crop may begin in its volume, and where one does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mim3d.config.data import DataConfig, Triple
from mim3d.data.crops import OpenCase


def triple(voxels: int | Triple) -> Triple:
    """Voxels along x, y, z, of one number for all or three."""
    return (voxels, voxels, voxels) if isinstance(voxels, int) else voxels


def start_range(
    shape: Sequence[int], size: Sequence[int], overhang: Sequence[int] = (0, 0, 0)
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last start of a crop along each axis, both included.

    A crop that is smaller than the volume stays inside it, a larger one holds all of it; both up
    to `overhang`, of which no more is used than leaves half of what could be seen in the crop.
    """
    slack = np.subtract(shape, size)
    reach = np.minimum(overhang, np.minimum(shape, size) // 2)
    return np.minimum(slack, 0) - reach, np.maximum(slack, 0) + reach


def grid_starts(shape: int, size: int, low: int, high: int, grid: int) -> NDArray[np.int64]:
    """Starts along one axis: multiples of the grid where the crop lies inside, and the faces.

    Without the faces the last voxels of a volume would never be seen. Where the crop holds the
    whole volume every start reads the same chunks, so there is no grid.

    Args:
        shape: voxels of the volume.
        size: voxels of the crop.
        low: first start.
        high: last start.
        grid: voxels between starts.
    """
    if shape <= size:
        return np.arange(low, high + 1)
    return np.unique(np.concatenate((np.arange(0, shape - size + 1, grid), [low, high])))


def possible_starts(case: OpenCase, config: DataConfig) -> list[NDArray[np.int64]]:
    """Every start along each axis, on the grid if there is one."""
    shape, size, grid = case.shape[1:], config.crop_size, config.origin_grid
    low, high = start_range(shape, size, config.overhang)
    if grid is None:
        return [np.arange(first, last + 1) for first, last in zip(low, high, strict=True)]
    axes = zip(shape, size, low.tolist(), high.tolist(), triple(grid), strict=True)
    return [grid_starts(*axis) for axis in axes]


def draw_start(
    case: OpenCase, config: DataConfig, random: np.random.Generator
) -> tuple[Triple, int | None]:
    """First voxel of a crop, and the class it was centred on, if on one.

    Args:
        case: the case the crop is cut from.
        config: crop size, placement, overhang and grid.
        random: draws whether it is centred, on what, and where.
    """
    low, high = start_range(case.shape[1:], config.crop_size, config.overhang)
    centres: NDArray[np.int64] | None = None
    centre_class: int | None = None
    if config.placement == "body":
        centres = case.body_voxels()
    elif config.placement == "label" and random.random() < config.label_share:
        present = case.classes_present()
        if present:  # a case without foreground is seen anywhere
            centre_class = int(random.choice(present))
            centres = case.label_voxels(centre_class)
    if config.origin_grid is not None:
        start = np.array([random.choice(starts) for starts in possible_starts(case, config)])
    elif centres is None or len(centres) == 0:
        start = random.integers(low, high, endpoint=True)
    else:
        centre = centres[random.integers(len(centres))]
        start = np.clip(centre - np.array(config.crop_size) // 2, low, high)
    return (int(start[0]), int(start[1]), int(start[2])), centre_class
