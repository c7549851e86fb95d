"""Picking tokens out of sequences."""

from __future__ import annotations

from torch import Tensor


def gather(tokens: Tensor, index: Tensor) -> Tensor:
    """The tokens at `index`, sample by sample.

    Args:
        tokens: `b n d`, or `1 n d` where all samples share them.
        index: `b k`, int64.

    Returns:
        `b k d`.
    """
    batch, _ = index.shape
    everyone = tokens.expand(batch, -1, -1)
    return everyone.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))
