"""A linear path from tokens to logits beside a decoder: what a linear probe reads, trained on."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mim3d.config.data import Triple
from mim3d.models.convolutions import depth_to_space
from mim3d.models.hidden_states import HiddenStates
from mim3d.models.taps import cut_back
from mim3d.models.vit import VolumeViT

CELLS = 2
"""Cells of a token along each axis that get logits of their own, where its patch has as many
voxels."""


class DirectPath(nn.Module):
    """Last hidden states, normalised, through one linear map to cells, and up to voxels.

    A decoder that starts at random hides for tens to hundreds of steps what the encoder knows
    already; a linear map on frozen features reads it at once (`objectives.linear_start`).

    Stores `linear` (`(k i j l) d`).

    Args:
        encoder: whose last hidden states are read.
        outputs: classes or regions.
    """

    def __init__(self, encoder: VolumeViT, outputs: int) -> None:
        super().__init__()
        x, y, z = (min(CELLS, edge) for edge in encoder.patch)
        self.cells: Triple = (x, y, z)
        self.outputs = outputs
        self.norm = nn.LayerNorm(encoder.width, elementwise_affine=False)
        self.linear = nn.Linear(encoder.width, outputs * x * y * z)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def features(self, states: HiddenStates) -> Tensor:
        """What is mapped: the last hidden states, each token to mean 0 and deviation 1, `b n d`."""
        normalised: Tensor = self.norm(states.tokens)
        return normalised

    def forward(self, states: HiddenStates, voxels: Tensor) -> Tensor:
        """Logits `b k x y z` of the voxels' own size, trilinear between the cells' centres."""
        mapped = self.linear(self.features(states))
        b, _, width = mapped.shape
        grid = mapped.transpose(1, 2).reshape(b, width, *states.grid.counts)
        coarse = depth_to_space(grid, self.cells)
        return cut_back(F.interpolate(coarse, size=states.grid.padded, mode="trilinear"), voxels)
