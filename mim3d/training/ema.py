"""The running mean of the weights, which is what is used after training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class MeanWeights:
    """Exponential moving average of parameters (Polyak and Juditsky 1992).

    `m <- m + (1 - d) (w - m)` with `d = min(decay, (1 + s) / (10 + s))` after `s` updates: early
    on the mean is short, so that it does not remember the initialisation.

    Args:
        parameters: by name; the mean starts as a copy.
        decay: largest `d`, 0 to below 1.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._parameters = parameters
        self._decay = decay
        self.updates = 0
        self.tensors: dict[str, Tensor] = {n: p.detach().clone() for n, p in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Moves the mean towards the weights as they are now."""
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        weights = [self._parameters[name].detach() for name in self.tensors]
        torch._foreach_lerp_(list(self.tensors.values()), weights, 1 - decay)
        self.updates += 1

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Takes a saved mean."""
        for name, mean in self.tensors.items():
            mean.copy_(tensors[name])
        self.updates = updates

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The task has the mean weights inside and its own, bit for bit, afterwards."""
        with torch.no_grad():
            own = {name: p.detach().clone() for name, p in self._parameters.items()}
            for name, mean in self.tensors.items():
                self._parameters[name].copy_(mean)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in own.items():
                    self._parameters[name].copy_(weight)
