"""What a reconstruction panel shows: crops as they were, as they were seen, and as guessed."""

from __future__ import annotations

import torch
from torch import Tensor

from mim3d.tokens.patches import PaddedCrop, patchify, unpatchify


def reconstruction(
    crop: PaddedCrop, masked: Tensor, index: Tensor, predicted: Tensor | None, spacing_mm: Tensor
) -> dict[str, Tensor]:
    """The arrays of a panel; drawing is another room's work.

    Args:
        crop: the padded crops.
        masked: `b n` bool, or `b n p` where the channels of a token differ in it.
        index: `b q`, tokens that were predicted; n where a shorter sample is filled up.
        predicted: `b q p`, in the crop's own intensities; None where what is predicted says
            nothing of them.
        spacing_mm: `b 3`.

    Returns:
        `original`, `masked` (masked patches at 0) and `reconstructed` (masked patches as
        predicted; not there without a prediction), each `b c x y z` float32; `mask` `b x y z` bool,
        of the first channel; `spacing_mm` `b 3`. Padding is 0 and False everywhere.
    """
    grid, channels = crop.grid, crop.voxels.shape[1]
    x, y, z = grid.size

    def voxels(patches: Tensor) -> Tensor:
        return unpatchify(patches, grid, channels)[..., :x, :y, :z].float()

    patches = patchify(crop.voxels, grid.patch)
    hidden = masked[..., None] if masked.ndim == 2 else masked
    mask = voxels(hidden.expand_as(patches).to(patches.dtype))[:, 0] > 0
    inside = None if crop.valid is None else crop.valid[:, :x, :y, :z]
    arrays = {
        "original": voxels(patches),
        "masked": voxels(patches.masked_fill(hidden, 0)),
        "mask": mask if inside is None else mask & inside,
        "spacing_mm": spacing_mm,
    }
    if predicted is None:
        return arrays
    places = index[..., None].expand(-1, -1, patches.shape[-1])
    room = torch.cat([patches, patches[:, :1]], dim=1)  # one more token, number n, for the filling
    guessed = room.scatter(1, places, predicted.to(patches.dtype))[:, : grid.n]
    restored = voxels(torch.where(hidden, guessed, patches))
    return {**arrays, "reconstructed": restored if inside is None else restored * inside[:, None]}
