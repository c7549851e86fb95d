"""From hidden states and raw voxels to logits: UNETR's decoder and kin, and one without skips.

All share a face: `decoder(states, voxels) -> logits b k x y z`, of the voxels' own size, and
`decoder.taps`, what the encoder is asked for. Those with skips can be supervised on coarser grids
too: `decoder.pyramid(states, voxels)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mim3d.config.data import Triple
from mim3d.config.task import DecoderConfig
from mim3d.foundation.errors import ConfigError
from mim3d.models.convolutions import (
    ConvBlock,
    Interpolation,
    ResidualBlock,
    TapPath,
    UpBlock,
    Upsampling,
    depth_to_space,
    space_to_depth,
    upsample,
)
from mim3d.models.hidden_states import HiddenStates
from mim3d.models.hybrid import HybridDecoder
from mim3d.models.levels import level_strides
from mim3d.models.taps import Taps, cut_back, padded, tap_numbers
from mim3d.models.vit import VolumeViT

LEVELS = 4
"""Levels of UNETR: three skips from taps and one from the raw voxels."""


class SkipDecoder(nn.Module):
    """UNETR's decoder (Hatamizadeh et al., arXiv:2103.10504) for any patch of powers of two.

    At patch 16 it is MONAI's. Smaller patches have fewer levels above the token grid; their deepest
    taps are joined on the grid itself, so that all four are used with every patch. Channels are
    `feature_size` at full resolution and double with every level down.

    Args:
        taps: hidden states to maps.
        width: channels of a token.
        patch: voxels behind a token, on the grid of `voxels`.
        channels: channels of the voxels.
        feature_size: channels at the voxels' resolution.
        up: how a level is brought to the resolution of the next.
    """

    def __init__(
        self,
        taps: Taps,
        width: int,
        patch: Triple,
        channels: int,
        feature_size: int,
        up: Upsampling = upsample,
    ) -> None:
        super().__init__()
        self.taps = taps
        ladder = level_strides(patch)
        strides = [(1, 1, 1)] * (LEVELS - len(ladder)) + ladder
        # A level's channels follow from how far above it full resolution lies.
        above = [math.prod(map(max, strides[i + 1 :])) for i in range(len(strides))]
        sizes = [feature_size * factor for factor in above]
        self.sizes = sizes[::-1]
        """Channels of every level, finest first."""
        self.raw = ResidualBlock(channels, feature_size)
        # The three levels below the last get the inner taps; with patch 32 the lowest gets none.
        fed = range(len(strides) - LEVELS, len(strides) - 1)
        self.paths = nn.ModuleList(
            TapPath(width, sizes[i], [s for s in strides[: i + 1] if s != (1, 1, 1)], up)
            for i in fed
        )
        self.levels = nn.ModuleList(
            UpBlock(below, size, stride, has_skip=i >= fed.start, up=up)
            for i, (below, size, stride) in enumerate(
                zip([width, *sizes[:-1]], sizes, strides, strict=True)
            )
        )

    def forward(self, states: HiddenStates, voxels: Tensor) -> list[Tensor]:
        """Features `b f x y z` of every level, finest first: that has the resolution of `voxels`.

        The sides of `voxels` are whole patches.
        """
        *inner, deepest = self.taps(states)
        # The deepest level is fed by the deepest of the inner taps.
        skips = [path(tap) for path, tap in zip(self.paths, reversed(inner), strict=True)]
        skips.append(self.raw(voxels))
        unfed: list[Tensor | None] = [None] * (len(self.levels) - len(skips))
        features = [deepest]
        for level, skip in zip(self.levels, unfed + skips, strict=True):
            features.append(level(features[-1], skip))
        return features[:0:-1]


class SkipSegmenter(nn.Module):
    """A trunk with skips, logits, and in training logits on coarser grids.

    Args:
        config: the decoder's section.
        encoder: whose hidden states are read.
        outputs: classes or regions.
        factor: voxels along each axis that enter as channels of one, and leave by a pixel shuffle:
            the trunk ends at that resolution.
        up: how the trunk brings a level to the resolution of the next.
    """

    def __init__(
        self,
        config: DecoderConfig,
        encoder: VolumeViT,
        outputs: int,
        factor: Triple,
        up: Upsampling = upsample,
    ) -> None:
        super().__init__()
        self.taps = tap_numbers(config, encoder.depth)
        self.factor = factor
        sub_voxels = math.prod(factor)
        features = max(factor) * config.feature_size
        x, y, z = (edge // side for edge, side in zip(encoder.patch, factor, strict=True))
        self.trunk = SkipDecoder(
            Taps(self.taps, encoder.depth, encoder.width, config.tap_norm),
            encoder.width,
            (x, y, z),
            encoder.channels * sub_voxels,
            features,
            up,
        )
        self.dropout = nn.Dropout3d(config.dropout)
        self.out = nn.Conv3d(features, outputs * sub_voxels, 1)
        # The sub-filters of a class start equal: otherwise logits begin with a pattern of period 2.
        with torch.no_grad():
            for parameter in (self.out.weight, self.out.bias):
                assert parameter is not None
                parameter.copy_(parameter[::sub_voxels].repeat_interleave(sub_voxels, dim=0))
        coarser = self.trunk.sizes[1:]
        if not 0 <= config.deep_supervision <= len(coarser):
            raise ConfigError(
                f"`decoder.deep_supervision` is {config.deep_supervision}, this decoder has "
                f"{len(coarser)} coarser levels",
                code="deep-supervision",
            )
        heads = coarser[: config.deep_supervision]
        self.coarse = nn.ModuleList(nn.Conv3d(size, outputs, 1) for size in heads)

    def forward(self, states: HiddenStates, voxels: Tensor) -> Tensor:
        """Logits `b k x y z` of the voxels' own size."""
        return self._logits(self._features(states, voxels)[0], voxels)

    def pyramid(self, states: HiddenStates, voxels: Tensor) -> list[Tensor]:
        """Logits of the voxels' own size, then those of the supervised coarser levels.

        A coarser map lies on the voxels' grid, padded to whole patches, in boxes.
        """
        finest, *coarser = self._features(states, voxels)
        heads = zip(self.coarse, coarser, strict=False)
        return [self._logits(finest, voxels), *(head(features) for head, features in heads)]

    def _features(self, states: HiddenStates, voxels: Tensor) -> list[Tensor]:
        """Features of every level, finest first, on whole patches."""
        deep = space_to_depth(padded(voxels, states.grid), self.factor)
        features: list[Tensor] = self.trunk(states, deep)
        return features

    def _logits(self, features: Tensor, voxels: Tensor) -> Tensor:
        return cut_back(depth_to_space(self.out(self.dropout(features)), self.factor), voxels)


