"""What a pretext task is told of the store's cases: where their voxels lie, and their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mim3d.config.objective import PretextConfig
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
