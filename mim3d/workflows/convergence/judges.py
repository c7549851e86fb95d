"""Who judges, and that nobody among them has taught: refused before the first run, not after it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mim3d.config.data import DataConfig
from mim3d.config.verbs import ConvergenceConfig
from mim3d.data.splits import EMPTY_FOLD, pretraining_cases, validation_cases
from mim3d.data.store import Store
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.workflows.assembly import store_of
from mim3d.workflows.convergence.arms import Arm
from mim3d.workflows.convergence.plan import naming
from mim3d.workflows.convergence.trials import (
    INNER_FOLD,
    Before,
    Trial,
    before_of,
    sees_judges,
    subjects_drawn,
)
from mim3d.workflows.initial import SCRATCH
from mim3d.workflows.run_record import load_preparation
from mim3d.workflows.seen_cases import seen_before, told_beside_images


def check_draws(
    trials: Sequence[Trial], arms: Mapping[str, Arm], settings: ConvergenceConfig
) -> None:
    """Refuses before the first run what the last one would refuse.

    Raises:
        UserError: fewer labelled subjects than a trial asks for, or nobody to judge it.
    """
    for trial in trials:
        config = arms[trial.arm].finetune
        if config.data.store is None:
            raise ConfigError(
                "no store is named",
                remedy="`mim3d prepare SOURCE --out STORE` makes one; then add "
                "`--convergence.store STORE`",
                code="no-store",
            )
        asked = [replace(config.data, labels=trial.labels, fold=trial.fold)]
        if settings.rates and trial.labels == settings.labels[0]:
            asked.append(replace(asked[0], inner_fold=INNER_FOLD))
        for data in asked:
            with naming(arms[trial.arm]), _folds_named(config.data, settings):
                there = subjects_drawn(replace(data, labels=None), trial.replicate)
                if not validation_cases(store_of(data), data):
                    raise UserError(
                        "nobody judges: the store has no validation case with labels",
                        where=data.store,
                        remedy="set `convergence.folds`, for example `[0, 1, 2, 3, 4]`",
                        code="no-validation",
                    )
            if isinstance(trial.labels, int) and trial.labels > there:
                raise _too_many_labels(trial.labels, there, data)


def _too_many_labels(labels: int, there: int, data: DataConfig) -> ConfigError:
    """Of `convergence.labels`; an arm that has them by it is not to blame."""
    beside = "" if data.fold is None else f" beside fold {data.fold}"
    what = f"{there} subjects with labels are there to train on{beside}"
    remedy = f"numbers from 1 to {there}"
    if data.inner_fold is not None:
        whole = subjects_drawn(replace(data, labels=None, inner_fold=None), 0)
        what += f": a fifth of the {whole} chooses among `convergence.rates`"
        remedy += " for the first"
    return ConfigError(
        f"`convergence.labels` has {labels}, and {what}",
        where=f"`{data.store}`",
        remedy=f"{remedy}, or fractions such as 0.1",
        code="range",
    )


@contextlib.contextmanager
def _folds_named(data: DataConfig, settings: ConvergenceConfig) -> Iterator[None]:
    """Where a fold of the benchmark is empty in this block, the error has the line that works."""
    try:
        yield
    except UserError as error:
        if error.code != EMPTY_FOLD:
            raise
        filled = [fold for fold in settings.folds if _judges(replace(data, fold=fold))]
        if filled and len(filled) < len(settings.folds):
            rounds = max(1, settings.replicates // len(settings.folds))
            error.remedy = (
                f"take those that have subjects: `--convergence.folds "
                f"{','.join(map(str, filled))} --convergence.replicates {rounds * len(filled)}`"
            )
        raise


def _judges(data: DataConfig) -> bool:
    """Whether a fold has a subject."""
    try:
        return bool(validation_cases(store_of(data), data))
    except UserError as error:
        if error.code == EMPTY_FOLD:
            return False
        raise


def check_seen(
    trials: Sequence[Trial], arms: Mapping[str, Arm], settings: ConvergenceConfig
) -> tuple[str, ...]:
    """Refuses arms that begin with more than the images of who judges them.

    Args:
        trials: of the benchmark.
        arms: by name.
        settings: the section `convergence`.

    Returns:
        What of this is allowed and must be told, one sentence each.

    Raises:
        ConfigError: a pre-training of the benchmark is told of the judges of a fold more than
            their images, or has their images from another store; a run that an arm starts from
            learned from their labels.
    """
    told: list[str] = []
    for trial in {(trial.arm, trial.fold): trial for trial in trials}.values():
        arm = arms[trial.arm]
        before = before_of(trial, arm, settings)
        data = replace(arm.finetune.data, fold=trial.fold)
        store = store_of(data)
        judging = validation_cases(store, data)
        with naming(arm if arm.before is None else arms[arm.before]):
            if before is not None:
                _check_pretraining(arms[before.arm], before, settings, store, judging)
            elif arm.finetune.init not in (None, SCRATCH):
                told += _told_by_run(arm, store, judging)
    return tuple(dict.fromkeys(told))


def _told_by_run(arm: Arm, store: Store, judging: Sequence[str]) -> list[str]:
    """What must be said of the run that an arm starts from."""
    run = str(arm.finetune.init)
    notes = seen_before(run, load_preparation(run), store, judging)
    for note in notes:
        if note.flatters:
            raise _seen(
                note.text,
                "start from a run that learned nothing of those cases, or judge on others",
            )
    return [f"`{arm.name}`: {note.text}" for note in notes]


def _check_pretraining(
    arm: Arm, before: Before, settings: ConvergenceConfig, store: Store, judging: Sequence[str]
) -> None:
    """No pre-training is told of who judges; their images come from the benchmark's store alone."""
    assert arm.pretrain is not None
    beside = told_beside_images(arm.pretrain.objective)
    if beside is not None and sees_judges(settings):
        raise _seen(
            f"pre-training would be told of subjects that judge a fold: {beside}",
            "add `pretrain_per_fold: true` below `convergence:`, which leaves them out",
        )
    data = replace(arm.pretrain.data, fold=before.fold)
    other = store_of(data, several=True)
    used = [Path(one).resolve() for one in (data.store, *data.stores) if one is not None]
    if sees_judges(settings) and store.path.resolve() in used:
        return  # as the report says
    keys = {store.source_hash(case) for case in judging}
    seen = [
        case
        for case in pretraining_cases(other, data, before.seed)
        if other.source_hash(case) in keys
    ]
    if seen:
        raise _seen(
            f"pre-training would see {len(seen)} of {len(judging)} cases that judge, in "
            f"`{other.path}` under the names {', '.join(f'`{case}`' for case in seen[:3])}",
            "prepare that store without them, or with the same lists",
        )


def _seen(what: str, remedy: str) -> ConfigError:
    return ConfigError(what, remedy=remedy, code="judges-seen")
