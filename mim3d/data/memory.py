"""Memory of batches that is used again once nobody looks at it any more.

A system gives large memory back and hands it out page by page: touching 28 MB anew takes longer
than cutting the crops that fill them.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

KEPT = 4
"""Blocks of one size that wait to be used again."""


class Pool:
    """Blocks of float32; those of the size that was last asked for are kept."""

    def __init__(self) -> None:
        self._count = 0
        self._waiting: list[NDArray[np.float32]] = []

    def take(self, shape: Sequence[int]) -> Tensor:
        """A tensor with any content, whose memory nobody else looks at while a view of it lives."""
        count = math.prod(shape)
        if count != self._count:
            self._count, self._waiting = count, []
        block = self._waiting.pop() if self._waiting else np.empty(count, np.float32)
        # Torch keeps this view until the last tensor on it is gone; then the block comes back.
        view = block[:]
        weakref.finalize(view, self._return, block).atexit = False
        return torch.from_numpy(view).view(tuple(shape))

    def _return(self, block: NDArray[np.float32]) -> None:
        if block.size == self._count and len(self._waiting) < KEPT:
            self._waiting.append(block)


POOL = Pool()
"""The pool of this process."""
