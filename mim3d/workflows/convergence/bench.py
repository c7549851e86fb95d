"""One run of a benchmark at a time: what it needs is made first, what is done is not repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mim3d.config.training import OptimConfig, TrainingConfig
from mim3d.config.verbs import ConvergenceConfig, PretrainConfig
from mim3d.evaluation.convergence import Pretraining, Record
from mim3d.foundation.atomic import write_json
from mim3d.foundation.documents import read_object
from mim3d.foundation.errors import (
    ConfigError,
    Interrupted,
    ResourceError,
    StoppedError,
    UserError,
)
from mim3d.foundation.lock import IN_USE, TAKEN_OVER
from mim3d.foundation.reporting import NamedReporter, Reporter
from mim3d.training.fabric import choose_device, choose_precision
from mim3d.training.run import VERSIONS
from mim3d.workflows.convergence.arms import Arm
from mim3d.workflows.convergence.begun import FINETUNE, PRETRAIN, PRETRAINED, RECORDS, TUNE
from mim3d.workflows.convergence.health import (
    embedding_health,
    last_levels,
    tells_crops_apart,
    train_lines,
    why_collapsed,
    why_hopeless,
)
from mim3d.workflows.convergence.plan import (
    Pace,
    Plan,
    Rate,
    naming,
    rate_key,
    read_plan,
    settle_rate,
)
from mim3d.workflows.convergence.trials import (
    Before,
    Trial,
    at_ends,
    before_of,
    finetune_config,
    paces,
    pretrain_config,
    subjects_drawn,
    tuning_config,
    tuning_trials,
)
from mim3d.workflows.finetune import finetune
from mim3d.workflows.pretrain import pretrain
from mim3d.workflows.result import Result
from mim3d.workflows.tasks.curve import read_curve
from mim3d.workflows.throughput.machine import processor_name

FAILED = "failed: "
"""A run that ended so is tried again by the next command: what was wrong may have been mended. One
that stopped itself, or that is dead by its numbers, is not."""


class Busy(Exception):
    """Another process works on a run that is needed."""


class Bench:
    """The runs of a benchmark's folder.

    Args:
        arms: by name.
        settings: the config's section `convergence`.
        plan: what was decided.
        out: the folder.
        reporter: where progress goes.
    """

    def __init__(
        self,
        arms: Mapping[str, Arm],
        settings: ConvergenceConfig,
        plan: Plan,
        out: Path,
        reporter: Reporter,
    ) -> None:
        self.arms = arms
        self.settings = settings
        self.plan = plan
        self.out = out
        self.reporter = reporter
        self._rates = dict(plan.rates)
        self._failed: dict[str, Pretraining] = {}

    def record_path(self, trial: Trial) -> Path:
        """Where the record of a fine-tuning lies."""
        return self.out / RECORDS / f"{trial.name}.json"

    def record_of(self, trial: Trial) -> Record | None:
        """The record of a fine-tuning, or None."""
        path = self.record_path(trial)
        if not path.is_file():
            return None
        return Record.from_json(read_object(path))

    def finished(self, trial: Trial) -> Record | None:
        """The record of a fine-tuning that need not be run again."""
        record = self.record_of(trial)
        return None if record is None or _may_be_mended(record) else record

    def is_pretrained(self, before: Before) -> bool:
        """Whether a pre-training is done."""
        return self._pretrained_path(before).is_file()

    def _pretrained_path(self, before: Before) -> Path:
        return self.out / PRETRAINED / f"{before.name}.json"

    def make(self, trial: Trial) -> Record:
        """Runs a fine-tuning with all that it needs, and writes its record.

        Raises:
            Busy: another process holds a run that is needed.
            Interrupted: a signal came.
            ConfigError: something does not fit together; the arm is named.
        """
        arm = self.arms[trial.arm]
        with naming(arm):
            record = self._made(trial, arm)
        write_json(self.record_path(trial), record.as_json())
        return record

    def _made(self, trial: Trial, arm: Arm) -> Record:
        plan = self.plan.arms[arm.name]
        before = before_of(trial, arm, self.settings)
        paid = None if before is None else self.pretraining(before)
        if paid is not None and paid.dead is not None:
            return self._record(trial, arm, paid, dead=f"pre-training `{paid.run}`: {paid.dead}")
        pace = self.pace(arm, trial.fold)
        config = finetune_config(arm, plan, trial, init=self._init(before), pace=pace)
        folder = self.out / FINETUNE / trial.name
        ended, dead = self._attempt(
            lambda reporter: finetune(config, out=str(folder), reporter=reporter), trial.name
        )
        return self._record(trial, arm, paid, dead=dead, ended=ended, optim=config.optim)

    def _record(
        self,
        trial: Trial,
        arm: Arm,
        paid: Pretraining | None,
        *,
        dead: str | None,
        ended: Mapping[str, Any] | None = None,
        optim: OptimConfig | None = None,
    ) -> Record:
        """The record of a fine-tuning that ended, was given up, or was never begun."""
        folder = self.out / FINETUNE / trial.name
        optim = optim or arm.finetune.optim
        curve = read_curve(folder)
        subjects: dict[str, str] = curve.get("subjects", {})
        looks = {int(step): values for step, values in curve.get("dice", {}).items()}
        steps, cases = tuple(sorted(looks)), tuple(sorted(subjects))
        dice = tuple(tuple(looks[step][case] for case in cases) for step in steps)
        if dead is None:
            dead = why_hopeless(dice[-1])
        zeroed: dict[str, float] = curve.get("zeroed", {})
        data = replace(arm.finetune.data, labels=trial.labels, fold=trial.fold)
        numbers = (ended or {}).get("validation", {}).get("validation", {})
        cost = self.plan.arms[arm.name].finetune
        done = steps[-1] if steps else 0
        return Record(
            arm=arm.name,
            labels=str(trial.labels),
            subjects=subjects_drawn(data, trial.replicate),
            replicate=trial.replicate,
            fold=trial.fold,
            steps=steps,
            cases=cases,
            case_subjects=tuple(subjects[case] for case in cases),
            dice=dice,
            zeroed=numbers.get("dice_encoder_zeroed"),
            seconds=training_seconds(folder),
            flop=(cost.steps if ended is not None else done) * cost.flop_a_step,
            lr=optim.lr,
            warmup_steps=optim.warmup_steps,
            kind=arm.kind,
            pretraining=paid,
            dead=dead,
            against=arm.against,
            zeroed_cases=tuple(zeroed[case] for case in cases) if zeroed else None,
            machine=machine_name(arm.finetune.training) if steps else None,
            made_by=made_by(folder),
        )

    # What a fine-tuning needs

    def _init(self, before: Before | None) -> Path | None:
        return None if before is None else self.out / PRETRAIN / before.name

    def pretraining(self, before: Before) -> Pretraining:
        """A pre-training, made where it is missing, with what it cost and whether it is alive.

        Raises:
            Busy: another process is at it.
        """
        path = self._pretrained_path(before)
        if path.is_file():
            return Pretraining.from_json(read_object(path))
        if before.name in self._failed:
            return self._failed[before.name]
        arm = self.arms[before.arm]
        config = pretrain_config(arm, self.plan.arms[arm.name], before, self.settings)
        with naming(arm):
            made = self._pretrained(config, before)
        if made.dead is not None and made.dead.startswith(FAILED):
            self._failed[before.name] = made
        else:
            write_json(path, made.as_json())
        return made

    def _pretrained(self, config: PretrainConfig, before: Before) -> Pretraining:
        folder = self.out / PRETRAIN / before.name
        ended, dead = self._attempt(
            lambda reporter: pretrain(config, out=str(folder), reporter=reporter), before.name
        )
        facts: dict[str, float] = {}
        if ended is not None:
            levels, health = last_levels(folder), embedding_health(config, folder)
            facts = last_numbers(ended) | levels | health
            apart = tells_crops_apart(config.objective, levels)
            dead = why_collapsed(health, tells_apart=apart)
        cost = self.plan.arms[before.arm].pretrain
        assert cost is not None
        return Pretraining(
            run=before.name,
            method=config.objective.name,
            seed=before.seed,
            steps=cost.steps,
            flop=cost.flop,
            seconds=training_seconds(folder),
            dead=dead,
            facts=facts,
            machine=machine_name(config.training),
            made_by=made_by(folder),
        )

    def pace(self, arm: Arm, fold: int | None) -> Pace | None:
        """The learning rate of an arm's fine-tunings that a fold judges; None takes the config's.

        Chosen among `rates`, and `warmups` where there are any, by the last checkpoint's Dice on a
        fifth of the training list, which is that of the fold: nobody who judges has part in the
        choice. It is made with the first label fraction and the fold's first replicate whose
        pre-training is alive; of equal ones the first is taken.

        Raises:
            Busy: another process is at one of the runs that decide.
            ConfigError: one of them failed in a way that may be mended.
        """
        if not self.settings.rates:
            return None
        key = rate_key(arm.name, fold)
        if key not in self._rates:
            trial = self._tuning_trial(arm, fold)
            tried = paces(self.settings)
            dice = {str(pace): self._tuned(arm, trial, pace) for pace in tried}
            best = max(tried, key=lambda pace: dice[str(pace)])
            rate = Rate(best.lr, dice, best.warmup_steps)
            self._rates[key] = settle_rate(self.out, arm.name, fold, rate, self.reporter)
            settled = self._rates[key].pace
            self.reporter.say(f"{key}: learning rate {settled}")
            for end in at_ends({key: settled}, self.settings):
                self.reporter.say(end)
        return self._rates[key].pace

    def chosen(self) -> dict[str, Pace]:
        """What was chosen so far, by arm, or arm and fold."""
        return {key: rate.pace for key, rate in read_plan(self.out).rates.items()}

    def _tuning_trial(self, arm: Arm, fold: int | None) -> Trial:
        """The first by which a rate can be chosen; the fine-tuning that asks is one at least."""
        for trial in tuning_trials(arm, fold, self.settings):
            before = before_of(trial, arm, self.settings)
            dead = None if before is None else self.pretraining(before).dead
            if dead is None:
                return trial
            if dead.startswith(FAILED):
                raise _untuned(f"no learning rate could be tried: {dead.removeprefix(FAILED)}")
        raise AssertionError(f"`{arm.name}` has no living pre-training")

    def _tuned(self, arm: Arm, trial: Trial, pace: Pace) -> float:
        """Dice of a pace on the inner fold; -1 where the run was given up."""
        init, fold = self._init(before_of(trial, arm, self.settings)), trial.fold
        config = tuning_config(arm, self.plan.arms[arm.name], trial, init=init, pace=pace)
        name = f"{arm.name}-{pace.name}" + ("" if fold is None else f"-fold{fold}")
        folder = self.out / TUNE / name
        ended, dead = self._attempt(
            lambda reporter: finetune(config, out=str(folder), reporter=reporter), name
        )
        if dead is not None and dead.startswith(FAILED):
            raise _untuned(f"learning rate {pace} could not be tried: {dead.removeprefix(FAILED)}")
        if ended is None:
            return -1.0
        return float(ended["validation"]["validation"]["dice"])

    def _attempt(
        self, run: Callable[[Reporter], Result], name: str
    ) -> tuple[dict[str, Any] | None, str | None]:
        """The facts of a run that came to its end, or why it did not.

        What another command must mend, and a signal, go through.
        """
        try:
            return dict(run(NamedReporter(self.reporter, name)).facts), None
        except (Interrupted, ResourceError, ConfigError):
            raise
        except StoppedError as error:
            return None, f"stopped: {error}"
        except UserError as error:
            if error.code in (IN_USE, TAKEN_OVER):
                raise Busy(name) from error
            self.reporter.warn(f"{name} failed: {error}")
            return None, f"{FAILED}{error}"


def machine_name(training: TrainingConfig) -> str:
    """What a run of this process runs on, in one line: `AMD EPYC 9B14, 1 thread, bf16`."""
    device = choose_device(training.device)
    precision = choose_precision(training.precision, device)
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {precision}"
    count = training.threads or torch.get_num_threads()
    return f"{processor_name()}, {count} thread{'' if count == 1 else 's'}, {precision}"


def made_by(folder: Path) -> str | None:
    """The versions that made a run: `mim3d 0.1.0 at 1a2b then 3c4d, torch 2.13.0`; None: no run."""
    if not (folder / VERSIONS).is_file():
        return None
    found = read_object(folder / VERSIONS)
    return f"mim3d {found['mim3d']} at {found['commit']}, torch {found['torch']}"


def training_seconds(folder: Path) -> float:
    """Seconds of a run's steps, waiting for crops included, without validation and checkpoints.

    From `log.jsonl`, which an interruption leaves whole.
    """
    total, reached = 0.0, 0
    for line in train_lines(folder):
        total += (line["step"] - reached) * line["seconds_a_step"]
        reached = line["step"]
    return total


def last_numbers(ended: Mapping[str, Any]) -> dict[str, float]:
    """The loss that a pre-training last logged, and the last numbers of all that looked at it."""
    looks: Iterator[Mapping[str, Any]] = iter(ended.get("validation", {}).values())
    found = {name: value for look in looks for name, value in look.items()}
    found["loss"] = ended.get("loss")
    return {name: float(value) for name, value in found.items() if value is not None}


def _untuned(what: str) -> ConfigError:
    return ConfigError(
        what,
        remedy="mend that and type the same command again; a benchmark without "
        "`convergence.rates` needs another --out",
        code="tuning",
    )


def _may_be_mended(record: Record) -> bool:
    before = record.pretraining
    reasons = (record.dead, None if before is None else before.dead)
    return any(reason is not None and reason.startswith(FAILED) for reason in reasons)
