"""What a pretext task is told of the store's cases: where they lie, their weights and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from mim3d.config.objective import PretextConfig
from mim3d.config.verbs import PretrainConfig
from mim3d.data.cohort.cases import is_volume_name, stem
from mim3d.data.files import read_volume
from mim3d.data.splits import training_cases
from mim3d.data.store import Store
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.objectives.guides import REMEMBERING, PriorGuide
from mim3d.objectives.masked import Masked
from mim3d.objectives.supervision import check_supervised
from mim3d.objectives.weight_maps import VolumeGrid

MOST_NAMED = 5
"""Cases that an error lists by name."""


def tell_of_cases(task: Masked, config: PretrainConfig, store: Store, cases: Sequence[str]) -> None:
    """Tells a pretext task what it must know of the cases before its first step.

    Args:
        task: as it was built.
        config: of the pre-training.
        store: where the cases are.
        cases: their ids.

    Raises:
        UserError: a case without a volume of weights, or with weights that are none.
        VolumeError: a volume of weights cannot be read.
    """
    if config.objective.guide.by in REMEMBERING:
        grids = volume_grids(store, cases)
        task.remember(grids)
        if isinstance(task.masks.guide, PriorGuide):
            _give(task.masks.guide, grids, Path(str(config.objective.guide.priors)))
    if task.supervision is not None:
        task.supervision.tell_of(told_cases(store, config, cases))


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


def _give(guide: PriorGuide, grids: Mapping[str, VolumeGrid], folder: Path) -> None:
    """Gives a guide the weights of every case, from the volumes of a folder."""
    files: dict[str, list[Path]] = {case_id: [] for case_id in grids}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if is_volume_name(path.name) and stem(path) in files:
            files[stem(path)].append(path)
    without = [case_id for case_id, found in files.items() if len(found) != 1]
    if without:
        named = ", ".join(f"`{case_id}`" for case_id in without[:MOST_NAMED])
        more = len(without) - MOST_NAMED
        raise UserError(
            f"{len(without)} of {len(grids)} cases have no volume of weights of their own, or "
            f"several: {named}{f' and {more} more' if more > 0 else ''}",
            where=f"`{folder}`",
            remedy="put one file for each case there, `CASE.nii.gz`; `mim3d info STORE` names them",
            code="priors",
        )
    for case_id, grid in grids.items():
        (path,) = files[case_id]
        weights = weights_on(grid, path)
        guide.give(case_id, torch.from_numpy(weights))


def weights_on(grid: VolumeGrid, path: Path) -> NDArray[np.float32]:
    """A volume of weights at the voxels of a case, `x y z`; 0 beyond the volume.

    Linear between its voxels, which may lie on any grid of the same millimetres.

    Raises:
        UserError: several channels, a weight below 0, or none above it within the case.
        VolumeError: it cannot be read.
    """
    volume = read_volume(path)
    if len(volume.voxels) != 1:
        raise _no_weights(path, f"has {len(volume.voxels)} channels, one is expected")
    own = volume.voxels[0].astype(np.float32)
    if volume.unusable is not None and volume.unusable.any():
        raise _no_weights(path, "holds voxels that are no numbers")
    if own.min() < 0:
        raise _no_weights(path, f"holds weights below 0, down to {own.min():g}")
    to_own = np.linalg.inv(volume.affine) @ grid.affine
    found: NDArray[np.float32] = affine_transform(
        own, to_own[:3, :3], to_own[:3, 3], output_shape=grid.shape, order=1, mode="constant"
    )
    if not found.max() > 0:
        raise _no_weights(path, "weighs nothing within its case")
    return found


def _no_weights(path: Path, problem: str) -> UserError:
    return UserError(
        f"a volume of weights {problem}",
        where=f"`{path}`",
        remedy="weights are 0 or more, and above 0 where masks are to go",
        code="priors",
    )
