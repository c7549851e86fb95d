"""Which runs a benchmark consists of, in which order, under which names and with which configs."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mim3d.config.data import DataConfig
from mim3d.config.verbs import ConvergenceConfig, FinetuneConfig, PretrainConfig
from mim3d.data.splits import FOLDS, training_cases
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.shard import Shard
from mim3d.workflows.assembly import store_of
from mim3d.workflows.convergence.arms import Arm
from mim3d.workflows.convergence.begun import TUNE, Begun, begun
from mim3d.workflows.convergence.plan import ArmPlan, Pace, rate_key
from mim3d.workflows.initial import SCRATCH

INNER_FOLD = 0
"""The fifth of the training list by which rates are chosen."""
FEWEST: Mapping[str, int] = {"replicates": 1, "pretraining_seeds": 1, "points": 2}
ENTRIES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "labels": (
        lambda labels: 0 < labels <= 1 if isinstance(labels, float) else labels >= 1,
        "fractions above 0 to 1.0, or numbers of subjects from 1",
    ),
    "folds": (lambda fold: 0 <= fold < FOLDS, f"0 to {FOLDS - 1}"),
    "rates": (lambda rate: 0 < rate < math.inf, "numbers above 0"),
    "warmups": (lambda steps: steps >= 0, "0 or more steps"),
}
"""Lists of `convergence`: whether an entry makes sense, and what would."""
EXAMPLES: Mapping[str, str] = {
    "replicates": "3", "pretraining_seeds": "3", "points": "14",
    "labels": "0.1,0.5`, or whole numbers of subjects: `--convergence.labels 5,20",
    "folds": "0,1,2,3,4", "rates": "0.0003,0.001", "warmups": "0,50",
}  # fmt: skip
"""What may be typed in place of a setting out of range."""


@dataclass(frozen=True)
class Before:
    """A pre-training.

    Args:
        arm: whose it is.
        seed: names crops, masks and initialisation.
        fold: whose volumes it does not see; None leaves out the validation list.
    """

    arm: str
    seed: int
    fold: int | None

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.arm}-seed{self.seed}" + ("" if self.fold is None else f"-fold{self.fold}")


@dataclass(frozen=True)
class Trial:
    """A fine-tuning.

    Args:
        arm: row of the tables.
        labels: labelled subjects, as a fraction or a number.
        replicate: names the draw of subjects, the initialisation and the order of crops.
        fold: who judges; None is the validation list.
    """

    arm: str
    labels: int | float
    replicate: int
    fold: int | None

    @property
    def name(self) -> str:
        """Of its folder and its record."""
        return f"{self.arm}-labels{self.labels}-{self.replicate}"


def all_trials(arms: Sequence[Arm], settings: ConvergenceConfig) -> tuple[Trial, ...]:
    """Every fine-tuning: label fractions as listed, in each all replicates, in each all arms.

    So what is done at any time is as complete a table as there can be.

    Raises:
        ConfigError: a setting out of its range, or a value twice.
    """
    _check_ranges(settings)
    return tuple(
        Trial(arm.name, labels, replicate, fold_of_replicate(settings, replicate))
        for labels in settings.labels
        for replicate in range(settings.replicates)
        for arm in arms
    )


def _check_ranges(settings: ConvergenceConfig) -> None:
    """Refuses what an arm would refuse later, under a name that nobody typed."""
    for key, fewest in FEWEST.items():
        if getattr(settings, key) < fewest:
            raise _out_of_range(key, f"is {getattr(settings, key)}, expected {fewest} or more")
    if settings.warmups and not settings.rates:
        raise ConfigError(
            "`convergence.warmups` are tried with learning rates, and `convergence.rates` has none",
            remedy="list the rates too, one at least",
            code="range",
        )
    for key, (is_sound, expected) in ENTRIES.items():
        values = getattr(settings, key)
        listed = [str(value) for value in values]  # 1 subject, 1.0 of them
        if len(set(listed)) < len(listed) or (key == "labels" and not listed):
            least = " and at least one" if key == "labels" else ""
            raise _out_of_range(key, f"must list different values{least}")
        for value in values:
            if not is_sound(value):
                raise _out_of_range(key, f"has {value}, expected {expected}")


def _out_of_range(key: str, what: str) -> ConfigError:
    return ConfigError(
        f"`convergence.{key}` {what}",
        remedy=f"for example `--convergence.{key} {EXAMPLES[key]}`",
        code="range",
    )


def shard_of(trials: Sequence[Trial], shard: str | None) -> tuple[Trial, ...]:
    """The share of one of several commands.

    Raises:
        ConfigError: the shard is not `i/n` with i from 0 to n - 1.
    """
    if shard is None:
        return tuple(trials)
    return Shard.parse(shard, "convergence.shard").share(trials)


def fold_of_replicate(settings: ConvergenceConfig, replicate: int) -> int | None:
    """Who judges a replicate; None is the validation list."""
    return settings.folds[replicate % len(settings.folds)] if settings.folds else None


def before_of(trial: Trial, arm: Arm, settings: ConvergenceConfig) -> Before | None:
    """The pre-training that a fine-tuning starts from; None from scratch."""
    if arm.before is None:
        return None
    fold = trial.fold if settings.pretrain_per_fold else None
    return Before(arm.before, trial.replicate % settings.pretraining_seeds, fold)


def tuning_trials(arm: Arm, fold: int | None, settings: ConvergenceConfig) -> tuple[Trial, ...]:
    """Whose training list and pre-training a rate may be chosen with: the fold's replicates.

    The first one whose pre-training is alive is taken: a dead one would choose nothing.
    """
    return tuple(
        Trial(arm.name, settings.labels[0], replicate, fold)
        for replicate in range(settings.replicates)
        if fold_of_replicate(settings, replicate) == fold
    )


def paces(settings: ConvergenceConfig) -> tuple[Pace, ...]:
    """All that a benchmark chooses from; none where it chooses nothing."""
    warmups: tuple[int | None, ...] = settings.warmups or (None,)
    return tuple(Pace(lr, warmup) for lr in settings.rates for warmup in warmups)


def at_ends(chosen: Mapping[str, Pace], settings: ConvergenceConfig) -> tuple[str, ...]:
    """Who chose the last of what was listed, where a further one may have been better.

    Args:
        chosen: by `rate_key`.
        settings: the section `convergence`.

    Returns:
        A sentence each; none for a list of one, which leaves no choice.
    """
    ends: list[tuple[str, str, float, str]] = []
    if len(settings.rates) > 1:
        ends.append(("largest", "rates", max(settings.rates), "larger"))
        ends.append(("smallest", "rates", min(settings.rates), "smaller"))
    if len(settings.warmups) > 1:
        ends.append(("longest", "warmups", max(settings.warmups), "longer"))
    said = []
    for extreme, key, value, further in ends:
        names = [
            f"`{name}`"
            for name, pace in chosen.items()
            if value == (pace.lr if key == "rates" else pace.warmup_steps)
        ]
        if names:
            said.append(
                f"{', '.join(names)} chose the {extreme} of `convergence.{key}` ({value:g}): a "
                f"{further} one may suit {'it' if len(names) == 1 else 'them'} better"
            )
    return tuple(said)


def sees_judges(settings: ConvergenceConfig) -> bool:
    """Whether pre-trainings have the volumes of subjects that judge a fold, never their labels."""
    return bool(settings.folds) and not settings.pretrain_per_fold


def pretrain_config(
    arm: Arm, plan: ArmPlan, before: Before, settings: ConvergenceConfig
) -> PretrainConfig:
    """The config of a pre-training; without labels for its probes where they would be a judge's."""
    assert arm.pretrain is not None
    assert plan.pretrain is not None
    probes = arm.pretrain.probes
    return replace(
        arm.pretrain,
        probes=replace(probes, subjects=0) if sees_judges(settings) else probes,
        data=replace(arm.pretrain.data, fold=before.fold),
        training=replace(arm.pretrain.training, steps=plan.pretrain.steps, seed=before.seed),
    )


