"""What "faster" counts: the price of pre-training, when it pays, and what labels it replaces."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mim3d.evaluation.convergence import Pretraining, Record
from mim3d.evaluation.estimates import Bound, Estimate
from mim3d.evaluation.study import HEADLINE, Study

Unit = Literal["flop", "seconds"]


@dataclass(frozen=True)
class BreakEven:
    """After how many fine-tunings to the target pre-training has paid for itself.

    Attributes:
        finetunings: their number; None where it never does, or cannot be told.
        bound: `>` or `<` where the number is only a bound.
        never: whether fine-tuning to the target saves nothing.
    """

    finetunings: float | None
    bound: Bound
    never: bool

    def text(self) -> str:
        """For a table."""
        if self.never:
            return "never"
        number = self.finetunings
        return "-" if number is None else f"{self.bound} {number:.1f}".strip()


@dataclass(frozen=True)
class Cost:
    """Means over the runs of an arm at a label fraction.

    Attributes:
        pretraining_seconds: of one pre-training; 0 without any.
        pretraining_flop: of one pre-training.
        pretraining_runs: different pre-trainings behind the mean.
        finetuning_seconds: of one fine-tuning to its last step.
        finetuning_flop: of one fine-tuning.
        break_even_seconds: counted in seconds.
        break_even_flop: counted in floating-point operations.
    """

    pretraining_seconds: float
    pretraining_flop: float
    pretraining_runs: int
    finetuning_seconds: float
    finetuning_flop: float
    break_even_seconds: BreakEven | None
    break_even_flop: BreakEven | None

    def in_finetunings(self, unit: Unit) -> float | None:
        """One pre-training in units of one fine-tuning; None where that cost nothing."""
        paid: float = getattr(self, f"pretraining_{unit}")
        one: float = getattr(self, f"finetuning_{unit}")
        return paid / one if one > 0 else None

    def as_json(self) -> dict[str, Any]:
        """The fields, and pre-training in fine-tunings."""
        content = dict(vars(self))
        for unit in ("seconds", "flop"):
            even = content[f"break_even_{unit}"]
            content[f"break_even_{unit}"] = None if even is None else vars(even)
        return {
            **content,
            "pretraining_in_finetunings_seconds": self.in_finetunings("seconds"),
            "pretraining_in_finetunings_flop": self.in_finetunings("flop"),
        }


def cost(study: Study, arm: str, labels: str) -> Cost | None:
    """What an arm costs; None without a sound run."""
    runs = list(study.runs(arm, labels).values())
    if not runs:
        return None
    before: dict[str, Pretraining] = {
        run.pretraining.run: run.pretraining for run in runs if run.pretraining is not None
    }
    paid: dict[Unit, float] = {
        "seconds": _mean([one.seconds for one in before.values()]),
        "flop": _mean([one.flop for one in before.values()]),
    }
    return Cost(
        paid["seconds"],
        paid["flop"],
        len(before),
        _mean([run.seconds for run in runs]),
        _mean([run.flop for run in runs]),
        _break_even(study, arm, labels, "seconds", paid["seconds"]),
        _break_even(study, arm, labels, "flop", paid["flop"]),
    )


def replaced_labels(study: Study, arm: str, labels: str) -> tuple[float, Bound] | None:
    """With how many labelled subjects the arm's partner ends where the arm does.

    On the partner's final Dice against the logarithm of its subjects, running maximum, straight
    between the label fractions. None where there are fewer than two of them, and for an arm that
    is its own partner.
    """
    partner, points = study.partner(arm), []
    if arm == partner:
        return None
    for fraction in study.labels:
        final = study.final(partner, fraction)
        if final is not None and final.value is not None:
            points.append((subjects(study, partner, fraction), final.value))
    own = study.final(arm, labels)
    if len(points) < 2 or own is None or own.value is None:
        return None
    counts, heights = (np.array(row) for row in zip(*points, strict=True))
    rising = np.maximum.accumulate(heights)
    if own.value > rising[-1]:
        return float(counts[-1]), ">"
    if own.value < rising[0]:
        return float(counts[0]), "<"
    after = max(int(np.argmax(rising >= own.value)), 1)
    gain = rising[after] - rising[after - 1]
    share = (own.value - rising[after - 1]) / gain if gain > 0 else 0.0
    first, last = np.log(counts[after - 1]), np.log(counts[after])
    return float(np.exp(first + share * (last - first))), ""


def subjects(study: Study, arm: str, labels: str) -> float:
    """Mean number of labelled subjects over the runs; folds can differ by one."""
    return _mean([run.subjects for run in study.runs(arm, labels).values()])


@dataclass(frozen=True)
class EncoderUse:
    """What an arm's encoders are worth to its segmenters at the last step.

    Attributes:
        dice: mean over the audited runs of means over cases.
        zeroed: the same with the encoder's output set to zero.
        is_alike: whether both are means over the same; records of older versions hold a mean
            over structures of means over cases for the one and over cases for the other.
    """

    dice: float
    zeroed: float
    is_alike: bool


def encoder_use(study: Study, arm: str, labels: str) -> EncoderUse | None:
    """Dice at the last step, and with the encoder's output set to zero; None: not audited."""
    runs = study.runs(arm, labels).values()
    audited = [run for run in runs if run.zeroed_cases is not None]
    zeroed = [float(np.mean(run.zeroed_cases)) for run in audited if run.zeroed_cases]
    is_alike = bool(audited)
    if not audited:
        audited = [run for run in runs if run.zeroed is not None]
        zeroed = [run.zeroed for run in audited if run.zeroed is not None]
    if not audited:
        return None
    return EncoderUse(
        _mean([float(np.mean(run.dice[-1])) for run in audited]), _mean(zeroed), is_alike
    )


