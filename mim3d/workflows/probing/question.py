"""What a comparison asks: of whom something is read, who judges, and what answers are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mim3d.config.probe import ProbeConfig
from mim3d.data.asked_target import AskedTarget
from mim3d.data.splits import training_cases, validation_cases
from mim3d.data.store import Store
from mim3d.data.target_table import asked_names, target_table
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.workflows.probing.judges import ClassJudge, DiceJudge, Judge, NumberJudge
from mim3d.workflows.probing.trained import Task
from mim3d.workflows.probing.volumes import TargetStore


@dataclass(frozen=True, eq=False)
class Question:
    """What is read of whom.

    Attributes:
        task: label maps, classes or numbers.
        store: where the answers are.
        fit: cases that readers are fitted to.
        judging: cases of other subjects.
        judge: what answers are worth.
        target: what is read of whole volumes; None of label maps.
    """

    task: Task
    store: Store
    fit: tuple[str, ...]
    judging: tuple[str, ...]
    judge: Judge
    target: AskedTarget | None = None

    def people(self, cases: Sequence[str]) -> int:
        """How many subjects the cases are of."""
        return len({self.store.subject(case) for case in cases})


def task_for(config: ProbeConfig, store: Store) -> Task:
    """What is read of a store.

    Raises:
        UserError: it has neither labels nor targets.
    """
    if config.task != "auto":
        return config.task
    if store.classes is not None and config.classification.target is None:
        return "segmentation"
    if store.classes is None and not store.target_names:
        raise UserError(
            f"store `{store.path}` has neither labels nor targets, so nothing can be read",
            remedy="prepare a source that has labels for some of its cases",
            code="no-labels",
        )
    name = asked_names(config.classification.target, store)[0]
    return "classification" if store.target_classes(name) else "regression"


def question_of(config: ProbeConfig, task: Task, store: Store) -> Question:
    """Who is read, and who judges.

    Args:
        config: resolved.
        task: what is read.
        store: where the answers are.

    Raises:
        ConfigError: several targets.
        UserError: the store has nothing to read, or nobody judges.
    """
    is_maps = task == "segmentation"
    if is_maps and store.classes is None:
        raise UserError(
            f"store `{store.path}` has no label maps",
            remedy="`--task classification` reads targets of whole volumes",
            code="no-labels",
        )
    names = () if is_maps else asked_names(config.classification.target, store)
    if len(names) > 1:
        raise ConfigError(
            f"a comparison is of one target, and {len(names)} are named",
            remedy=f"add `--classification.target {names[0]}`",
            code="target",
        )
    fit = training_cases(store, config.data, config.training.seed, names)
    judging = validation_cases(store, config.data, names)
    if not judging:
        raise UserError(
            "nobody judges: the validation list has no case with labels",
            where=str(store.path),
            remedy="`--probe.judge inner` judges by a fifth of the training subjects",
            code="empty-cohort",
        )
    subjects = [store.subject(case) for case in judging]
    if is_maps:
        judge: Judge = DiceJudge(subjects, config.evaluation)
        return Question(task, store, fit, judging, judge)
    is_number = task == "regression"
    target = target_table(config.classification, store, fit, is_regression=is_number)[0]
    truth = TargetStore(store, target, fit, judging).truth(judging)
    if is_number:
        judge = NumberJudge(truth.astype(np.float64), subjects, config.evaluation)
    else:
        judge = ClassJudge(truth.astype(np.int64), subjects, config.evaluation)
    return Question(task, store, fit, judging, judge, target)
