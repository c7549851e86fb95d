"""What a pretext task is told of the store's cases: where their voxels lie, and their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mim3d.config.objective import PretextConfig
from mim3d.config.verbs import PretrainConfig
from mim3d.data.splits import training_cases
from mim3d.data.store import Store
from mim3d.foundation.errors import ConfigError
from mim3d.objectives.supervision import check_supervised
from mim3d.objectives.weight_maps import VolumeGrid


def volume_grids(store: Store, cases: Sequence[str]) -> dict[str, VolumeGrid]:
    """The grid of each case, by id.

    Args:
        store: where they lie.
        cases: their ids.
    """
    grids = {}
    for case_id in cases:
        with store.open(case_id, verify=False) as case:
            _, x, y, z = case.shape
            grids[case_id] = VolumeGrid((x, y, z), case.affine)
    return grids


def with_classes(objective: PretextConfig, store: Store) -> PretextConfig:
    """The pretext task with the classes of its supervised target, as the store has them.

    Raises:
        ConfigError: the task takes no such target, or its values are no classes.
        UserError: no case has it.
    """
    supervised = objective.supervised
    if supervised.target is None:
        return objective
    check_supervised(objective)
    classes = supervised.classes or store.target_classes(supervised.target)
    if not classes:
        raise ConfigError(
            f"the values of the target `{supervised.target}` are no classes",
            where=str(store.path),
            remedy="name them with `--objective.supervised.classes`, or another target",
            code="supervised",
        )
    return replace(objective, supervised=replace(supervised, classes=classes))


def told_cases(store: Store, config: PretrainConfig, cases: Sequence[str]) -> tuple[str, ...]:
    """Which of a pre-training's cases its supervised term is told the class of.

    All, or those of `data.labels` subjects: the draw that a fine-tuning with the same seed makes,
    so that both together know no more labels than they say.

    Args:
        store: where the cases are.
        config: of the pre-training, with a supervised target.
        cases: that it is trained on.

    Raises:
        UserError: fewer labelled subjects than asked for.
    """
    target = config.objective.supervised.target
    if config.data.labels is None or target is None:
        return tuple(cases)
    labelled = training_cases(store, config.data, config.training.seed, (target,))
    return tuple(case for case in cases if case in set(labelled))
