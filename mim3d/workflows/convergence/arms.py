"""The arms of a benchmark: two configs that all of them share, and what each changes in those."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar, get_args

from mim3d.config.parts import Part, check_names, section_of
from mim3d.config.reading import read_config
from mim3d.config.tree import value_of
from mim3d.config.verbs import ConvergenceConfig, FinetuneConfig, PretrainConfig
from mim3d.evaluation.convergence import Kind
from mim3d.foundation.errors import ConfigError
from mim3d.models.adaptation import part_of
from mim3d.workflows.initial import LEARNING_FIELDS, SCRATCH

ARMS = "arms"
KEYS = ("pretrain", "finetune", "pretrain_of", "total_time_of", "against", "budget", "kind")
"""What an arm may say."""
Budget = Literal["flop", "steps", "seconds"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*(-[A-Za-z0-9_.]+)*")
"""Names become those of folders."""
MASKED = frozenset({"mae", "simmim", "smit"})
CONTRASTIVE = frozenset({"simclr", "mocov3", "byol", "vicreg", "dino", "voco"})
"""Pretext tasks that compare views of a crop."""
BENCHMARKS_OWN: Mapping[str, Mapping[str, str]] = {
    "pretrain": {
        "data.labels": "labels", "data.fold": "folds", "data.inner_fold": "rates",
        "training.seed": "pretraining_seeds",
    },
    "finetune": {
        "data.labels": "labels", "data.fold": "folds", "data.inner_fold": "rates",
        "training.seed": "replicates", "training.validate_every": "points",
        "training.validate_at": "points",
    },
}  # fmt: skip
"""What runs get from the benchmark, and the setting of `convergence` that decides it."""

Base = TypeVar("Base", PretrainConfig, FinetuneConfig)


@dataclass(frozen=True)
class Arm:
    """One row of the tables.

    Args:
        name: of the row, and of folders.
        kind: what its pre-training asks.
        finetune: config of its fine-tunings; steps, labels, seed and fold are the benchmark's.
        pretrain: config of its own pre-trainings, or None.
        before: the arm whose pre-trainings it starts from: its own name, another arm's, or None.
        keeps_steps: whether it says the length of its pre-training itself.
        total_time_of: its fine-tuning takes the time of pre-training and fine-tuning of this arm.
        against: the arm whose best Dice sets its targets; None is the benchmark's reference.
        budget: what its pre-training spends as much of as that of `budget_arm`; None is the
            section's.
    """

    name: str
    kind: Kind
    finetune: FinetuneConfig
    pretrain: PretrainConfig | None = None
    before: str | None = None
    keeps_steps: bool = False
    total_time_of: str | None = None
    against: str | None = None
    budget: Budget | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it starts from scratch and is as long as the recipe: a reference."""
        untrained = self.before is None and self.finetune.init in (None, SCRATCH)
        return self.kind == "scratch" and untrained and self.total_time_of is None

    def is_matched(self, settings: ConvergenceConfig) -> bool:
        """Whether the budget decides how long its own pre-training is."""
        return (
            self.pretrain is not None and not self.keeps_steps and self.name != settings.budget_arm
        )


def reference_of(arms: Iterable[Arm]) -> str:
    """The arm that the others are measured against: the first plain one."""
    return next(arm.name for arm in arms if arm.is_plain)


def read_arms(path: Path, settings: ConvergenceConfig) -> tuple[Arm, ...]:
    """The arms that a benchmark's file lists, in its order.

    Args:
        path: the file; paths of the two base configs are taken beside it.
        settings: its section `convergence`.

    Raises:
        ConfigError: no arms, or none from scratch; an unknown key or a wrong value (file, line,
            arm and key are named), or one that the benchmark sets by itself; an arm that refers to
            none, or encoders of an arm's two configs that differ.
    """
    section = section_of(path, ARMS)
    parts = section.parts() if section is not None else {}
    if not parts:
        raise ConfigError(
            f"`{path}` lists no arms",
            remedy="write for example `arms: {scratch: {}, mae: {pretrain: {}}}`",
            code="no-arms",
        )
    bases = _Bases(path, settings)
    arms = {name: _arm(part, bases) for name, part in parts.items()}
    for arm in arms.values():
        _check_references(arm, arms, path)
        _check_budget_of(arm, settings, path)
    settled = {name: _settled(arm, arms) for name, arm in arms.items()}
    for arm in settled.values():
        _check_encoders(arm, settled, path)
    if any(arm.before for arm in settled.values()):
        _check_budget(settings, settled, path)
    if not any(arm.is_plain for arm in settled.values()):
        raise ConfigError(
            f"`{path}` lists no arm from scratch, which the others could be measured against",
            remedy="add `scratch: {}` below `arms:`",
            code="no-reference",
        )
    return tuple(settled.values())


