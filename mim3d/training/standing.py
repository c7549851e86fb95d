"""How far a run is: all that survives an interruption, and what is told of it in the end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mim3d.objectives.base import Task
from mim3d.training.alarms import NonFinite
from mim3d.training.checkpoints import Saved, flatten_optimiser, part, restore_optimiser
from mim3d.training.ema import MeanWeights
from mim3d.training.logs import Means
from mim3d.training.sharding import spread


@dataclass(frozen=True)
class FitResult:
    """How a training ended.

    Args:
        steps: updates made, skipped ones included.
        loss: mean training loss over the last lines of the log.
        validation: the last numbers of each validator.
        best: value by which the best checkpoint was chosen, or None.
        best_step: its step, or None.
        skipped: steps left out because something was not finite.
        seconds: of all processes that worked on the run, one after the other.
        crops_per_second: of this process's training steps, waiting for data included.
        digest: SHA-256 over the raw weights.
        checkpoint: folder of the last checkpoint.
    """

    steps: int
    loss: float
    validation: dict[str, dict[str, float]]
    best: float | None
    best_step: int | None
    skipped: int
    seconds: float
    crops_per_second: float
    digest: str
    checkpoint: Path

    def as_json(self) -> dict[str, Any]:
        """The result as JSON types, the checkpoint by its name in the run."""
        content = asdict(self)
        content["checkpoint"] = f"checkpoints/{self.checkpoint.name}"
        return {name: finite(value) for name, value in content.items()}


@dataclass
class Position:
    """Where a run stands, beside tensors."""

    step: int = 0
    """Updates made, skipped ones included."""
    is_closed: bool = False
    """Whether validation and checkpoint after `step` are done."""
    best: float | None = None
    best_step: int | None = None
    loss: float | None = None
    seconds: float = 0.0
    validation: dict[str, dict[str, float | None]] = field(default_factory=dict)


@dataclass
class Standing:
    """What a checkpoint is made from and puts back.

    Args:
        task: with its raw weights and its own state.
        parameters: those that learn, by name.
        optimiser: its moments are kept by the parameters' names.
        mean: running mean of the weights, or None where it is off.
        means: of the log, since its last line.
        nonfinite: counts of skipped steps.
        position: the rest.
    """

    task: Task
    parameters: dict[str, nn.Parameter]
    optimiser: torch.optim.Optimizer
    mean: MeanWeights | None
    means: Means
    nonfinite: NonFinite
    position: Position = field(default_factory=Position)

    def weights(self) -> dict[str, Tensor]:
        """What prediction uses: the task's exported weights, their running mean where it is on."""
        mean = self.mean.tensors if self.mean is not None else {}
        return {name: mean.get(name, tensor) for name, tensor in self.task.weights().items()}

    def saved(self, *, world: int) -> Saved:
        """What a resume needs.

        Args:
            world: processes; the log's means of several are joined when a line is written, so
                those of one alone are not worth keeping.
        """
        tensors = {f"weights/{name}": t for name, t in self.task.state_dict().items()}
        if self.mean is not None:
            tensors |= {f"mean/{name}": t for name, t in self.mean.tensors.items()}
        tensors |= flatten_optimiser(self.optimiser, self.parameters)
        numbers = {
            "position": asdict(self.position),
            "skipped": [self.nonfinite.total, self.nonfinite.in_a_row],
            "mean_updates": self.mean.updates if self.mean is not None else 0,
            "means": self.means.totals() if world == 1 else {},
        }
        return Saved(tensors, numbers)

    def restore(self, saved: Saved, device: torch.device) -> None:
        """Puts everything back, bit for bit, cut as it is cut here."""
        tensors = spread(saved.tensors, self._counterparts(saved))
        self.task.load_state_dict(part(tensors, "weights"))
        restore_optimiser(self.optimiser, self.parameters, tensors)
        if self.mean is not None:
            self.mean.restore(part(tensors, "mean"), saved.numbers["mean_updates"])
        self.means.restore(saved.numbers["means"], device)
        self.nonfinite.total, self.nonfinite.in_a_row = saved.numbers["skipped"]
        self.position = Position(**saved.numbers["position"])

    def _counterparts(self, saved: Saved) -> dict[str, Tensor]:
        """For each saved tensor the one it belongs to here; of moments it is the parameter."""
        state = self.task.state_dict()
        return {key: state[name] for key in saved.tensors if (name := key.split("/")[-1]) in state}

    def result(self, *, crops_per_second: float, digest: str, checkpoint: Path) -> FitResult:
        """What is told at the end; what was measured outside comes in."""
        position = self.position
        return FitResult(
            steps=position.step,
            loss=_number(position.loss),
            validation={
                name: {key: _number(value) for key, value in values.items()}
                for name, values in position.validation.items()
            },
            best=position.best,
            best_step=position.best_step,
            skipped=self.nonfinite.total,
            seconds=position.seconds,
            crops_per_second=crops_per_second,
            digest=digest,
            checkpoint=checkpoint,
        )


def finite(value: Any) -> Any:
    """The value, or None for a number that JSON cannot hold; mappings entry by entry."""
    if isinstance(value, Mapping):
        return {name: finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else value
