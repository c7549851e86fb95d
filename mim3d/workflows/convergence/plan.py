"""What is decided before anything runs: steps, FLOP and step grids; later each arm's rate.

`plan.json` is written once and read by every process of the benchmark. Arms may be added to it;
what stands there never changes, for finished runs were made by it.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mim3d.config.reading import dump, from_mapping, load, to_mapping
from mim3d.config.verbs import ConvergenceConfig, FinetuneConfig, PretrainConfig
from mim3d.foundation.atomic import write_json
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.reporting import Reporter
from mim3d.training.lock import FolderLock
from mim3d.training.run import differing_keys
from mim3d.workflows.convergence.arms import Arm
from mim3d.workflows.convergence.cost import Costs, StepCost, look_seconds
from mim3d.workflows.finetune import LEARNING_FIELDS

PLAN = "plan.json"
FORMAT = 1
FIRST_STEP = 10
"""Of the grid, behind step 0."""
LOCK_WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class Cost:
    """What a training of so many steps costs.

    Args:
        steps: optimiser updates.
        flop_a_step: counted.
        seconds_a_step: on the machine that planned, without the feed.
    """

    steps: int
    flop_a_step: float
    seconds_a_step: float

    @property
    def flop(self) -> float:
        """Of all steps."""
        return self.steps * self.flop_a_step

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return self.steps * self.seconds_a_step


@dataclass(frozen=True)
class ArmPlan:
    """What was decided for an arm.

    Args:
        pretrain: of its own pre-trainings, or None.
        finetune: of its fine-tunings.
        grid: steps at which whole volumes are judged.
        look_seconds: about how long judging all cases takes.
        settings: what this follows from; it must not change any more.
    """

    pretrain: Cost | None
    finetune: Cost
    grid: tuple[int, ...]
    look_seconds: float
    settings: dict[str, Any]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ArmPlan:
        """The way back from `plan.json`."""
        before = content["pretrain"]
        return cls(
            None if before is None else Cost(**before),
            Cost(**content["finetune"]),
            tuple(content["grid"]),
            content["look_seconds"],
            dict(content["settings"]),
        )

    def as_json(self) -> dict[str, Any]:
        """As JSON types."""
        before = None if self.pretrain is None else vars(self.pretrain)
        return {**vars(self), "pretrain": before, "finetune": vars(self.finetune)}


@dataclass(frozen=True)
class Rate:
    """The learning rate of an arm's fine-tunings.

    Args:
        lr: chosen.
        dice: on the inner fold, of each rate that was tried.
    """

    lr: float
    dice: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """Everything that was decided.

    Args:
        arms: by name.
        rates: of the arms that were tuned so far, by name.
    """

    arms: dict[str, ArmPlan] = field(default_factory=dict)
    rates: dict[str, Rate] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """What `plan.json` holds."""
        return {
            "format": FORMAT,
            "arms": {name: arm.as_json() for name, arm in self.arms.items()},
            "rates": {name: vars(rate) for name, rate in self.rates.items()},
        }


def read_plan(out: Path) -> Plan:
    """The plan in a folder; an empty one where there is none.

    Raises:
        UserError: it was written in another format.
    """
    path = out / PLAN
    if not path.is_file():
        return Plan()
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("format") != FORMAT:
        raise UserError(
            f"`{path}` has format {content.get('format')}, this version reads format {FORMAT}",
            remedy="choose another --out",
            code="other-format",
        )
    arms = {name: ArmPlan.from_json(arm) for name, arm in content["arms"].items()}
    return Plan(arms, {name: Rate(**rate) for name, rate in content["rates"].items()})


def make_plan(arms: Sequence[Arm], settings: ConvergenceConfig, there: Plan) -> Plan:
    """The plan for some arms: what stands there, and the rest anew.

    Raises:
        ConfigError: an arm was planned with other settings.
        UserError: an arm with which nothing can be trained; the arm is named.
    """
    by_name = {arm.name: arm for arm in arms}
    planned = dict(there.arms)
    costs = Costs()

    def pretraining(arm: Arm) -> Cost:
        if arm.name in planned:
            cost = planned[arm.name].pretrain
            assert cost is not None
            return cost
        assert arm.pretrain is not None
        a_step = costs.of(arm.pretrain)
        steps = arm.pretrain.training.steps
        if not arm.keeps_steps and arm.name != settings.budget_arm:
            steps = matched_steps(
                settings.budget, a_step, pretraining(by_name[settings.budget_arm])
            )
        return Cost(steps, a_step.flop, a_step.seconds)

    for arm in arms:
        said = _settings(arm, settings, by_name)
        if arm.name in planned:
            _check_same(arm.name, planned[arm.name].settings, said)
            continue
        with naming(arm):
            own = None if arm.pretrain is None else pretraining(arm)
            config = _as_traced(arm, by_name)
            a_step = costs.of(config)
            steps = config.training.steps
            if arm.total_time_of is not None:
                other = pretraining(by_name[arm.total_time_of])
                steps += matched_steps(settings.budget, a_step, other)
            data = replace(config.data, fold=settings.folds[0] if settings.folds else None)
            planned[arm.name] = ArmPlan(
                own,
                Cost(steps, a_step.flop, a_step.seconds),
                step_grid(steps, settings.points),
                look_seconds(replace(config, data=data), a_step),
                said,
            )
    return Plan(planned, there.rates)


@contextlib.contextmanager
def naming(arm: Arm) -> Iterator[None]:
    """A user's error in this block says which arm it came from."""
    try:
        yield
    except UserError as error:
        if not (error.where or "").startswith(f"arm `{arm.name}`"):
            error.where = f"arm `{arm.name}`" + (f", {error.where}" if error.where else "")
        raise