class _Bases:
    """The two configs that every arm starts from."""

    def __init__(self, path: Path, settings: ConvergenceConfig) -> None:
        self.path, self.settings = path, settings

    def pretrain(self) -> PretrainConfig:
        return self._read("pretrain", self.settings.pretrain, PretrainConfig)

    def finetune(self) -> FinetuneConfig:
        # Where an encoder comes from is an arm's business.
        return replace(self._read("finetune", self.settings.finetune, FinetuneConfig), init=SCRATCH)

    def _read(self, key: str, said: str | None, kind: type[Base]) -> Base:
        if said is None:
            raise ConfigError(
                f"`convergence.{key}` does not say which config its arms start from",
                where=f"`{self.path}`",
                remedy=f"write `{key}: {key}.yaml` below `convergence:`, a path beside this file",
                code="no-config",
            )
        beside = self.path.parent / said
        config: Base = read_config(beside if beside.is_file() else said, kind)
        place = f" in `{beside if beside.is_file() else said}`"
        _check_own(config, BENCHMARKS_OWN[key], place)
        if isinstance(config, FinetuneConfig):
            _check_task(config, place)
        if isinstance(config, FinetuneConfig) and config.init not in (None, SCRATCH):
            raise _benchmarks("init", place, "an arm's `pretrain`, or its `finetune: {init: RUN}`")
        data, training = config.data, config.training
        if self.settings.store is not None and not data.stores:
            data = replace(data, store=self.settings.store)
        if self.settings.threads is not None:
            training = replace(training, threads=self.settings.threads)
        return replace(config, data=data, training=training)


def _arm(part: Part, bases: _Bases) -> Arm:
    if not NAME.fullmatch(part.name):
        raise ConfigError(
            f"`{part.name}`{part.place} cannot name an arm",
            remedy="use letters, digits, `_`, `.` and single `-`",
            code="config",
        )
    given = part.parts(f"arm `{part.name}` of {part.source}")
    check_names(given.values(), KEYS)
    finetune = bases.finetune()
    if "finetune" in given:
        _check_said(given, finetune, bases.settings)
        finetune = given["finetune"].over(finetune)
        _check_own(finetune, BENCHMARKS_OWN["finetune"], given["finetune"].place)
        _check_task(finetune, given["finetune"].place)
    pretrain, keeps_steps = None, False
    if "pretrain" in given:
        base = bases.pretrain()
        if "data.stores" in given["pretrain"].said(base):
            # The benchmark's store is not one of them unless they say so.
            base = replace(base, data=replace(base.data, store=None))
        pretrain = given["pretrain"].over(base)
        _check_own(pretrain, BENCHMARKS_OWN["pretrain"], given["pretrain"].place)
        keeps_steps = "training.steps" in given["pretrain"].said(base)
    kind: Kind = "scratch" if finetune.init in (None, SCRATCH) else "other"
    if pretrain is not None:
        kind = kind_of(pretrain.objective.name)
    if "kind" in given:
        kind = given["kind"].value(Literal[get_args(Kind)])
    return Arm(
        part.name,
        kind,
        finetune,
        pretrain,
        before=part.name if pretrain is not None else _word(given, "pretrain_of"),
        keeps_steps=keeps_steps,
        total_time_of=_word(given, "total_time_of"),
        against=_word(given, "against"),
        budget=given["budget"].value(Budget) if "budget" in given else None,
    )


def _check_task(config: FinetuneConfig, place: str) -> None:
    if config.task != "segmentation":
        raise ConfigError(
            f"`task: {config.task}`{place} cannot be judged: the benchmark measures Dice",
            remedy="leave it out, so that it is `segmentation`; `mim3d probe` and `finetune` with "
            "`data.fold` compare classifiers",
            code="benchmark-task",
        )


def _check_own(config: Base, own: Mapping[str, str], place: str) -> None:
    """Refuses what the benchmark would replace without a word."""
    for key, setting in own.items():
        if value_of(config, key) != value_of(type(config)(), key):
            raise _benchmarks(key, place, f"`convergence.{setting}`")