def finetune_config(
    arm: Arm, plan: ArmPlan, trial: Trial, *, init: Path | None, pace: Pace | None
) -> FinetuneConfig:
    """The config of a fine-tuning.

    Args:
        arm: its arm.
        plan: what was decided for it.
        trial: which.
        init: folder of the pre-training; None takes what the arm says, mostly scratch.
        pace: that was chosen; None takes the config's.
    """
    config = arm.finetune
    return replace(
        config,
        init=(config.init or SCRATCH) if init is None else str(init),
        data=replace(config.data, labels=trial.labels, fold=trial.fold),
        optim=config.optim if pace is None else pace.over(config.optim),
        training=replace(
            config.training,
            steps=plan.finetune.steps,
            seed=trial.replicate,
            validate_every=0,
            validate_at=plan.grid,
        ),
    )


def check_starts(
    out: Path, arms: Sequence[Arm], settings: ConvergenceConfig, rates: Container[str]
) -> None:
    """Refuses a number of pre-trainings by which a run would have begun from another one.

    Args:
        out: the benchmark's folder.
        arms: of the benchmark.
        settings: its section `convergence`.
        rates: keys of those that were chosen; the runs behind them are over.

    Raises:
        ConfigError: the runs are named.
    """
    differing = [
        f"`{run.name}` (from `{run.before}`, now `{starts[0].name}`)"
        for arm in arms
        for run in begun(out, arm.name)
        if run.seed is not None
        and (starts := _starts_now(run, arm, settings, rates))
        and run.seed not in [before.seed for before in starts]
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ConfigError(
            f"`convergence.pretraining_seeds` {settings.pretraining_seeds} gives runs that are "
            f"there other pre-trainings: {', '.join(differing[:3])}{more}",
            remedy="take the number they were made with, or choose another --out",
            code="config-differs",
        )


def _starts_now(
    run: Begun, arm: Arm, settings: ConvergenceConfig, rates: Container[str]
) -> tuple[Before, ...]:
    """The pre-trainings that a run could begin from today; none where it does not matter."""
    trials: tuple[Trial, ...] = ()
    if run.replicate is not None:
        fold = fold_of_replicate(settings, run.replicate)
        trials = (Trial(arm.name, 0, run.replicate, fold),)
    elif run.sort == TUNE and rate_key(arm.name, run.fold) not in rates:
        trials = tuning_trials(arm, run.fold, settings)
    starts = (before_of(trial, arm, settings) for trial in trials)
    return tuple(before for before in starts if before is not None)


def subjects_drawn(data: DataConfig, replicate: int) -> int:
    """How many labelled subjects a fine-tuning trains on."""
    store = store_of(data)
    return len({store.subject(case) for case in training_cases(store, data, replicate)})


def tuning_config(
    arm: Arm, plan: ArmPlan, trial: Trial, *, init: Path | None, pace: Pace
) -> FinetuneConfig:
    """A fine-tuning by which a rate is chosen: the validation list is not looked at."""
    config = finetune_config(arm, plan, trial, init=init, pace=pace)
    return replace(
        config,
        data=replace(config.data, inner_fold=INNER_FOLD),
        training=replace(config.training, validate_at=()),
    )
