"""The last linear map of a pretext task: from a token to its patch, or to what is asked of it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from mim3d.models.resize import resized_head
from mim3d.tokens.grid import Triple


class Answer(NamedTuple):
    """What is predicted of a token."""

    numbers: int
    """How many: of each voxel behind the token, or of the token."""
    by_voxel: bool = True
    """Whether every voxel has as many: then the head is resized with the patch."""


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


class TokenHead(nn.Linear):
    """Hidden states to numbers of a token, as many whatever the size of its patch.

    Stores `weight` and `bias`.
    """

    def forward(self, tokens: Tensor, patch: Triple | None = None) -> Tensor:
        """Numbers `b n t` of hidden states `b n d`; the patch does not matter."""
        return super().forward(tokens)


def head_for(width: int, answer: Answer, patch: Triple) -> PatchHead | TokenHead:
    """The head that gives an answer.

    Args:
        width: channels of a hidden state.
        answer: what is predicted of a token.
        patch: voxels behind a token along x, y, z.
    """
    if answer.by_voxel:
        return PatchHead(width, answer.numbers, patch)
    return TokenHead(width, answer.numbers)
