"""A small convolutional U beside the encoder: the decoder for small structures at few labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mim3d.config.data import Triple
from mim3d.config.task import DecoderConfig
from mim3d.foundation.errors import ConfigError
from mim3d.models.convolutions import (
    Conv3,
    ConvBlock,
    ResidualBlock,
    depth_to_space,
    leaky,
    space_to_depth,
    upsample,
)
from mim3d.models.hidden_states import HiddenStates
from mim3d.models.levels import level_strides
from mim3d.models.taps import Taps, cut_back, padded, tap_numbers
from mim3d.models.vit import VolumeViT


class HybridDecoder(nn.Module):
    """Raw voxels go down to the token grid, meet the taps, and come up again; joins are sums.

    Like `half` it works from half resolution down, where convolutions are cheap. Two things are
    added: the raw voxels pass strided convolutions down to the token grid, so that every level has
    local detail beside the encoder's context, and two narrow convolutions at full resolution
    correct the logits, starting from no correction at all.

    The shallowest taps join the finest levels; those for which there is no level are joined on the
    token grid. `benchmarks/hippocampus` holds what each part is worth.
    """

    def __init__(self, config: DecoderConfig, encoder: VolumeViT, outputs: int) -> None:
        super().__init__()
        self.taps = tap_numbers(config, encoder.depth)
        self.maps = Taps(self.taps, encoder.depth, encoder.width, config.tap_norm)
        ladder = level_strides(encoder.patch)[::-1]  # finest first
        if not ladder:
            raise ConfigError("`decoder.name hybrid` needs patches of 2 voxels or more on an axis")
        self.factor, *strides = ladder
        sub_voxels = math.prod(self.factor)
        features = 2 * config.feature_size
        if features % sub_voxels:
            raise ConfigError(
                f"`decoder.feature_size` {config.feature_size} does not shuffle into boxes of "
                f"{sub_voxels} voxels",
                remedy="use a multiple of 4",
            )
        sizes = [features * 2**level for level in range(len(ladder))]

        self.stem = ConvBlock(encoder.channels * sub_voxels, features)
        self.down = nn.ModuleList(
            ResidualBlock(fine, coarse, stride)
            for fine, coarse, stride in zip(sizes, sizes[1:], strides, strict=False)
        )
        self.lowest_taps = max(1, len(self.taps) - len(strides))
        self.meet = nn.Conv3d(self.lowest_taps * encoder.width, sizes[-1], 1)
        self.bottom = ResidualBlock(sizes[-1], sizes[-1])
        # From the token grid to each finer level: one linear map of a token to its box.
        spans = [_product(strides[i:]) for i in range(len(strides))]
        self.lift = nn.ModuleList(
            upsample(encoder.width, size, span)
            for size, span in zip(sizes, spans[: len(self.taps) - 1], strict=False)
        )
        self.up = nn.ModuleList(
            upsample(coarse, fine, stride)
            for fine, coarse, stride in zip(sizes, sizes[1:], strides, strict=False)
        )
        self.blocks = nn.ModuleList(ResidualBlock(size, size) for size in sizes[:-1])
        self.dropout = nn.Dropout3d(config.dropout)
        self.out = nn.Conv3d(features, outputs * sub_voxels, 1)
        narrow = config.feature_size // 2
        self.detail = Conv3(features // sub_voxels + encoder.channels, narrow, bias=True)
        self.correction = Conv3(narrow, outputs, bias=True)
        with torch.no_grad():
            for parameter in (self.out.weight, self.out.bias):
                assert parameter is not None
                # Sub-filters of a class start equal, else logits begin with a pattern of period 2.
                parameter.copy_(parameter[::sub_voxels].repeat_interleave(sub_voxels, dim=0))
            for parameter in self.correction.parameters():
                parameter.zero_()

    def forward(self, states: HiddenStates, voxels: Tensor) -> Tensor:
        """Logits `b k x y z` of the voxels' own size."""
        whole = padded(voxels, states.grid)
        raw = [self.stem(space_to_depth(whole, self.factor))]
        for block in self.down:
            raw.append(block(raw[-1]))

        maps = self.maps(states)
        features = self.meet(torch.cat(maps[-self.lowest_taps :], dim=1))
        features = self.bottom(features + raw[-1])
        for level in reversed(range(len(self.up))):
            features = self.up[level](features) + raw[level]
            if level < len(self.lift):
                features = features + self.lift[level](maps[level])
            features = self.blocks[level](features)

        features = self.dropout(features)
        coarse = depth_to_space(self.out(features), self.factor)
        detail = torch.cat([depth_to_space(features, self.factor), whole.to(features.dtype)], dim=1)
        correction = self.correction(leaky(self.detail(detail)))
        return cut_back(coarse + correction, voxels)


def _product(strides: Sequence[Triple]) -> Triple:
    x, y, z = (math.prod(steps) for steps in zip(*strides, strict=True))
    return x, y, z
