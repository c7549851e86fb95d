"""From flattened patches to tokens."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from mim3d.tokens.gather import gather
from mim3d.tokens.grid import Triple


class PatchEmbedding(nn.Module):
    """One linear map of every patch, applied to the tokens that are asked for and to no others.

    `projection.weight` is `d (c px py pz)` with c slowest: a convolution's kernel, flattened. A
    `Conv3d` over all tokens costs four times the work at a mask ratio of 0.75.
    """

    def __init__(self, channels: int, patch: Triple, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(channels * math.prod(patch), width)

    def forward(
        self, patches: Tensor, index: Tensor | None = None, kernel: Tensor | None = None
    ) -> Tensor:
        """Tokens of the patches at `index`, `b k d`; of all patches if it is None.

        Args:
            patches: `b n p`.
            index: `b k`, int64.
            kernel: `d p`, in place of the stored weight where patches have another size.
        """
        chosen = patches if index is None else gather(patches, index)
        weight = self.projection.weight if kernel is None else kernel
        return F.linear(chosen, weight, self.projection.bias)
