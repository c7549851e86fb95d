"""The last linear map of a pretext task that predicts voxels: from a token to its patch."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from mim3d.models.resize import resized_head
from mim3d.tokens.grid import Triple


class PatchHead(nn.Linear):
    """Hidden states to the voxels of a patch: of the stored size or, resized, of another.

    Stores `weight` and `bias`, as a linear layer of `(c px py pz)` outputs.

    Args:
        width: channels of a hidden state.
        channels: c, of the voxels.
        patch: voxels of the stored patch along x, y, z.
    """

    def __init__(self, width: int, channels: int, patch: Triple) -> None:
        super().__init__(width, channels * math.prod(patch))
        self.channels = channels
        self.patch = patch

    def forward(self, tokens: Tensor, patch: Triple | None = None) -> Tensor:
        """Patches `b n p` of hidden states `b n d`.

        Args:
            tokens: the hidden states.
            patch: voxels of the patches along x, y, z; none is the stored size.
        """
        size = self.patch if patch is None else patch
        weight, bias = resized_head(self.weight, self.bias, self.patch, size, self.channels)
        return F.linear(tokens, weight, bias)