def _check_said(
    given: Mapping[str, Part], base: FinetuneConfig, settings: ConvergenceConfig
) -> None:
    """Refuses what another setting decides for this arm."""
    part = given["finetune"]
    said = part.said(base)
    if "total_time_of" in given and "training.steps" in said:
        raise _benchmarks("training.steps", part.place, "`total_time_of`")
    for key, setting in (("optim.lr", "rates"), ("optim.warmup_steps", "warmups")):
        if getattr(settings, setting) and key in said:
            raise _benchmarks(key, part.place, f"`convergence.{setting}`")


def _benchmarks(key: str, place: str, setting: str) -> ConfigError:
    return ConfigError(
        f"`{key}`{place} would be replaced: the benchmark sets it",
        remedy=f"leave it out; {setting} decides it",
        code="benchmarks-own",
    )


def _word(given: dict[str, Part], key: str) -> str | None:
    word: str | None = given[key].value(str) if key in given else None
    return word


def kind_of(task: str) -> Kind:
    """What a pretext task asks, by its name."""
    if task in MASKED:
        return "masked"
    return "contrastive" if task in CONTRASTIVE else "other"


def _check_references(arm: Arm, arms: dict[str, Arm], path: Path) -> None:
    if arm.pretrain is not None and arm.finetune.init not in (None, SCRATCH):
        raise _wrong(arm, path, "pre-trains, and sets `finetune.init` too", "leave one of them out")
    for key, other in (("pretrain_of", arm.before), ("total_time_of", arm.total_time_of)):
        if other is None or (key == "pretrain_of" and other == arm.name):
            continue
        if other not in arms or arms[other].pretrain is None:
            having = [name for name, one in arms.items() if one.pretrain is not None]
            listed = ", ".join(f"`{name}`" for name in having) or "there is none"
            what = f"names `{other}` in `{key}`, which is no arm with a section `pretrain`"
            raise _wrong(arm, path, what, f"arms with one: {listed}")
    others = [name for name in arms if name != arm.name]
    if arm.against is not None and arm.against not in others:
        listed = ", ".join(f"`{name}`" for name in others) or "there is none"
        what = f"names `{arm.against}` in `against`, which is no other arm"
        raise _wrong(arm, path, what, f"other arms: {listed}")


def _check_budget_of(arm: Arm, settings: ConvergenceConfig, path: Path) -> None:
    """An arm's own budget must mean something."""
    if arm.budget is not None and not arm.is_matched(settings):
        why = "has no section `pretrain`"
        if arm.pretrain is not None:
            why = "is the budget's own arm" if not arm.keeps_steps else "says its steps itself"
        raise _wrong(arm, path, f"says `budget` and {why}", "leave `budget` out")


def _settled(arm: Arm, arms: dict[str, Arm]) -> Arm:
    """With the kind of the arm whose pre-trainings it takes."""
    if arm.before is None or arm.before == arm.name or arm.kind != "scratch":
        return arm
    return replace(arm, kind=arms[arm.before].kind)


def _check_encoders(arm: Arm, arms: dict[str, Arm], path: Path) -> None:
    """Fine-tuning would refuse these only after the pre-training."""
    if arm.before is None:
        return
    before = arms[arm.before].pretrain
    assert before is not None
    asked, plain = arm.finetune.encoder, type(arm.finetune.encoder)()
    for field, value in vars(asked).items():
        found = getattr(before.encoder, field)
        if part_of(field) in (arm.finetune.init_adapt or ()):
            continue
        if field not in LEARNING_FIELDS and value not in (getattr(plain, field), found):
            what = (
                f"has `encoder.{field}` {found} in its pre-training and {value} in its fine-tuning"
            )
            part = part_of(field)
            remedy = "say it under `pretrain` and `finetune` alike"
            if part is not None:
                remedy += f", or add `init_adapt: [{part}]` under `finetune`"
            raise _wrong(arm, path, what, remedy)


def _check_budget(settings: ConvergenceConfig, arms: dict[str, Arm], path: Path) -> None:
    arm = arms.get(settings.budget_arm)
    if arm is None or arm.pretrain is None:
        having = [name for name, one in arms.items() if one.pretrain is not None]
        raise ConfigError(
            f"`convergence.budget_arm` is `{settings.budget_arm}`, which is no arm with a section "
            "`pretrain`",
            where=f"`{path}`",
            remedy=f"arms with one: {', '.join(f'`{name}`' for name in having)}",
            code="budget",
        )


def _wrong(arm: Arm, path: Path, what: str, remedy: str) -> ConfigError:
    return ConfigError(f"arm `{arm.name}` {what}", where=f"`{path}`", remedy=remedy, code="arm")
