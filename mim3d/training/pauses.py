"""What happens between two steps: lines of the log, looks, checkpoints, and the wish to stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

from torch import Tensor

from mim3d.config.training import TrainingConfig
from mim3d.foundation.errors import Interrupted, ProcessLost
from mim3d.foundation.reporting import Reporter
from mim3d.models.low_rank import merged
from mim3d.objectives.base import Task
from mim3d.training.checkpoints import Saved
from mim3d.training.ema import MeanWeights
from mim3d.training.fabric import Machine
from mim3d.training.logs import Log, mean_values, progress_line
from mim3d.training.pace import Pace, Slowest
from mim3d.training.run import Run
from mim3d.training.sharding import whole
from mim3d.training.signals import Abandoned, StopRequest
from mim3d.training.standing import Position, Standing, finite
from mim3d.training.stepper import Stepper
from mim3d.training.updates import moment_of
from mim3d.training.validation import Validator, is_better, spoken, undisturbed

logger = logging.getLogger(__name__)

ANOTHER = "another process was asked to stop"


class Pauses:
    """The pauses of one training.

    Args:
        standing: how far the run is, and what a checkpoint is made from.
        stepper: shows the task to validators.
        machine: device and other processes.
        run: where everything is written.
        training: steps and cadences.
        validators: looks from outside.
        reporter: where progress goes.
        header: of `weights.safetensors`.

    Attributes:
        stop: inside, a signal is a wish.
        pace: clocks of the steps, which stand still in here.
        slowest: step and look.
    """

    def __init__(
        self,
        standing: Standing,
        stepper: Stepper,
        machine: Machine,
        run: Run,
        training: TrainingConfig,
        validators: Sequence[Validator],
        reporter: Reporter,
        header: Mapping[str, str],
    ) -> None:
        self._standing, self._stepper, self._machine = standing, stepper, machine
        self._run, self._training, self._validators = run, training, validators
        self._reporter, self._header = reporter, dict(header)
        self._log: Log | None = None
        self.stop = StopRequest()
        self.pace = Pace(training.batch_size)
        self.slowest = Slowest()

    @property
    def _position(self) -> Position:
        return self._standing.position

    # What is told

    def open(self) -> None:
        """Opens the log where the run stands, and says what there is to say of the run."""
        position = self._position
        self._run.begin()
        if self._run.writes:
            self._log = Log(self._run.folder, position.step, is_closed=position.is_closed)
        if self._run.note and self._machine.is_first:
            self._reporter.say(self._run.note)
        self._run.progress(position.step, self._training.steps)

    def close(self) -> None:
        """Closes the log."""
        if self._log is not None:
            self._log.close()

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        """A line of the log, in the process that writes."""
        if self._log is not None:
            self._log.write(kind, self._position.step, values)

    def notice(self, text: str) -> None:
        """A warning, also in the log."""
        self.write("notice", {"text": text})
        self._reporter.warn(text)

    def tell_of(self, lost: ProcessLost, where: list[str]) -> None:
        """Where this process waited, in the log of the first and on the terminal of any."""
        self.write("lost", {"text": lost.what, "stack": where})
        logger.error("%s; it was in\n  %s", lost.what, "\n  ".join(where))

    def report(self, rate: float) -> None:
        """The live line, and every `log_every` steps a line of the log."""
        step, steps = self._position.step, self._training.steps
        is_due = step % self._training.log_every == 0 or step == steps
        if is_due:
            values = mean_values(self._shared_totals())
            self._position.loss = finite(values.get("loss"))
            speed = self.pace.read()
            self.write("train", {**values, "lr": rate, **speed.as_json()})
        if self._machine.is_first and (is_due or self.pace.is_line_due()):
            speed = self.pace.read()
            shown = self._standing.means.values().get("loss")
            line = progress_line(
                step,
                steps,
                loss=float("nan") if shown is None else float(shown),
                rate=rate,
                crops_per_second=speed.crops_per_second,
                data_share=speed.data_share,
                seconds_left=speed.seconds_a_step * (steps - step),
            )
            self._reporter.progress(step, steps, line)
        if is_due:
            self._standing.means.clear()
            self.pace.clear()

    def _shared_totals(self) -> dict[str, tuple[float, float]]:
        totals = self._standing.means.totals()
        names = sorted(totals)
        summed = self._machine.summed([number for name in names for number in totals[name]])
        return {name: (summed[2 * i], summed[2 * i + 1]) for i, name in enumerate(names)}

    # The wish to stop, and what closes a step

    def agree(self, numbers: Tensor) -> tuple[bool, str | None]:
        """Whether all is finite in all processes, and why any of them wants to stop."""
        is_finite = bool(numbers.isfinite().all())
        self.slowest.end_step()
        self.stop.ahead = self.slowest.step
        if self._due(self._position.step + 1):
            self.stop.ahead += self.slowest.look
        reason = self.stop.reason
        bad, wish = self._machine.largest([float(not is_finite), float(reason is not None)])
        return not bad, (reason or ANOTHER) if wish else None

    def close_step(self, wish: str | None) -> None:
        """Validates and writes a checkpoint where they are due; stops where that is wished.

        A run that is asked to stop leaves the validation to whoever continues it.

        Raises:
            Interrupted: it was wished, now or during the validation.
        """
        step, steps = self._position.step, self._training.steps
        if wish is None and not self._position.is_closed:
            try:
                is_best = self._validate()
            except Abandoned:
                wish = self.stop.reason or ANOTHER
            else:
                self._position.is_closed = True
                on_grid = step > 0 and step % self._training.checkpoint_every == 0
                if on_grid or is_best or step == steps:
                    self._checkpoint(is_best=is_best)
        if wish is not None:
            self._checkpoint(is_best=False)
            self.interrupt(wish)

    def interrupt(self, wish: str) -> NoReturn:
        """Ends the training behind a checkpoint."""
        step, steps = self._position.step, self._training.steps
        raise Interrupted(
            f"interrupted by {wish} after step {step:,} of {steps:,}",
            remedy="the same command continues from there",
            code="interrupted",
        )

    # Looks from outside

    def _due(self, step: int) -> list[Validator]:
        return [v for v in self._validators if v.is_due(step, self._training.steps)]

    def _validate(self) -> bool:
        """Calls the validators that are due; whether this is the best step so far.

        All look before any is noted: a validation that is abandoned leaves no trace.
        """
        due = self._due(self._position.step)
        if not due:
            return False
        began = time.monotonic()
        with self.pace.paused():
            seen = []
            for validator in due:
                with self._stepper.shown(self._standing.task, self._standing.mean) as (task, mean):
                    look = partial(self._look, validator, task, mean)
                    seen.append((validator, self._machine.first(look)))
        self.slowest.look = max(self.slowest.look, time.monotonic() - began)
        return any([self._note_look(validator, values) for validator, values in seen])

    def _look(self, validator: Validator, task: Task, mean: MeanWeights | None) -> dict[str, float]:
        moment = moment_of(self._position.step, self._training)
        with undisturbed(task, mean, self._training.seed), self._machine.autocast():
            with self.stop.at_once():
                values = validator.function(task, moment)
            return {k: float(v) for k, v in values.items()}

    def _note_look(self, validator: Validator, values: dict[str, float]) -> bool:
        position = self._position
        position.validation[validator.name] = {k: finite(v) for k, v in values.items()}
        self.write("validation", {"name": validator.name, **values})
        self._reporter.say(f"step {position.step:,}  {spoken(values, validator.shown)}")
        if validator.alarms is not None:
            for text in validator.alarms(values, moment_of(position.step, self._training)):
                self.notice(text)
        if validator.best is None:
            return False
        key, direction = validator.best
        if not is_better(values[key], position.best, direction):
            return False
        position.best, position.best_step = values[key], position.step
        return True

    # Checkpoints

    def _checkpoint(self, *, is_best: bool) -> None:
        began = time.monotonic()
        with self.pace.paused():
            self._position.seconds += self.pace.take_seconds()
            # All take part where weights lie in parts.
            keeps, saved = self._machine.is_first, self._standing.saved(world=self._machine.world)
            weights = whole(self._standing.weights(), keeps=keeps)
            weights = merged(self._standing.task, weights)
            tensors = whole(saved.tensors, keeps=keeps)

            def write() -> None:
                self._run.checkpoints.write(
                    self._position.step,
                    weights=weights,
                    header=self._header,
                    saved=Saved(tensors, saved.numbers),
                    # Where nothing chooses, the best is the last.
                    is_best=is_best or all(v.best is None for v in self._validators),
                )
                self._run.progress(self._position.step, self._training.steps)

            self._machine.first(write)
        took = time.monotonic() - began
        self.stop.slowest_checkpoint = max(self.stop.slowest_checkpoint, took)