def matched_steps(budget: str, a_step: StepCost, whole: Cost) -> int:
    """As many steps as cost what another training costs.

    Args:
        budget: in which coin: `flop`, `steps` or `seconds`.
        a_step: of the steps that are asked for.
        whole: the other training.
    """
    if budget == "steps":
        return whole.steps
    asked, one = (whole.flop, a_step.flop) if budget == "flop" else (whole.seconds, a_step.seconds)
    return max(1, round(asked / one))


def step_grid(steps: int, points: int) -> tuple[int, ...]:
    """Step 0 and `points` steps evenly spaced in their logarithm, from 10 to the last.

    Raises:
        ConfigError: fewer than two points.
    """
    if points < 2:
        raise ConfigError(f"`convergence.points` is {points}, expected 2 or more", code="range")
    first = min(FIRST_STEP, steps)
    spaced = (first * (steps / first) ** (place / (points - 1)) for place in range(points))
    return (0, *sorted({round(step) for step in spaced}))


def _as_traced(arm: Arm, arms: Mapping[str, Arm]) -> FinetuneConfig:
    """The fine-tuning with the encoder that it will have, before there is a run to take it from."""
    if arm.before is None:
        return arm.finetune
    before = arms[arm.before].pretrain
    assert before is not None
    own = {name: getattr(arm.finetune.encoder, name) for name in LEARNING_FIELDS}
    return replace(arm.finetune, encoder=replace(before.encoder, **own))


def _settings(arm: Arm, settings: ConvergenceConfig, arms: Mapping[str, Arm]) -> dict[str, Any]:
    """All that an arm's runs follow from, beside label fractions, replicates and folds."""
    said: dict[str, Any] = {
        "finetune": to_mapping(arm.finetune),
        "pretrain": None if arm.pretrain is None else to_mapping(arm.pretrain),
        "before": arm.before,
        "total_time_of": arm.total_time_of,
        "points": settings.points,
    }
    if arm.before is not None:
        said |= {
            "pretraining_seeds": settings.pretraining_seeds,
            "pretrain_per_fold": settings.pretrain_per_fold,
        }
    if settings.folds:
        said["folds"] = list(settings.folds)
    if arm.pretrain is not None or arm.total_time_of is not None:
        said |= {"budget": settings.budget, "budget_arm": settings.budget_arm}
    if settings.rates:
        said["rates"] = list(settings.rates)
        said["tuned_with_labels"] = settings.labels[0]
    # As it will be read back: tuples are lists there.
    plain: dict[str, Any] = load(dump(said))
    return plain


def _check_same(name: str, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differing = differing_keys(_completed(there), now)
    if differing:
        listed = ", ".join(f"`{key}` ({was} there, {is_} now)"
                           for key, (was, is_) in list(differing.items())[:5])  # fmt: skip
        raise ConfigError(
            f"arm `{name}` was planned with other settings: {listed}",
            remedy="choose another --out, or give the changed arm a name of its own",
            code="config-differs",
        )


def _completed(there: Mapping[str, Any]) -> dict[str, Any]:
    """With the defaults of settings that an older version did not know."""
    whole = dict(there)
    kinds: dict[str, type[PretrainConfig | FinetuneConfig]] = {
        "pretrain": PretrainConfig,
        "finetune": FinetuneConfig,
    }
    for part, kind in kinds.items():
        if whole[part] is not None:
            config = from_mapping(whole[part], kind, where=f"`{PLAN}`")
            whole[part] = load(dump(to_mapping(config)))
    return whole


def settle_plan(
    out: Path, arms: Sequence[Arm], settings: ConvergenceConfig, reporter: Reporter
) -> Plan:
    """The plan of a folder, made or extended by whoever comes first.

    Args:
        out: the benchmark's folder, made if absent.
        arms: of the benchmark.
        settings: its section `convergence`.
        reporter: where progress goes.
    """
    out.mkdir(parents=True, exist_ok=True)
    with held(out):
        there = read_plan(out)
        missing = [arm.name for arm in arms if arm.name not in there.arms]
        if missing:
            reporter.say(f"counting and timing a step of {', '.join(missing)}")
        plan = make_plan(arms, settings, there)
        if plan != there:
            write_json(out / PLAN, plan.as_json())
    return plan


def settle_rate(out: Path, arm: str, rate: Rate) -> Rate:
    """Writes an arm's rate into the plan; what another process wrote before stands."""
    with held(out):
        plan = read_plan(out)
        if arm not in plan.rates:
            plan = Plan(plan.arms, {**plan.rates, arm: rate})
            write_json(out / PLAN, plan.as_json())
    return plan.rates[arm]


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder's lock, waited for."""
    lock = FolderLock(folder)
    while True:
        try:
            lock.take()
            break
        except UserError:
            time.sleep(LOCK_WAIT_SECONDS)
    try:
        yield
    finally:
        lock.release()
