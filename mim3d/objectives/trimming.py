"""Crops without the padding around them, so that none of it takes part in anything."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mim3d.config.data import Triple
from mim3d.data.batch import CropBatch
from mim3d.tokens.grid import valid_box

Box = tuple[slice, slice, slice]


def trimmed(batch: CropBatch) -> tuple[CropBatch, ...]:
    """The crops cut to the boxes of their valid voxels, those of one size together.

    A decoder's convolutions and norms see what stands around a volume, and how far; of a crop that
    is cut they see what they see of the volume alone. Patches begin at the box's corner then.
    `valid` is left where there is more padding inside of a box, as in the corners of a crop that
    was rotated. A crop without any valid voxel stays as it is.

    Args:
        batch: crops of one size.
    """
    if batch.valid is None:
        return (batch,)
    alike: dict[tuple[Triple, bool], list[tuple[int, Box]]] = {}
    for row, (box, is_full) in enumerate(_boxes(batch.valid)):
        size = _size(box)
        alike.setdefault((size, is_full), []).append((row, box))
    return tuple(_cut(batch, found, is_full) for (_, is_full), found in alike.items())


def _boxes(valid: Tensor) -> list[tuple[Box, bool]]:
    """Of every sample the box of its valid voxels, and whether it holds nothing else."""
    start, stop = valid_box(valid)
    counts = valid.flatten(1).sum(dim=1, keepdim=True)
    found = []
    # One tensor: each look at a device waits for it.
    for *corners, count in torch.cat([start.long(), stop.long(), counts], dim=1).tolist():
        x, y, z = (slice(low, high) for low, high in zip(corners[:3], corners[3:], strict=True))
        box = (x, y, z)
        i, j, k = _size(box)
        found.append((box, count == i * j * k))
    return found


def _size(box: Box) -> Triple:
    x, y, z = (side.stop - side.start for side in box)
    return x, y, z


def _cut(batch: CropBatch, found: list[tuple[int, Box]], is_full: bool) -> CropBatch:
    """The crops at those rows, each cut to its box; all boxes have one size."""
    rows = [row for row, _ in found]
    starts = torch.tensor([[side.start for side in box] for _, box in found], dtype=torch.float64)

    def at_rows(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[rows]

    def in_boxes(values: Tensor | None) -> Tensor | None:
        return None if values is None else torch.stack([values[row][box] for row, box in found])

    affine = batch.affine[rows].clone()
    moved = affine[:, :3, :3] @ starts.to(affine.device, affine.dtype)[:, :, None]
    affine[:, :3, 3] += moved[..., 0]
    return replace(
        batch,
        voxels=torch.stack([batch.voxels[row][(slice(None), *box)] for row, box in found]),
        affine=affine,
        case_ids=tuple(batch.case_ids[row] for row in rows),
        crop_ids=batch.crop_ids[rows],
        labels=in_boxes(batch.labels),
        valid=None if is_full else in_boxes(batch.valid),
        targets=at_rows(batch.targets),
        present=at_rows(batch.present),
        air=at_rows(batch.air),
    )