def _break_even(study: Study, arm: str, labels: str, unit: Unit, paid: float) -> BreakEven | None:
    """Price of pre-training over what a fine-tuning to the headline's target saves."""
    partner = study.partner(arm)
    own = study.time(arm, labels, HEADLINE)
    other = study.time(partner, labels, HEADLINE, beside=arm)
    if own is None or other is None or not paid:
        return None
    price, price_of_partner = _prices(study, arm, partner, labels, unit)
    fewest, most = _ends(own, price)
    least, largest = _ends(other, price_of_partner)
    saved = (least - most, largest - fewest)
    if math.isnan(saved[0]) or math.isnan(saved[1]):
        return BreakEven(None, "", False)
    if saved[1] <= 0:
        return BreakEven(None, "", True)
    if saved[0] == saved[1]:
        return BreakEven(paid / saved[0], "", False)
    if saved[0] > 0:
        return BreakEven(paid / saved[0], "<", False)
    return (
        BreakEven(paid / saved[1], ">", False)
        if math.isfinite(saved[1])
        else BreakEven(None, "", False)
    )


def _prices(study: Study, arm: str, partner: str, labels: str, unit: Unit) -> tuple[float, float]:
    """Cost of one step of fine-tuning of an arm and of its partner.

    The median over runs; where a step of both is the same arithmetic, over the runs of both: what
    else was done on the machine must not look like a gain of one of them.
    """
    flop = [_a_step(study, one, labels, "flop") for one in (arm, partner)]
    own, other = (_a_step(study, one, labels, unit) for one in (arm, partner))
    if math.isclose(_median(flop[0]), _median(flop[1]), rel_tol=1e-6):
        own = other = own + other
    return _median(own), _median(other)


def _a_step(study: Study, arm: str, labels: str, unit: Unit) -> list[float]:
    runs: list[Record] = list(study.runs(arm, labels).values())
    return [getattr(run, unit) / max(run.steps[-1], 1) for run in runs]


def _median(values: list[float]) -> float:
    return float(np.median(values)) if values else 0.0


def _ends(time: Estimate, price: float) -> tuple[float, float]:
    """Least and largest cost of the steps; infinite where nothing bounds them."""
    if time.value is None:
        return 0.0, math.inf
    least = 0.0 if time.bound == "<" else time.value * price
    return least, math.inf if time.bound == ">" else time.value * price


def _mean(values: list[float] | list[int]) -> float:
    return float(np.mean(values)) if values else 0.0
