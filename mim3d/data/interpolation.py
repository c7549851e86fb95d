"""Values of a box of voxels at places between them, for one crop."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from mim3d.config.data import Triple

Places = tuple[Tensor, Tensor, Tensor]
"""Volume coordinates along x, y, z, each of a shape that `x y z` follows from."""


def places(matrix: NDArray[np.float64], size: Triple) -> Places:
    """Volume coordinates of every voxel of the crop, three times `x y z`."""
    # Summed from one vector an axis: a tenth of the time of a product with all voxels.
    x, y, z = (torch.arange(n, dtype=torch.float32) for n in size)
    rows = matrix.astype(np.float32).tolist()
    a, b, c = (
        (row[0] * x)[:, None, None] + ((row[1] * y)[:, None] + (row[2] * z + row[3])[None, :])
        for row in rows[:3]
    )
    return a, b, c


def lines(matrix: NDArray[np.float64], size: Triple) -> Places:
    """`places` of a zoom, along each axis by itself: `x 1 1`, `1 y 1` and `1 1 z`."""
    rows = matrix.astype(np.float32).tolist()
    x, y, z = (
        rows[axis][axis] * torch.arange(n, dtype=torch.float32) + rows[axis][3]
        for axis, n in enumerate(size)
    )
    return x[:, None, None], y[None, :, None], z[None, None, :]


def stretch(voxels: Tensor, places: Places, first: NDArray[np.int64]) -> Tensor:
    """`interpolate` along one axis after the other."""
    for axis, place in enumerate(places, 1):
        count = voxels.shape[axis]
        local = (place - float(first[axis - 1])).clamp_(0, count - 1)
        below = local.floor().clamp_(0, max(count - 2, 0))
        part, index = local - below, below.flatten().long().numpy()
        # NumPy takes along the last axis ten times as fast as torch does.
        low, high = (
            torch.from_numpy(voxels.numpy().take(i, axis=axis))
            for i in (index, np.minimum(index + 1, count - 1))
        )
        voxels = low.lerp_(high, part)
    return voxels


def interpolate(voxels: Tensor, places: Places, first: NDArray[np.int64]) -> Tensor:
    """Trilinear values at all places.

    Args:
        voxels: `c x y z`, a box of the volume.
        places: of the volume, beyond the box the values of its outermost voxels.
        first: the box's first voxel in the volume.
    """
    grid = torch.empty((*places[0].shape, 3))
    for axis, place in enumerate(places):
        count = voxels.shape[1 + axis]
        # -1 and 1 are the outer faces of the box; the last axis comes first in the grid.
        scaled = place * (2.0 / count)
        grid[..., 2 - axis] = scaled.add_((1.0 - 2.0 * float(first[axis])) / count - 1.0)
    # "border": half a voxel at the volume's faces takes the value of the outermost voxel.
    sampled = grid_sample(
        voxels[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled[0]


def nearest(label_map: Tensor, places: Places, first: NDArray[np.int64]) -> Tensor:
    """Classes of the nearest voxels of a box `x y z` that begins at `first`."""
    flat: Tensor | None = None
    for axis, place in enumerate(places):
        count = label_map.shape[axis]
        index = (place - float(first[axis])).round_().clamp_(0, count - 1).long()
        flat = index if flat is None else flat * count + index
    assert flat is not None
    return label_map.flatten()[flat]


def inside(places: Places, shape: NDArray[np.int64]) -> Tensor:
    """Which places lie in the volume, whose outermost voxels reach half a voxel further."""
    good: list[Tensor] = [
        (place >= -0.5) & (place <= count - 0.5)
        for place, count in zip(places, shape.tolist(), strict=True)
    ]
    return good[0] & good[1] & good[2]
