"""The one training loop. It knows tasks, feeds and a run folder, and no kind of task by name."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from mim3d.config.sections import OptimConfig, TrainingConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.errors import ConfigError, Interrupted
from mim3d.foundation.randomness import RandomStream, philox
from mim3d.foundation.reporting import PlainReporter, Reporter, Silent
from mim3d.objectives.base import Moment, Task
from mim3d.training import fabric
from mim3d.training.alarms import MeanPredictor, NonFinite
from mim3d.training.checkpoints import Saved, read_state, weights_digest
from mim3d.training.ema import MeanWeights
from mim3d.training.logs import Log, Means, mean_values, progress_line
from mim3d.training.optim import build_optimiser, schedule, set_frozen, set_rates, trainable
from mim3d.training.pace import Pace, timed
from mim3d.training.run import Run
from mim3d.training.sharding import whole, whole_tensor
from mim3d.training.signals import StopRequest
from mim3d.training.standing import FitResult, Position, Standing, finite
from mim3d.training.validation import Validator, is_better, spoken, undisturbed

__all__ = ["Feed", "FitResult", "Validator", "fit"]

Pictures = dict[str, Tensor]


class Feed(Protocol):
    """What crops come from."""

    def batches(
        self, start: int, stop: int, *, rank: int = 0, world: int = 1, accumulation: int = 1
    ) -> Iterator[tuple[int, list[CropBatch]]]:
        """For each step from `start` to before `stop`, this process's micro-batches."""


def fit(
    task: Task,
    feed: Feed,
    optim: OptimConfig,
    training: TrainingConfig,
    run: Run,
    *,
    validators: Sequence[Validator] = (),
    reporter: Reporter | None = None,
    metadata: Mapping[str, str] | None = None,
    on_pictures: Callable[[int, Pictures], None] | None = None,
) -> FitResult:
    """Trains a task to the last step, from wherever the run stands.

    The task has its raw weights inside afterwards; what prediction uses (their running mean, where
    that is on) is in the run's checkpoints. On a CPU an interrupted and resumed training ends with
    the same bits as an undisturbed one.

    Args:
        task: moved to the device in place; trained from its present weights in a new run.
        feed: gives the global batch of each step, this process's share of it.
        optim: rates, decays, schedule.
        training: steps, batch, precision, device, cadences.
        run: where everything is written; continued where it has a checkpoint.
        validators: looks from outside; those of the first process count.
        reporter: where progress goes.
        metadata: header of `weights.safetensors`, for example the encoder's config as JSON.
        on_pictures: called in the first process with `(step, pictures)` of a step's first crops.

    Returns:
        The last loss and validation, and the digest of the weights.

    Raises:
        ConfigError: the batch does not divide; the device is not there.
        Interrupted: a signal came or the job's time is over; a checkpoint is written.
        StoppedError: loss or gradient were not finite too often.
        UserError: the run's checkpoint is damaged.
    """
    check_numbers(optim, training)
    machine = fabric.start(training)
    parts = machine.world * training.accumulation
    if training.batch_size % parts:
        raise ConfigError(
            f"`training.batch_size` {training.batch_size} does not divide into {machine.world} "
            f"processes x {training.accumulation} accumulation steps",
            remedy=f"use a multiple of {parts}",
            code="batch-size",
        )
    if sum(validator.best is not None for validator in validators) > 1:
        raise ValueError("at most one validator chooses the best checkpoint")
    loop = _Loop(task, optim, training, run, machine, validators)
    loop.reporter = (reporter or PlainReporter()) if machine.is_first else Silent()
    loop.header = dict(metadata or {})
    loop.on_pictures = on_pictures
    try:
        with (
            fabric.threads(training.threads),
            fabric.float32_matmul(training.float32_matmul),
            fabric.own_random_numbers(machine.device),
        ):
            return loop.train(feed)
    except BaseException as error:
        run.end(error)
        raise


