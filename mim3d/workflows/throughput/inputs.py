"""Batches and volumes to time things on: no two places alike, so that a wrong index shows."""

from __future__ import annotations

import torch
from torch import Tensor

from mim3d.data.batch import CropBatch
from mim3d.foundation.randomness import RandomStream
from mim3d.objectives.base import Moment

Triple = tuple[int, int, int]

SIDE = 96
"""Voxels of a crop and of a window along each axis."""
CLASSES = 14
ROTATED = 4
"""Batches that steps take in turn, so that no step sees what the one before it saw."""


def moment(number: int, *, pictures: bool = False) -> Moment:
    """Step `number` of a run; masks follow from it."""
    return Moment(number, 1000, RandomStream(0, number), wants_pictures=pictures)


def batches(
    count: int,
    device: torch.device,
    *,
    side: int = SIDE,
    classes: int = CLASSES,
    rotated: int = ROTATED,
) -> list[CropBatch]:
    """Batches of `count` crops, with labels whose class tells the place.

    Args:
        count: crops of a batch.
        device: where they lie.
        side: voxels of a crop along each axis.
        classes: of the labels.
        rotated: number of batches.
    """
    x, y, z = torch.meshgrid(*[torch.arange(side, device=device) // 12] * 3, indexing="ij")
    labels = ((x + 2 * y + 3 * z) % classes).to(torch.uint8).expand(count, -1, -1, -1)
    affine = torch.eye(4, dtype=torch.float64).expand(count, 4, 4)
    names, ids, size = ("synthetic",) * count, torch.arange(count), (side, side, side)
    made = []
    for number in range(rotated):
        crops = [synthetic(size, count * number + i, device)[None] for i in range(count)]
        made.append(CropBatch(torch.stack(crops), affine, names, ids, labels).to(device))
    return made


def synthetic(size: Triple, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """A ramp, a sine, a square wave and noise, `x y z` float32: no two places are alike.

    The noise is the device's own; all else is the same everywhere.
    """
    lines = (torch.linspace(-1, 1, side, device=device) for side in size)
    x, y, z = torch.meshgrid(*lines, indexing="ij")
    source = torch.Generator(device).manual_seed(seed)
    noise = torch.randn(size, generator=source, device=device)
    waves = torch.sin(9 * y + seed) + torch.sign(torch.sin(11 * z + 2 * x + seed))
    return x + 0.5 * waves + 0.2 * noise
