"""A segmenter in volumes of another spacing: its tokens keep the millimetres they had in training.

Positions in millimetres say where a token lies; what it reads is a box of voxels. In a volume of
twice the spacing that box would cover twice as much, which no weight has seen. Here it gets fewer
voxels instead, and the embedding's kernel is resized for them: tokens are of the volume as it is.
Only what lies behind them is interpolated: raw voxels that a decoder reads, and its logits.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from mim3d.models.taps import cut_back, padded
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.tokens.grid import Triple


def patch_for(patch: Triple, trained_mm: Sequence[float], spacing_mm: Sequence[float]) -> Triple:
    """Voxels of the patch that covers about as many millimetres in a volume as in training.

    Args:
        patch: voxels along x, y, z in training.
        trained_mm: spacing of training.
        spacing_mm: of the volume.

    Returns:
        At least one voxel along each axis; the patch itself at the spacing of training.
    """
    x, y, z = (
        max(1, round(edge * was / now))
        for edge, was, now in zip(patch, trained_mm, spacing_mm, strict=True)
    )
    return x, y, z


class AtPatch(nn.Module):
    """A segmenter with patches of another size; it shares all weights but the embedding's.

    The encoder reads patches of so many voxels by its resized kernel. The decoder knows only the
    boxes of training: it gets the same tokens, and raw voxels resized to that grid; its logits are
    resized back.

    Args:
        network: what was trained.
        patch: voxels behind a token along x, y, z.

    Raises:
        ConfigError: the encoder has a convolutional stem, which only knows its own patch.
    """

    def __init__(self, network: UNETR, patch: Triple) -> None:
        super().__init__()
        self.trained_patch = network.encoder.patch
        self.network = copy.copy(network)
        self.network._modules = {**network._modules, "encoder": network.encoder.with_patch(patch)}

    @property
    def encoder(self) -> VolumeViT:
        """That of the other patch."""
        return self.network.encoder

    def forward(
        self, voxels: Tensor, spacing_mm: Tensor | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """Logits `b k x y z` of the voxels' own size; arguments as those of `UNETR`."""
        states, voxels = self.network.encoded(voxels, spacing_mm, valid)
        here, there = states.grid, states.grid.with_patch(self.trained_patch)

        seen = resized(padded(voxels, here), there.padded)
        logits = self.network.decoded(replace(states, grid=there), seen)
        return cut_back(resized(logits, here.padded), voxels)


def resized(maps: Tensor, size: Triple) -> Tensor:
    """Maps `b c x y z` of another size: means where an axis shrinks, linear where one grows."""
    x, y, z = (min(old, new) for old, new in zip(maps.shape[2:], size, strict=True))
    if (x, y, z) != maps.shape[2:]:
        maps = F.adaptive_avg_pool3d(maps, (x, y, z))
    return maps if (x, y, z) == size else F.interpolate(maps, size=size, mode="trilinear")
