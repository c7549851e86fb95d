"""The one training loop. It knows tasks, feeds and a run folder, and no kind of task by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from mim3d.config.training import OptimConfig, TrainingConfig
from mim3d.data.batch import MicroBatch
from mim3d.foundation.errors import ConfigError, ProcessLost
from mim3d.foundation.reporting import PlainReporter, Reporter, Silent
from mim3d.objectives.base import Task
from mim3d.training import fabric
from mim3d.training.alarms import (
    Guessing,
    MeanPredictor,
    NonFinite,
    PatchMeans,
    SameAnswer,
    Standstill,
)
from mim3d.training.checkpoints import read_state, weights_digest
from mim3d.training.logs import Means
from mim3d.training.pace import timed
from mim3d.training.pauses import Pauses
from mim3d.training.run import Run
from mim3d.training.sharding import whole
from mim3d.training.standing import FitResult, Position, Standing
from mim3d.training.updates import OnPictures, Updates, moment_of
from mim3d.training.validation import Validator
from mim3d.training.waiting import WARM_UP_STEPS, stack


class Feed(Protocol):
    """What crops come from."""

    def batches(
        self, start: int, stop: int, *, rank: int = 0, world: int = 1, accumulation: int = 1
    ) -> Iterator[tuple[int, list[MicroBatch]]]:
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
    on_pictures: OnPictures | None = None,
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
        ProcessLost: another process of the training is gone or hangs.
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
    told = (reporter or PlainReporter()) if machine.is_first else Silent()
    loop = _Loop(task, optim, training, run, machine, validators, told, metadata or {}, on_pictures)
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


REMEDIES = {
    "optim.clip": "a norm above 0, or `--optim.clip null` not to clip",
    "optim.betas": "two numbers from 0 to below 1, such as `--optim.betas 0.9,0.95`",
    "training.threads": "1 or more, or `--training.threads null` for torch's choice",
}


def check_numbers(optim: OptimConfig, training: TrainingConfig) -> None:
    """Raises `ConfigError` for numbers with which nothing can be trained."""
    wrong = {
        "training.steps": training.steps < 1,
        "training.batch_size": training.batch_size < 1,
        "training.accumulation": training.accumulation < 1,
        "training.checkpoint_every": training.checkpoint_every < 1,
        "training.log_every": training.log_every < 1,
        "training.threads": training.threads is not None and training.threads < 1,
        "training.collective_timeout_seconds": not training.collective_timeout_seconds > 0,
        "optim.lr": optim.lr < 0,
        "optim.betas": not all(0 <= beta < 1 for beta in optim.betas),
        "optim.clip": optim.clip is not None and not optim.clip > 0,
        "optim.ema": not 0 <= optim.ema < 1,
        "optim.warmup_steps": optim.warmup_steps < 0,
        "optim.weight_decay": optim.weight_decay < 0,
        "optim.layer_decay": not 0 < optim.layer_decay <= 1,
    }
    for key, is_wrong in wrong.items():
        if is_wrong:
            section, name = key.split(".")
            value = getattr({"training": training, "optim": optim}[section], name)
            raise ConfigError(
                f"`{key}` is {value}, with which nothing trains",
                remedy=REMEDIES.get(key),
                code="range",
            )


class _Loop:
    """One call of `fit`, whose arguments it takes."""

    def __init__(
        self,
        task: Task,
        config: OptimConfig,
        training: TrainingConfig,
        run: Run,
        machine: fabric.Machine,
        validators: Sequence[Validator],
        reporter: Reporter,
        header: Mapping[str, str],
        on_pictures: OnPictures | None,
    ) -> None:
        self.task, self.config, self.training, self.run = task, config, training, run
        self.machine, self.reporter, self.on_pictures = machine, reporter, on_pictures
        self.updates = Updates(task, config, training, machine)
        self.means = Means()
        self.nonfinite = NonFinite(training.stop_on_nonfinite, training.steps)
        self.standing = Standing(
            task,
            self.updates.parameters,
            self.updates.optimiser,
            self.updates.mean,
            self.means,
            self.nonfinite,
        )
        self.levels = [
            alarm(training.steps, config.warmup_steps)
            for alarm in (MeanPredictor, PatchMeans, Guessing, SameAnswer)
        ]
        stepper = self.updates.stepper
        self.pauses = Pauses(
            self.standing, stepper, machine, run, training, validators, reporter, header
        )

    @property
    def position(self) -> Position:
        return self.standing.position

    def train(self, feed: Feed) -> FitResult:
        """From where the run stands to its end."""
        self._resume()
        pauses = self.pauses
        pauses.open()
        try:
            with pauses.stop:
                # What stands in the config alone is said in each session.
                self.standstill = Standstill(self.task, self.config, self.training.steps)
                for text in self.standstill.expected():
                    pauses.notice(text)
                pauses.close_step(None)
                self._all_steps(feed)
                # A signal during the last validation.
                _, wish = pauses.agree(torch.zeros(1))
                if wish is not None:
                    pauses.interrupt(wish)
        except (RuntimeError, ProcessLost) as error:
            lost = error if isinstance(error, ProcessLost) else self.machine.lost(error)
            if lost is None:
                raise
            pauses.tell_of(lost, stack(error))
            raise lost from error
        finally:
            self.updates.thaw()
            pauses.close()
        result = self._result()
        self.run.trained(result.as_json())
        return result

    def _all_steps(self, feed: Feed) -> None:
        batches = feed.batches(
            self.position.step,
            self.training.steps,
            rank=self.machine.rank,
            world=self.machine.world,
            accumulation=self.training.accumulation,
        )
        with contextlib.closing(timed(batches, self.pauses.pace)) as steps_with_crops:
            for made, (step, micro_batches) in enumerate(steps_with_crops):
                if made == WARM_UP_STEPS:
                    self.machine.hurry(self.training.collective_timeout_seconds)
                self._step(step, micro_batches)

    def _step(self, step: int, batches: list[MicroBatch]) -> None:
        rate = self.updates.begin(step)
        on_pictures = self.on_pictures if self._wants_pictures(step) else None
        losses, logs = self.updates.gradients(step, batches, on_pictures)
        norm, whole_norm = self.updates.norm()
        is_finite, wish = self.pauses.agree(torch.stack([*losses, whole_norm]))
        if is_finite:
            self.updates.apply(norm)
            self.task.after_update(moment_of(step, self.training))
            self.means.add({**logs, "gradient_norm": whole_norm})
        self.position.step, self.position.is_closed = step + 1, False
        if not is_finite:
            self._tell_of_skipped(batches, losses)
        self.nonfinite.note(is_finite=is_finite, step=step)
        if is_finite:
            self._ask_whether_it_learns(batches, logs)
        self.pauses.report(rate)
        self.pauses.close_step(wish)
        self.pauses.slowest.begin_step()

    def _wants_pictures(self, step: int) -> bool:
        every = self.training.pictures_every
        if not (every and self.machine.is_first):
            return False
        return step % every == 0 or step == self.training.steps - 1

    def _tell_of_skipped(self, batches: list[MicroBatch], losses: list[Tensor]) -> None:
        bad = [b for b, loss in zip(batches, losses, strict=True) if not loss.isfinite()]
        crops = [
            {"case": case, "crop": crop}
            for batch in bad or batches
            for case, crop in zip(batch.case_ids, batch.crop_ids.tolist(), strict=True)
        ]
        every = [crop for found in self.machine.gathered(crops) for crop in found]
        self.pauses.write("skipped", {"crops": every})
        self.reporter.warn(
            f"step {self.position.step:,} was skipped: loss or gradient is not finite; its crops "
            "are in `log.jsonl`"
        )

    def _ask_whether_it_learns(self, batches: list[MicroBatch], logs: dict[str, Tensor]) -> None:
        step = self.position.step
        for alarm in self.levels:
            if text := alarm.note(logs, step):
                self.pauses.notice(text)
        for text in self.standstill.note(batches, step):
            self.pauses.notice(text)

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
            crops_per_second=self.pauses.pace.overall(),
            digest=weights_digest(state),
            checkpoint=last,
        )