class UnetrDecoder(SkipSegmenter):
    """UNETR's decoder with logits at full resolution."""

    def __init__(self, config: DecoderConfig, encoder: VolumeViT, outputs: int) -> None:
        super().__init__(config, encoder, outputs, (1, 1, 1))


class InterpolatingDecoder(SkipSegmenter):
    """UNETR's decoder whose levels grow by trilinear interpolation and a convolution.

    A transposed convolution whose kernel is its stride gives each voxel of a box weights of its
    own, which shows as a pattern with the box's period; here neighbours begin alike.
    """

    def __init__(self, config: DecoderConfig, encoder: VolumeViT, outputs: int) -> None:
        super().__init__(config, encoder, outputs, (1, 1, 1), Interpolation)


class HalfDecoder(SkipSegmenter):
    """UNETR's decoder that ends at half resolution, where most of its cost ends too.

    The voxels enter with each 2 x 2 x 2 box as channels, and logits leave by a pixel shuffle.
    An axis that the last level of the full decoder does not upsample stays whole here too.
    """

    def __init__(self, config: DecoderConfig, encoder: VolumeViT, outputs: int) -> None:
        ladder = level_strides(encoder.patch)
        if not ladder:
            raise ConfigError("`decoder.name half` needs patches of 2 voxels or more along an axis")
        super().__init__(config, encoder, outputs, ladder[-1])


class LightDecoder(nn.Module):
    """All taps joined by one linear map, then one convolution a level: no skips, no raw voxels.

    What it knows of the crop has passed the encoder, so it shows what the encoder knows.
    """

    def __init__(self, config: DecoderConfig, encoder: VolumeViT, outputs: int) -> None:
        super().__init__()
        self.taps = tap_numbers(config, encoder.depth)
        self.maps = Taps(self.taps, encoder.depth, encoder.width, config.tap_norm)
        strides = level_strides(encoder.patch)
        sizes = [config.feature_size * 2**i for i in range(len(strides), -1, -1)]
        self.join = nn.Conv3d(len(self.taps) * encoder.width, sizes[0], 1)
        self.levels = nn.ModuleList(
            nn.Sequential(upsample(below, size, stride), ConvBlock(size, size))
            for below, size, stride in zip(sizes, sizes[1:], strides, strict=False)
        )
        self.dropout = nn.Dropout3d(config.dropout)
        self.out = nn.Conv3d(config.feature_size, outputs, 1)

    def forward(self, states: HiddenStates, voxels: Tensor) -> Tensor:
        """Logits `b k x y z` of the voxels' own size; of the voxels nothing else is used."""
        features = self.join(torch.cat(self.maps(states), dim=1))
        for level in self.levels:
            features = level(features)
        return cut_back(self.out(self.dropout(features)), voxels)


DECODERS: dict[str, Callable[[DecoderConfig, VolumeViT, int], nn.Module]] = {
    "unetr": UnetrDecoder,
    "half": HalfDecoder,
    "interpolate": InterpolatingDecoder,
    "hybrid": HybridDecoder,
    "light": LightDecoder,
}
"""By the config's word."""
SUPERVISED = ("unetr", "half", "interpolate")
"""Those whose coarser levels can have logits of their own in training."""


def build_decoder(config: DecoderConfig, encoder: VolumeViT, outputs: int) -> nn.Module:
    """The decoder of that name for an encoder's width, depth, patch and channels.

    Args:
        config: the decoder's section.
        encoder: whose hidden states it will read.
        outputs: classes or regions.

    Raises:
        ConfigError: an unknown name, a patch that is no power of two, or taps out of range.
    """
    if config.name not in DECODERS:
        names = ", ".join(DECODERS)
        raise ConfigError(f"`decoder.name {config.name}` is not one of {names}")
    if config.deep_supervision and config.name not in SUPERVISED:
        raise ConfigError(
            f"`decoder.name {config.name}` has no coarser logits to supervise",
            remedy=f"use {', '.join(f'`{name}`' for name in SUPERVISED)}, or "
            "`--decoder.deep_supervision 0`",
            code="deep-supervision",
        )
    return DECODERS[config.name](config, encoder, outputs)