def check_numbers(optim: OptimConfig, training: TrainingConfig) -> None:
    """Raises `ConfigError` for numbers with which nothing can be trained."""
    wrong = {
        "training.steps": training.steps < 1,
        "training.batch_size": training.batch_size < 1,
        "training.accumulation": training.accumulation < 1,
        "training.checkpoint_every": training.checkpoint_every < 1,
        "training.log_every": training.log_every < 1,
        "optim.lr": optim.lr < 0,
        "optim.ema": not 0 <= optim.ema < 1,
        "optim.warmup_steps": optim.warmup_steps < 0,
        "optim.weight_decay": optim.weight_decay < 0,
        "optim.layer_decay": not 0 < optim.layer_decay <= 1,
    }
    for key, is_wrong in wrong.items():
        if is_wrong:
            section, name = key.split(".")
            value = getattr({"training": training, "optim": optim}[section], name)
            raise ConfigError(f"`{key}` is {value}, with which nothing trains", code="range")


class _Loop:
    """One call of `fit`."""

    reporter: Reporter
    header: dict[str, str]
    on_pictures: Callable[[int, Pictures], None] | None

    def __init__(
        self,
        task: Task,
        config: OptimConfig,
        training: TrainingConfig,
        run: Run,
        machine: fabric.Machine,
        validators: Sequence[Validator],
    ) -> None:
        self.task = task
        self.config = config
        self.training = training
        self.run = run
        self.machine = machine
        self.validators = validators
        task.train()
        if training.compile:
            # The parts, not the task: it draws keys by hashing, which no graph can hold.
            for module in task.children():
                module.compile()
        self.stepper = machine.stepper(task)  # first: with FSDP the parameters become others
        self.parameters = trainable(task)
        self.optimiser = build_optimiser(self.parameters, config)
        self.mean = MeanWeights(self.parameters, config.ema) if config.ema > 0 else None
        self.means = Means()
        self.nonfinite = NonFinite(training.stop_on_nonfinite, training.steps)
        self.standing = Standing(
            task, self.parameters, self.optimiser, self.mean, self.means, self.nonfinite
        )
        self.mean_predictor = MeanPredictor(training.steps, config.warmup_steps)
        self.pace = Pace(training.batch_size)
        self.stop = StopRequest()
        self.log: Log | None = None

    @property
    def position(self) -> Position:
        return self.standing.position

    # The way through a run

    def train(self, feed: Feed) -> FitResult:
        self._resume()
        steps = self.training.steps
        if self.run.writes:
            self.log = Log(self.run.folder, self.position.step)
        if self.run.note and self.machine.is_first:
            self.reporter.say(self.run.note)
        self.run.progress(self.position.step, steps)
        try:
            with self.stop:
                self._close_step(None)
                batches = feed.batches(
                    self.position.step,
                    steps,
                    rank=self.machine.rank,
                    world=self.machine.world,
                    accumulation=self.training.accumulation,
                )
                with contextlib.closing(timed(batches, self.pace)) as steps_with_crops:
                    for step, micro_batches in steps_with_crops:
                        self._step(step, micro_batches)
                # A signal during the last validation.
                _, wish = self._agree(torch.zeros(1))
                if wish is not None:
                    self._interrupt(wish)
        finally:
            set_frozen(self.parameters, frozen=False)
            if self.log is not None:
                self.log.close()
        result = self._result()
        self.run.trained(result.as_json())
        return result

    def _step(self, step: int, batches: list[CropBatch]) -> None:
        set_frozen(self.parameters, frozen=step < self.config.freeze_encoder_steps)
        rate = self.config.lr * schedule(step, self.training.steps, self.config)
        set_rates(self.optimiser, rate)
        torch.manual_seed(
            int(philox(self.training.seed, step, self.machine.rank, "torch").random_raw() >> 1)
        )
        moment = self._moment(step, wants_pictures=False)

        losses, logs = self._gradients(batches, moment)
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in self.parameters.values() if p.grad is not None]
        )
        whole_norm = whole_tensor(norm.detach())
        is_finite, wish = self._agree(torch.stack([*losses, whole_norm]))
        if is_finite:
            self._update(norm)
            self.task.after_update(moment)
            self.means.add({**logs, "gradient_norm": whole_norm})
        else:
            self._skip(step, batches, losses)
        self.position.step, self.position.is_closed = step + 1, False
        self.nonfinite.note(is_finite=is_finite, step=step)
        if is_finite and (text := self.mean_predictor.note(logs, step + 1)):
            self._notice(text)
        self._report(rate)
        self._close_step(wish)

    def _gradients(
        self, batches: list[CropBatch], moment: Moment
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Adds up the gradients of a step; returns each loss and the means of what was logged."""
        self.optimiser.zero_grad(set_to_none=True)
        wants_pictures = self._wants_pictures(moment.step)
        losses: list[Tensor] = []
        logs = Means()
        for place, batch in enumerate(batches):
            is_first, is_last = place == 0, place == len(batches) - 1
            asked = self._moment(moment.step, wants_pictures=wants_pictures and is_first)
            outcome = self.stepper(
                batch.to(self.machine.device), asked, share=1 / len(batches), is_last=is_last
            )
            losses.append(outcome.loss)
            logs.add({**outcome.logs, "loss": outcome.loss})
            if asked.wants_pictures and outcome.pictures and self.on_pictures is not None:
                self.on_pictures(moment.step, _on_cpu(outcome.pictures))
        return losses, logs.values()

    def _agree(self, numbers: Tensor) -> tuple[bool, str | None]:
        """Whether all is finite in all processes, and why any of them wants to stop."""
        is_finite = bool(numbers.isfinite().all())
        reason = self.stop.reason
        bad, wish = self.machine.largest([float(not is_finite), float(reason is not None)])
        return not bad, (reason or "another process was asked to stop") if wish else None

    def _update(self, norm: Tensor) -> None:
        if self.config.clip is not None:
            learning = [p for p in self.parameters.values() if p.grad is not None]
            torch.nn.utils.clip_grads_with_norm_(learning, self.config.clip, norm)
        self.optimiser.step()
        if self.mean is not None:
            self.mean.update()

    def _skip(self, step: int, batches: list[CropBatch], losses: list[Tensor]) -> None:
        bad = [b for b, loss in zip(batches, losses, strict=True) if not loss.isfinite()]
        crops = [
            {"case": case, "crop": crop}
            for batch in bad or batches
            for case, crop in zip(batch.case_ids, batch.crop_ids.tolist(), strict=True)
        ]
        every = [crop for found in self.machine.gathered(crops) for crop in found]
        self._write("skipped", step + 1, {"crops": every})
        self.reporter.warn(
            f"step {step + 1:,} was skipped: loss or gradient is not finite; its crops are in "
            "`log.jsonl`"
        )

    def _moment(self, step: int, *, wants_pictures: bool) -> Moment:
        random = RandomStream(self.training.seed, step)
        return Moment(step, self.training.steps, random, wants_pictures)

    def _wants_pictures(self, step: int) -> bool:
        every = self.training.pictures_every
        if not (every and self.machine.is_first and self.on_pictures is not None):
            return False
        return step % every == 0 or step == self.training.steps - 1

    # What happens between steps

    def _report(self, rate: float) -> None:
        """The live line, and every `log_every` steps a line of the log."""
        step, steps = self.position.step, self.training.steps
        is_due = step % self.training.log_every == 0 or step == steps
        if is_due:
            values = mean_values(self._shared_totals())
            self.position.loss = finite(values.get("loss"))
            speed = self.pace.read()
            self._write("train", step, {**values, "lr": rate, **speed.as_json()})
        if self.machine.is_first and (is_due or self.pace.is_line_due()):
            speed = self.pace.read()
            shown = self.means.values().get("loss")
            line = progress_line(
                step,
                steps,
                loss=float("nan") if shown is None else float(shown),
                rate=rate,
                crops_per_second=speed.crops_per_second,
                data_share=speed.data_share,
                seconds_left=speed.seconds_a_step * (steps - step),
            )
            self.reporter.progress(step, steps, line)
        if is_due:
            self.means.clear()
            self.pace.clear()

    def _shared_totals(self) -> dict[str, tuple[float, float]]:
        totals = self.means.totals()
        names = sorted(totals)
        summed = self.machine.summed([number for name in names for number in totals[name]])
        return {name: (summed[2 * i], summed[2 * i + 1]) for i, name in enumerate(names)}

    def _close_step(self, wish: str | None) -> None:
        """Validates and writes a checkpoint where they are due; stops where that is wished.

        A run that is asked to stop leaves the validation to whoever continues it.
        """
        step, steps = self.position.step, self.training.steps
        if wish is None and not self.position.is_closed:
            with self.pace.paused():
                is_best = self._validate()
            self.position.is_closed = True
            on_grid = step > 0 and step % self.training.checkpoint_every == 0
            if on_grid or is_best or step == steps:
                self._checkpoint(is_best=is_best)
        if wish is not None:
            self._checkpoint(is_best=False)
            self._interrupt(wish)

    def _interrupt(self, wish: str) -> NoReturn:
        raise Interrupted(
            f"interrupted by {wish} after step {self.position.step:,} of {self.training.steps:,}",
            remedy="the same command continues from there",
            code="interrupted",
        )

    def _validate(self) -> bool:
        """Calls the validators that are due; whether this is the best step so far."""
        step, is_best = self.position.step, False
        for validator in self.validators:
            if not validator.is_due(step, self.training.steps):
                continue
            with self.stepper.shown(self.task, self.mean) as (task, mean):
                values = self.machine.first(partial(self._look, validator, task, mean))
            self.position.validation[validator.name] = {k: finite(v) for k, v in values.items()}
            self._write("validation", step, {"name": validator.name, **values})
            self.reporter.say(f"step {step:,}  {spoken(values, validator.shown)}")
            if validator.alarms is not None:
                for text in validator.alarms(values, self._moment(step, wants_pictures=False)):
                    self._notice(text)
            if validator.best is not None:
                key, direction = validator.best
                if is_better(values[key], self.position.best, direction):
                    self.position.best, self.position.best_step = values[key], step
                    is_best = True
        return is_best

    def _look(self, validator: Validator, task: Task, mean: MeanWeights | None) -> dict[str, float]:
        moment = self._moment(self.position.step, wants_pictures=False)
        with undisturbed(task, mean, self.training.seed), self.machine.autocast():
            return {k: float(v) for k, v in validator.function(task, moment).items()}

    def _notice(self, text: str) -> None:
        self._write("notice", self.position.step, {"text": text})
        self.reporter.warn(text)

    def _write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        if self.log is not None:
            self.log.write(kind, step, values)

    # Checkpoints

    def _checkpoint(self, *, is_best: bool) -> None:
        began = time.monotonic()
        with self.pace.paused():
            self.position.seconds += self.pace.take_seconds()
            # All take part where weights lie in parts.
            keeps, saved = self.machine.is_first, self.standing.saved(world=self.machine.world)
            weights = whole(self.standing.weights(), keeps=keeps)
            tensors = whole(saved.tensors, keeps=keeps)
            if self.machine.is_first:
                self.run.checkpoints.write(
                    self.position.step,
                    weights=weights,
                    header=self.header,
                    saved=Saved(tensors, saved.numbers),
                    # Where nothing chooses, the best is the last.
                    is_best=is_best or all(v.best is None for v in self.validators),
                )
                self.run.progress(self.position.step, self.training.steps)
            self.machine.barrier()
        took = time.monotonic() - began
        self.stop.slowest_checkpoint = max(self.stop.slowest_checkpoint, took)

    def _resume(self) -> None:
        """Puts everything back as the last checkpoint has it; nothing in a new run."""
        folder = self.run.checkpoints.find("last")
        if folder is None:
            return
        self.standing.restore(read_state(folder), self.machine.device)
        self.reporter.say(f"continuing at step {self.position.step:,} of {self.training.steps:,}")

    def _result(self) -> FitResult:
        last = self.run.checkpoints.find("last")
        assert last is not None
        state = whole(self.task.state_dict(), keeps=True)
        return self.standing.result(
            crops_per_second=self.pace.overall(),
            digest=weights_digest(state),
            checkpoint=last,
        )


def _on_cpu(pictures: Pictures) -> Pictures:
    return {name: array.detach().cpu() for name, array in pictures.items()}
