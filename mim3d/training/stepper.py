"""Forward and backward pass of a task among processes: alone, with DDP, or with FSDP2."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from mim3d.data.batch import MicroBatch
from mim3d.objectives.base import Moment, Outcome, Task
from mim3d.training.ema import MeanWeights
from mim3d.training.sharding import encoder_blocks, shard, whole


class _Visit:
    """One call of a task. Not a dataclass: Fabric and DDP copy those, and fail on frozen ones."""

    def __init__(self, batch: MicroBatch, moment: Moment) -> None:
        self.batch = batch
        self.moment = moment
        self.outcome: Outcome | None = None


class _Door(nn.Module):
    """What DDP wraps and FSDP cuts: a task that takes one opaque visit and gives the loss."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def forward(self, visit: _Visit) -> Tensor:
        visit.outcome = self.task(visit.batch, visit.moment)
        return visit.outcome.loss


class Stepper:
    """Forward and backward of a task in the machine's precision, with shared gradients.

    Args:
        fabric: a launched `Fabric`.
        task: moved to the device in place.
        shares_gradients: whether there are other processes.
    """

    def __init__(self, fabric: Any, task: Task, *, shares_gradients: bool) -> None:
        self._fabric = fabric
        self._shares = shares_gradients
        self._wrapped = fabric.setup_module(_Door(task))

    def __call__(
        self, batch: MicroBatch, moment: Moment, *, share: float, is_last: bool
    ) -> Outcome:
        """One micro-batch: adds `share` of its gradient, and the other processes' at the last one.

        Args:
            batch: on the device.
            moment: handed to the task.
            share: factor of the loss, one over the number of micro-batches.
            is_last: whether gradients are averaged over the processes now.

        Returns:
            What the task gave, with its loss detached.
        """
        visit = _Visit(batch, moment)
        loss = self._pass(visit, share, is_last)
        assert visit.outcome is not None
        logs = {name: value.detach() for name, value in visit.outcome.logs.items()}
        return Outcome(loss.detach(), logs, visit.outcome.pictures)

    def _pass(self, visit: _Visit, share: float, is_last: bool) -> Tensor:
        wait: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if self._shares and not is_last:
            wait = self._fabric.no_backward_sync(self._wrapped)
        with wait:
            loss: Tensor = self._wrapped(visit)
            self._fabric.backward(loss * share)
        return loss

    @contextlib.contextmanager
    def shown(self, task: Task, mean: MeanWeights | None) -> Iterator[tuple[Any, Any]]:
        """What validators of the first process may look at: the task, and the mean to put in it.

        All processes take part.
        """
        yield task, mean


class ShardedStepper(Stepper):
    """The same with FSDP2: each process keeps a part of every parameter.

    Weights are gathered in fp32 and cast by autocast, as without it: one process, DDP and FSDP
    compute the same numbers.

    Args:
        fabric: a launched `Fabric` of several processes.
        task: moved to the device, its parameters cut in place.
    """

    def __init__(self, fabric: Any, task: Task) -> None:
        self._fabric = fabric
        self._shares = True
        # Validators call parts of a task in the first process alone; a cut task would wait there
        # for the others, so they get a whole one.
        self._whole = copy.deepcopy(task) if fabric.global_rank == 0 else None
        door: Any = _Door(task).to(fabric.device)
        shard(door, encoder_blocks(task), fabric.world_size, fabric.device)
        self._wrapped = door

    def _pass(self, visit: _Visit, share: float, is_last: bool) -> Tensor:
        self._wrapped.set_requires_gradient_sync(is_last)
        with self._fabric.autocast():
            loss: Tensor = self._wrapped(visit)
        (loss * share).backward()  # type: ignore[no-untyped-call]
        return loss

    @contextlib.contextmanager
    def shown(self, task: Task, mean: MeanWeights | None) -> Iterator[tuple[Any, Any]]:
        """A whole task with the weights used after training, in the first process; else None."""
        means = {} if mean is None else mean.tensors
        state = whole({**task.state_dict(), **means}, keeps=self._whole is not None)
        if self._whole is None:
            yield None, None
            return
        try:
            self._whole.to(self._fabric.device).load_state_dict(state)
            yield self._whole, None
        finally:
            self._whole.to("cpu")
