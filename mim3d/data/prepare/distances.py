"""A shape as the distance to its surface, in place of two values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from mim3d.data.body import Air
from mim3d.data.volume import Volume
from mim3d.foundation.errors import VolumeError

SURFACE = Air(0.0)
"""Of distances, what is not inside is air."""


def signed_distances(volume: Volume, most_mm: float) -> Volume:
    """Each channel's distance in mm to the nearest voxel of its other value, negative outside.

    How thick a shape is stands in every voxel then, where two values say it nowhere: the signed
    distance function of a shape (Osher and Fedkiw, 2003). Measured between voxel centres, with the
    spacing of each axis.

    Args:
        volume: each channel has two values, of which the higher is inside.
        most_mm: larger distances are cut to this, inside and outside.

    Raises:
        VolumeError: a channel has another number of values.
    """
    channels = [_distances(one, volume.spacing_mm, most_mm) for one in volume.voxels]
    return replace(volume, voxels=np.stack(channels))


def _distances(
    channel: NDArray[Any], spacing_mm: tuple[float, float, float], most_mm: float
) -> NDArray[np.float32]:
    low, high = channel.min(), channel.max()
    inside = channel == high
    if low == high or not (inside | (channel == low)).all():
        raise VolumeError(
            f"it has {len(np.unique(channel)):,} different value(s), and a shape has two",
            remedy="prepare images without `--prepare.distance_mm`",
            code="no-shape",
        )
    within = distance_transform_edt(inside, sampling=spacing_mm)
    without = distance_transform_edt(~inside, sampling=spacing_mm)
    found: NDArray[np.float32] = (within - without).clip(-most_mm, most_mm).astype(np.float32)
    return found
