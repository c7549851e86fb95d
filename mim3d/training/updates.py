"""One update of the weights: rates, the gradients of a step's micro-batches, the optimiser."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mim3d.config.training import OptimConfig, TrainingConfig
from mim3d.data.batch import MicroBatch
from mim3d.foundation.randomness import RandomStream, philox
from mim3d.objectives.base import Moment, Task
from mim3d.training.ema import MeanWeights
from mim3d.training.fabric import Machine
from mim3d.training.logs import Means
from mim3d.training.optim import build_optimiser, schedule, set_frozen, set_rates, trainable
from mim3d.training.sharding import whole_tensor

Pictures = dict[str, Tensor]
OnPictures = Callable[[int, Pictures], None]


def moment_of(step: int, training: TrainingConfig, *, wants_pictures: bool = False) -> Moment:
    """What a task is told of a step, with the random numbers of this step."""
    random = RandomStream(training.seed, step)
    return Moment(step, training.steps, random, wants_pictures)


class Updates:
    """The updates of one training.

    Args:
        task: moved to the device in place.
        config: rates, decays, schedule.
        training: steps, seed, compilation.
        machine: device and other processes.

    Attributes:
        stepper: forward and backward pass among the processes.
        parameters: those that learn, by name.
        optimiser: of them.
        mean: running mean of the weights, or None where it is off.
    """

    def __init__(
        self, task: Task, config: OptimConfig, training: TrainingConfig, machine: Machine
    ) -> None:
        self._config, self._training, self._machine = config, training, machine
        task.train()
        if training.compile:
            # The parts, not the task: it draws keys by hashing, which no graph can hold.
            for module in task.children():
                module.compile()
        self.stepper = machine.stepper(task)  # first: with FSDP the parameters become others
        self.parameters = trainable(task)
        self.optimiser = build_optimiser(self.parameters, config)
        self.mean = MeanWeights(self.parameters, config.ema) if config.ema > 0 else None

    def begin(self, step: int) -> float:
        """Sets what follows from the step's number; returns its rate."""
        config, training = self._config, self._training
        set_frozen(self.parameters, frozen=step < config.freeze_encoder_steps)
        rate = config.lr * schedule(step, training.steps, config)
        set_rates(self.optimiser, rate)
        torch.manual_seed(
            int(philox(training.seed, step, self._machine.rank, "torch").random_raw() >> 1)
        )
        return rate

    def gradients(
        self, step: int, batches: list[MicroBatch], on_pictures: OnPictures | None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Adds up the gradients of a step; returns each loss and the means of what was logged.

        Args:
            step: its number.
            batches: this process's share.
            on_pictures: told of the first crops' pictures; None wants none.
        """
        self.optimiser.zero_grad(set_to_none=True)
        losses: list[Tensor] = []
        logs = Means()
        for place, batch in enumerate(batches):
            is_first, is_last = place == 0, place == len(batches) - 1
            wants_pictures = on_pictures is not None and is_first
            asked = moment_of(step, self._training, wants_pictures=wants_pictures)
            outcome = self.stepper(
                batch.to(self._machine.device), asked, share=1 / len(batches), is_last=is_last
            )
            losses.append(outcome.loss)
            logs.add({**outcome.logs, "loss": outcome.loss})
            if asked.wants_pictures and outcome.pictures and on_pictures is not None:
                on_pictures(step, _on_cpu(outcome.pictures))
        return losses, logs.values()

    def norm(self) -> tuple[Tensor, Tensor]:
        """The gradients' norm as clipping takes it, and as a number of all processes."""
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in self.parameters.values() if p.grad is not None]
        )
        return norm, whole_tensor(norm.detach())

    def apply(self, norm: Tensor) -> None:
        """Moves the weights, and their running mean behind them."""
        if self._config.clip is not None:
            learning = [p for p in self.parameters.values() if p.grad is not None]
            torch.nn.utils.clip_grads_with_norm_(learning, self._config.clip, norm)
        self.optimiser.step()
        if self.mean is not None:
            self.mean.update()

    def thaw(self) -> None:
        """Leaves no parameter frozen."""
        set_frozen(self.parameters, frozen=False)


def _on_cpu(pictures: Pictures) -> Pictures:
    return {name: array.detach().cpu() for name, array in pictures.items()}
