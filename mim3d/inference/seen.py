"""What a network is shown of a volume: training's own numbers, made window by window.

The device gets the volume once, as the int16 of a store; a window becomes float32 and normalised
when it is cut, so that no float32 copy of the volume exists anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mim3d.data.body import Air, body_mask
from mim3d.data.prepare.volume import prepare_volume
from mim3d.data.store.writing import PreparedCase, intensities
from mim3d.data.volume import Volume
from mim3d.inference.segmenter import Segmenter
from mim3d.inference.windows import Triple

ROWS = 16
"""Of the volume, whose body is looked for at once."""


@dataclass(frozen=True, eq=False)
class Seen:
    """A volume as the network sees it.

    Attributes:
        voxels: `c x y z` on the CPU.
        affine: (4, 4) of their grid.
        as_seen: from windows `b c x y z` of these voxels to what the network sees; None is as is.
        body: `x y z`, whether a voxel is body; None where nobody said what air is.
    """

    voxels: Tensor
    affine: NDArray[np.float64]
    as_seen: Callable[[Tensor], Tensor] | None = None
    body: NDArray[np.bool_] | None = None

    @property
    def shape(self) -> Triple:
        """Voxels along x, y, z."""
        x, y, z = self.voxels.shape[1:]
        return x, y, z


def seen_volume(volume: Volume, segmenter: Segmenter, *, wants_body: bool = True) -> Seen:
    """A volume prepared by the segmenter's rule, or as it is where there is none.

    Args:
        volume: as read from a file.
        segmenter: whose network is to see it.
        wants_body: whether to look for the body.

    Raises:
        VolumeError: there is no body in the volume.
    """
    if segmenter.rule is None:
        voxels = np.ascontiguousarray(volume.voxels, np.float32)
        return Seen(torch.from_numpy(voxels), volume.affine)
    prepared = prepare_volume(volume, segmenter.rule)
    body = body_of(prepared) if wants_body else None
    return Seen(torch.from_numpy(prepared.voxels), prepared.affine, normaliser(prepared), body)


def normaliser(prepared: PreparedCase) -> Callable[[Tensor], Tensor]:
    """From stored int16 `b c x y z` to what training saw: the numbers of `prepared.normalised`."""
    channels = list(
        zip(prepared.normalisation, prepared.scale, prepared.offset, strict=True)
    )  # fmt: skip

    def as_seen(stored: Tensor) -> Tensor:
        values = stored.float()
        for place, (normalisation, factor, start) in enumerate(channels):
            own = values[:, place]
            if factor != 1.0:
                own = own * factor
            if start != 0.0:
                own = own + start
            values[:, place] = normalisation.apply(own)
        return values

    return as_seen


def body_of(prepared: PreparedCase) -> NDArray[np.bool_]:
    """`x y z`: whether a voxel lies above the threshold of air in any channel."""
    airs = tuple(Air(normalisation.air) for normalisation in prepared.normalisation)
    body = np.empty(prepared.voxels.shape[1:], np.bool_)
    for first in range(0, len(body), ROWS):
        rows = slice(first, first + ROWS)
        own = intensities(prepared.voxels[:, rows], prepared.scale, prepared.offset)
        body[rows] = body_mask(own, airs)
    return body
