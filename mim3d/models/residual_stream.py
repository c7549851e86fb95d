"""The residual stream: tokens on their way through the blocks of an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mim3d.config.encoder import EncoderConfig
from mim3d.models.attention import Attended
from mim3d.models.blocks import Block
from mim3d.tokens.packing import Segments
from mim3d.tokens.positions import Rotation


class ResidualStream(NamedTuple):
    """Tokens behind the blocks."""

    tokens: Tensor
    """`b (k n) d`, class token and registers first, as those of `taps`."""
    taps: tuple[Tensor, ...]
    """After the blocks asked for, un-normalised."""
    attention: tuple[Tensor, ...] = ()
    """Weights of the blocks asked for, each `b h (k n) (k n)`."""


def make_blocks(config: EncoderConfig, width: int, depth: int, heads: int) -> nn.ModuleList:
    """The blocks that an encoder's config describes; the rate of drop path grows with depth."""
    return nn.ModuleList(
        Block(
            width,
            heads,
            mlp_ratio=config.mlp_ratio,
            qkv_bias=config.qkv_bias,
            drop_path=config.drop_path * i / max(1, depth - 1),
            attention_dropout=config.attention_dropout,
            layer_scale=config.layer_scale,
            norm_epsilon=config.norm_epsilon,
        )
        for i in range(depth)
    )


def run_blocks(
    blocks: nn.ModuleList,
    tokens: Tensor,
    rotation: Rotation | None,
    taps: Sequence[int],
    attention_maps: Sequence[int] = (),
    *,
    valid: Tensor | None = None,
    segments: Segments | None = None,
    checkpointing: bool = False,
) -> ResidualStream:
    """Through the blocks: `b n d`, or `1 n d` in segments.

    Args:
        blocks: each with the face of `Block`.
        tokens: the stream before the first block.
        rotation: of queries and keys, where positions rotate.
        taps: numbers of blocks passed (1 = after the first block).
        attention_maps: likewise, the blocks whose attention weights are returned.
        valid: `b n` bool, which tokens may be looked at; None is all.
        segments: the samples of a packed sequence.
        checkpointing: whether activations are computed again in the backward pass.
    """
    streams: dict[int, Tensor] = {}
    maps: dict[int, Tensor] = {}
    for passed, block in enumerate(blocks, start=1):
        given = (tokens, rotation, valid, passed in attention_maps, None, segments)
        if checkpointing and torch.is_grad_enabled():
            state = Attended(*checkpoint(block, *given, use_reentrant=False))
        else:
            state = Attended(*block(*given))
        tokens = state.tokens
        if passed in taps:
            streams[passed] = tokens
        if state.attention is not None:
            maps[passed] = state.attention
    return ResidualStream(
        tokens, tuple(streams[i] for i in taps), tuple(maps[i] for i in attention_maps)
    )
