"""Looking at a task from outside while it trains, without leaving a trace in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from mim3d.foundation.randomness import philox
from mim3d.objectives.base import Moment, Task
from mim3d.training.ema import MeanWeights
from mim3d.training.fabric import own_random_numbers


@dataclass(frozen=True)
class Validator:
    """A look at the task, taken every so many steps and at the last one.

    Args:
        name: of the lines in the log.
        every: steps between two looks; 0 is only at the end.
        function: `(task, moment) -> {name: number}`, called with the weights used after training,
            in eval mode, without gradients, in the training's precision.
        best: the number by which the best checkpoint is chosen, and whether it should be large or
            small; at most one validator of a run has it.
        at: further steps, for example a logarithmic grid; 0 is before the first update.
        shown: names that are said aloud; the log has all. None says all.
        alarms: sentences that warn of the numbers of a look.
    """

    name: str
    every: int
    function: Callable[[Task, Moment], dict[str, float]]
    best: tuple[str, Literal["min", "max"]] | None = None
    at: tuple[int, ...] = ()
    shown: tuple[str, ...] | None = None
    alarms: Callable[[Mapping[str, float], Moment], list[str]] | None = None

    def is_due(self, step: int, steps: int) -> bool:
        """Whether it looks after this many updates."""
        on_grid = self.every > 0 and step > 0 and step % self.every == 0
        return on_grid or step in self.at or step == steps


def spoken(values: Mapping[str, float], shown: tuple[str, ...] | None) -> str:
    """The numbers of a look as they are said: `dice 0.8123  rank 41`."""
    names = [name for name in shown or values if name in values]
    return "  ".join(f"{name} {values[name]:.4g}" for name in names)


def is_better(new: float, old: float | None, direction: Literal["min", "max"]) -> bool:
    """Whether a number is an improvement; NaN never is."""
    if new != new:
        return False
    if old is None:
        return True
    return new < old if direction == "min" else new > old


@contextlib.contextmanager
def undisturbed(task: Task, mean: MeanWeights | None, seed: int) -> Iterator[None]:
    """The task in eval mode with the weights used after training; as it was afterwards.

    Weights, buffers, modes of all modules and torch's generators come back bit for bit.

    Args:
        task: any.
        mean: running mean of the weights, or None where it is off.
        seed: names the numbers torch's generator gives inside, the same at every validation.
    """
    modes = [(module, module.training) for module in task.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in task.buffers()]
    device = next((p.device for p in task.parameters()), torch.device("cpu"))
    with contextlib.ExitStack() as stack:
        stack.enter_context(own_random_numbers(device))
        stack.enter_context(torch.no_grad())
        if mean is not None:
            stack.enter_context(mean.in_place())
        torch.manual_seed(int(philox(seed, "validation").random_raw() >> 1))
        task.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for buffer, content in buffers:
                buffer.copy_(content)
