"""What "faster" counts: the price of pre-training, when it pays, and what labels it replaces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mim3d.evaluation.convergence import Pretraining, Record
from mim3d.evaluation.estimates import Array, Bound, Estimate, Ranges
from mim3d.evaluation.study import HEADLINE, Study

Unit = Literal["flop", "seconds"]


@dataclass(frozen=True)
class BreakEven:
    """After how many fine-tunings to the target pre-training has paid for itself.

    Attributes:
        finetunings: their number; None where it never does, or cannot be told.
        bound: `>` or `<` where the number is only a bound.
        never: whether fine-tuning to the target saves nothing.
        low: lower end of the interval; None where even the end of the interval saves nothing.
        high: upper end; None where it may never pay.
    """

    finetunings: float | None
    bound: Bound = ""
    never: bool = False
    low: float | None = None
    high: float | None = None

    def text(self) -> str:
        """For a table: `12.3 [8.1, 30.2]`, `> 4.0`, `never [40.0, open]`, `-`."""
        if self.finetunings is None and not self.never:
            return "-"
        said = "never" if self.never else f"{self.bound} {self.finetunings:.1f}".strip()
        ends = ["open" if end is None else f"{end:.1f}" for end in (self.low, self.high)]
        return said if self.low is self.high is None else f"{said} [{', '.join(ends)}]"


@dataclass(frozen=True)
class Cost:
    """Medians over the runs of an arm at a label fraction: one that had to wait moves none.

    Attributes:
        pretraining_seconds: of one pre-training; 0 without any.
        pretraining_flop: of one pre-training.
        pretraining_runs: different pre-trainings behind the median.
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
        "seconds": _median([one.seconds for one in before.values()]),
        "flop": _median([one.flop for one in before.values()]),
    }
    return Cost(
        paid["seconds"],
        paid["flop"],
        len(before),
        _median([run.seconds for run in runs]),
        _median([run.flop for run in runs]),
        _break_even(study, arm, labels, "seconds", paid["seconds"]),
        _break_even(study, arm, labels, "flop", paid["flop"]),
    )


def replaced_labels(study: Study, arm: str, labels: str) -> Estimate | None:
    """With how many labelled subjects the arm's partner ends where the arm does.

    On the partner's final Dice against the logarithm of its subjects, running maximum, straight
    between the label fractions; all on the replicates that the arm has here and its partner at
    every fraction. None where no replicate is shared or the partner has fewer than two fractions,
    and for an arm that is its own partner.
    """
    partner = study.partner(arm)
    fractions = [one for one in study.labels if study.runs(partner, one)]
    if arm == partner or len(fractions) < 2 or not study.runs(arm, labels):
        return None
    counts = np.array([subjects(study, partner, one) for one in fractions])

    def replaced(curves: Sequence[Array]) -> Ranges:
        own, *others = (curve[:, -1] for curve in curves)
        return _counts_at(own, np.maximum.accumulate(np.stack(others, axis=1), axis=1), counts)

    cells = ((arm, labels), *((partner, one) for one in fractions))
    found = study.estimate(cells, replaced, what="replaced labels", log=True)
    return found if found is None else found.seen(float(counts[0]), float(counts[-1]))


def _counts_at(heights: Array, rising: Array, counts: Array) -> Ranges:
    """Where rising curves over the logarithm of counts reach the heights of their rows.

    Args:
        heights: `rows`.
        rising: `rows n`.
        counts: `n`, growing.
    """
    rows = np.arange(len(heights))
    reached = rising >= heights[:, None]
    after = np.maximum(reached.argmax(axis=1), 1)
    before = after - 1
    gain = rising[rows, after] - rising[rows, before]
    share = np.clip((heights - rising[rows, before]) / np.where(gain > 0, gain, 1.0), 0, 1)
    axis = np.log(counts)
    count = np.exp(axis[before] + share * (axis[after] - axis[before]))
    below, above = heights < rising[:, 0], heights > rising[:, -1]
    low = np.where(below, 0.0, np.where(above, counts[-1], count))
    return Ranges(low, np.where(below, counts[0], np.where(above, np.inf, count)))


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
        runs: how many were audited.
    """

    dice: float
    zeroed: float
    is_alike: bool
    runs: int


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
        _mean([float(np.mean(run.dice[-1])) for run in audited]),
        _mean(zeroed),
        is_alike,
        len(audited),
    )


def _break_even(study: Study, arm: str, labels: str, unit: Unit, paid: float) -> BreakEven | None:
    """Price of pre-training over what a fine-tuning to the headline's target saves."""
    partner = study.partner(arm)
    own = study.time(arm, labels, HEADLINE)
    other = study.time(partner, labels, HEADLINE, beside=arm)
    if own is None or other is None or not paid:
        return None
    prices = _prices(study, arm, partner, labels, unit)
    fewest, most = _ends(own, prices[0])
    least, largest = _ends(other, prices[1])
    low, high = _interval(study, arm, labels, prices, paid)
    saved = (least - most, largest - fewest)
    if math.isnan(saved[0]) or math.isnan(saved[1]):
        return BreakEven(None)
    if saved[1] <= 0:
        return BreakEven(None, never=True, low=low, high=high)
    if saved[0] == saved[1]:
        return BreakEven(paid / saved[0], low=low, high=high)
    if saved[0] > 0:
        return BreakEven(paid / saved[0], "<", low=low, high=high)
    if math.isfinite(saved[1]):
        return BreakEven(paid / saved[1], ">", low=low, high=high)
    return BreakEven(None)


def _interval(
    study: Study, arm: str, labels: str, prices: tuple[float, float], paid: float
) -> tuple[float | None, float | None]:
    """Of the fine-tunings after which an arm pays: that of what one saves, turned round."""
    partner = study.partner(arm)
    arms = (arm, arm, partner)

    def saved(curves: Sequence[Array]) -> Ranges:
        own, _, other = study.times(labels, arms, curves, HEADLINE)
        return other * prices[1] - own * prices[0]

    cells = tuple((one, labels) for one in arms)
    found = study.estimate(cells, saved, what=f"saved, {HEADLINE}, {prices}")
    if found is None or not all(prices):
        return None, None
    # What saves most pays first; what may save nothing may never pay.
    low, high = (None if end is None or end <= 0 else paid / end for end in (found.high, found.low))
    return low, high


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
