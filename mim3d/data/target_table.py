"""What a training learns of whole cases: a store's targets, their classes, their scale."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev

from mim3d.config.task import ClassificationConfig
from mim3d.config.verbs import FinetuneConfig
from mim3d.data.asked_target import FEWEST_CLASSES, AskedTarget
from mim3d.data.splits import training_cases
from mim3d.data.store import Store
from mim3d.foundation.errors import ConfigError, UserError


def asked_names(asked: str | tuple[str, ...] | None, store: Store) -> tuple[str, ...]:
    """The names of the targets a config asks for.

    Raises:
        UserError: the store has no target, or not this one.
        ConfigError: it has several and none was asked for, or one is asked for twice.
    """
    there = store.target_names
    if not there:
        raise UserError(
            f"store `{store.path}` has no targets to learn",
            remedy="prepare a CSV with columns `target_<name>`, or a MedMNIST archive",
            code="no-target",
        )
    names = tuple(asked.split(",")) if isinstance(asked, str) else tuple(asked or ())
    if not names and len(there) > 1:
        raise ConfigError(
            f"the store has several targets: {', '.join(f'`{name}`' for name in there)}",
            remedy="say with `--classification.target` which of them",
            code="no-target",
        )
    names = names or there
    if len(set(names)) < len(names):
        raise ConfigError(
            f"`classification.target` names a target twice: {', '.join(names)}", code="target"
        )
    for name in names:
        store.target_classes(name)  # refuses one that is not there
    return names


def target_table(
    config: ClassificationConfig, store: Store, cases: Sequence[str], *, is_regression: bool
) -> tuple[AskedTarget, ...]:
    """What a training learns of its cases.

    Args:
        config: which targets, and by which loss.
        store: where they are noted; classes are the values that any of its cases has.
        cases: those that are trained on, all with these targets.
        is_regression: whether they are numbers.

    Raises:
        ConfigError: a target has no classes, or more than a sigmoid tells apart.
        UserError: the store has no such target, or nothing to tell apart.
    """
    names = asked_names(config.target, store)
    known = {name: [float(store.entry(case).targets[name]) for case in cases] for name in names}
    if is_regression:
        return tuple(_number(store, name, known[name]) for name in names)
    return tuple(_classes(config, store, name, known[name]) for name in names)


def planned_table(config: FinetuneConfig, store: Store) -> tuple[AskedTarget, ...]:
    """What a training will learn, for those that only plan it. Raises as `target_table`."""
    names = asked_names(config.classification.target, store)
    cases = training_cases(store, config.data, config.training.seed, names)
    is_regression = config.task == "regression"
    return target_table(config.classification, store, cases, is_regression=is_regression)


def _number(store: Store, name: str, values: Sequence[float]) -> AskedTarget:
    deviation = pstdev(values)
    if not deviation > 0:
        raise _constant(store, name, values)
    return AskedTarget(name, None, fmean(values), deviation)


def _constant(store: Store, name: str, values: Sequence[float]) -> UserError:
    return UserError(
        f"the target `{name}` is {values[0]:g} in all {len(values)} training cases",
        where=str(store.path),
        remedy="there is nothing to learn; train on more subjects, or name another with "
        "`--classification.target`",
        code="constant-target",
    )


def _classes(
    config: ClassificationConfig, store: Store, name: str, values: Sequence[float]
) -> AskedTarget:
    classes = store.target_classes(name)
    if len(classes) < FEWEST_CLASSES:
        raise UserError(
            f"the target `{name}` has no classes: its values are not whole, too many, or all the "
            "same",
            where=str(store.path),
            remedy="`--task regression` learns a number",
            code="no-classes",
        )
    if config.loss == "bce" and classes != (0.0, 1.0):
        listed = ", ".join(f"{value:g}" for value in classes)
        raise ConfigError(
            f"`classification.loss bce` is for targets that are 0 or 1; `{name}` is {listed}",
            remedy="take `--classification.loss ce`",
            code="target",
        )
    counts = tuple(values.count(value) for value in classes)
    if sum(count > 0 for count in counts) < FEWEST_CLASSES:
        raise _constant(store, name, values)
    return AskedTarget(name, classes, counts=counts, is_sigmoid=config.loss == "bce")
