"""What comes out of an encoder."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mim3d.tokens.grid import TokenGrid


@dataclass(frozen=True)
class HiddenStates:
    """What the encoder knows of a crop.

    Args:
        tokens: `b n d` after the final norm, patch tokens only; of the visible ones with a split.
        taps: the residual stream after the blocks asked for, un-normalised, each `b n d`.
        grid: how all tokens of the crop lie.
        token_valid: `b n` bool, which of `tokens` are real; None where all are.
        prefix: `b k d` after the final norm, class token first, then registers; None without.
        coordinates: `b n 3` or `1 n 3`, where *all* tokens of the grid lie, in the unit of the
            encoder's positions; decoders with positions of their own go by it.
        attention: weights of the blocks asked for, each `b h (k n) (k n)`, prefix first.
        has_class_token: whether the first of `prefix` is one.
    """

    tokens: Tensor
    taps: tuple[Tensor, ...]
    grid: TokenGrid
    token_valid: Tensor | None
    prefix: Tensor | None
    coordinates: Tensor
    attention: tuple[Tensor, ...] = ()
    has_class_token: bool = False
