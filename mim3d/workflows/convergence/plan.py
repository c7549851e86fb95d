"""What is decided before anything runs: steps, FLOP and step grids; later each arm's rate.

`plan.json` is written once and read by every process of the benchmark. Arms may be added to it;
what runs were made by never changes. An arm of which nothing was begun may be planned anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mim3d.config.training import OptimConfig
from mim3d.foundation.atomic import write_json
from mim3d.foundation.documents import read_object
from mim3d.foundation.errors import UserError
from mim3d.foundation.lock import held
from mim3d.foundation.reporting import Reporter
from mim3d.workflows.convergence.arms import Arm

PLAN = "plan.json"
FORMAT = 1


@dataclass(frozen=True)
class Cost:
    """What a training of so many steps costs.

    Args:
        steps: optimiser updates.
        flop_a_step: counted.
        seconds_a_step: on the machine that planned, with the crops that it waits for.
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
class Pace:
    """How fast a fine-tuning learns, as far as a benchmark chooses it.

    Args:
        lr: learning rate.
        warmup_steps: until it is reached; None is what the config says.
    """

    lr: float
    warmup_steps: int | None = None

    @property
    def name(self) -> str:
        """Of the run that tries it, behind the arm's."""
        return f"lr{self.lr:g}" + (
            "" if self.warmup_steps is None else f"-warmup{self.warmup_steps}"
        )

    def over(self, optim: OptimConfig) -> OptimConfig:
        """A config with it."""
        warmup = optim.warmup_steps if self.warmup_steps is None else self.warmup_steps
        return replace(optim, lr=self.lr, warmup_steps=warmup)

    def __str__(self) -> str:
        warmup = "" if self.warmup_steps is None else f", warm-up {self.warmup_steps}"
        return f"{self.lr}{warmup}"


@dataclass(frozen=True)
class Rate:
    """The learning rate of an arm's fine-tunings, or of those that one fold judges.

    Args:
        lr: chosen.
        dice: on the inner fold, of each pace that was tried.
        warmup_steps: chosen with it; None where only rates were tried.
    """

    lr: float
    dice: dict[str, float]
    warmup_steps: int | None = None

    @property
    def pace(self) -> Pace:
        """What was chosen."""
        return Pace(self.lr, self.warmup_steps)


@dataclass(frozen=True)
class Plan:
    """Everything that was decided.

    Args:
        arms: by name.
        rates: that were chosen so far, by `rate_key`.
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


def rate_key(arm: str, fold: int | None) -> str:
    """Names what a rate is chosen for: no fold may take one that its own subjects chose."""
    return arm if fold is None else f"{arm} fold {fold}"  # a space is in no arm's name


def read_plan(out: Path) -> Plan:
    """The plan in a folder; an empty one where there is none.

    Raises:
        UserError: it was written in another format.
    """
    path = out / PLAN
    if not path.is_file():
        return Plan()
    content = read_object(path)
    if content.get("format") != FORMAT:
        raise UserError(
            f"`{path}` has format {content.get('format')}, this version reads format {FORMAT}",
            remedy="choose another --out",
            code="other-format",
        )
    arms = {name: ArmPlan.from_json(arm) for name, arm in content["arms"].items()}
    return Plan(arms, {name: Rate(**rate) for name, rate in content["rates"].items()})


@contextlib.contextmanager
def naming(arm: Arm) -> Iterator[None]:
    """A user's error in this block says which arm it came from."""
    try:
        yield
    except UserError as error:
        if not (error.where or "").startswith(f"arm `{arm.name}`"):
            error.where = f"arm `{arm.name}`" + (f", {error.where}" if error.where else "")
        raise


def settle_rate(out: Path, arm: str, fold: int | None, rate: Rate, reporter: Reporter) -> Rate:
    """Writes a rate into the plan; what another process wrote before stands."""
    key = rate_key(arm, fold)
    with held(out, tell=reporter.say):
        plan = read_plan(out)
        if key not in plan.rates:
            plan = Plan(plan.arms, {**plan.rates, key: rate})
            write_json(out / PLAN, plan.as_json())
    return plan.rates[key]
