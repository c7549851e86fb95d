"""A segmenter in volumes of another spacing: its tokens keep the millimetres they had in training.

Positions in millimetres say where a token lies; what it reads is a box of voxels. In a volume of
twice the spacing that box would cover twice as much, which no weight has seen. Here it gets fewer
voxels instead, and the embedding's kernel is resized for them: nothing resamples the volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from mim3d.foundation.errors import ConfigError
from mim3d.models.taps import cut_back, padded
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.tokens.grid import TokenGrid, Triple


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
    """A segmenter with patches of another size, and no weights of its own.

    The encoder reads patches of so many voxels by its resized kernel. The decoder knows only the
    boxes of training: it gets the same tokens, and raw voxels interpolated to that grid; its logits
    are interpolated back (trilinear, centres of voxels).

    Args:
        network: what was trained.
        patch: voxels behind a token along x, y, z.

    Raises:
        ConfigError: the encoder has a convolutional stem, which only knows its own patch.
    """

    def __init__(self, network: UNETR, patch: Triple) -> None:
        super().__init__()
        if network.encoder.config.stem == "convolutional" and patch != network.encoder.patch:
            raise ConfigError(
                "`inference.patch by_spacing` needs an encoder without a convolutional stem",
                remedy="leave it out, and resample: `--prepare.spacing_mm` when the store is made",
                code="patch-by-spacing",
            )
        self.network = network
        self.patch = patch

    @property
    def encoder(self) -> VolumeViT:
        """The network's own."""
        return self.network.encoder

    def forward(
        self, voxels: Tensor, spacing_mm: Tensor | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """Logits `b k x y z` of the voxels' own size; arguments as those of `UNETR`."""
        network = self.network
        states, voxels = network.encoded(voxels, spacing_mm, valid, patch=self.patch)
        here = states.grid
        there = TokenGrid.over(_times(here.counts, self.encoder.patch), self.encoder.patch)

        fine = F.interpolate(padded(voxels, here), size=there.padded, mode="trilinear")
        logits = network.decoded(replace(states, grid=there), fine)
        return cut_back(F.interpolate(logits, size=here.padded, mode="trilinear"), voxels)


def _times(counts: Triple, patch: Triple) -> Triple:
    x, y, z = (count * edge for count, edge in zip(counts, patch, strict=True))
    return x, y, z
