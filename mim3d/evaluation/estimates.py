"""Numbers with intervals from few replicates, some of which are only known to lie beyond a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

Array = NDArray[np.float64]
Bound = Literal["", ">", "<"]


@dataclass(frozen=True)
class Ranges:
    """What is known of a number in each resample: between `low` and `high`, mostly equal.

    Attributes:
        low: `rows`; 0 where nothing bounds it from below.
        high: `rows`; infinite where nothing bounds it from above.
    """

    low: Array
    high: Array

    @classmethod
    def exact(cls, values: Array) -> Ranges:
        """Numbers known exactly."""
        return cls(values, values)

    def over(self, other: Ranges) -> Ranges:
        """Quotients of numbers of at least 0; what cannot be told is 0 to infinity."""
        with np.errstate(divide="ignore", invalid="ignore"):
            low, high = self.low / other.high, self.high / other.low
        return Ranges(
            np.nan_to_num(low, nan=0.0, posinf=np.inf), np.where(np.isnan(high), np.inf, high)
        )


@dataclass(frozen=True)
class Estimate:
    """A number and its interval.

    Attributes:
        value: the number, or what it lies above or below; None where nothing is known.
        bound: `>` or `<` where the value is only a bound.
        low: lower end of the interval; None where these data do not bound it.
        high: upper end.
        replicates: how many stand behind it.
    """

    value: float | None
    bound: Bound
    low: float | None
    high: float | None
    replicates: int

    def as_json(self) -> dict[str, Any]:
        """The fields."""
        return dict(vars(self))

    def excludes(self, number: float) -> bool:
        """Whether the number lies outside the interval."""
        below = self.low is not None and number < self.low
        return below or (self.high is not None and number > self.high)

    def text(self, digits: int = 2) -> str:
        """For a table: `2.00 [1.80, 2.31]`, `> 300`, `> 1.52 [1.20, open]`, `-`."""
        if self.value is None:
            return "-"
        number = f"{self.value:.{digits}f}"
        ends = ["open" if end is None else f"{end:.{digits}f}" for end in (self.low, self.high)]
        told = {">": [number, "open"], "<": ["open", number], "": ["open", "open"]}
        interval = "" if ends == told[self.bound] else f" [{', '.join(ends)}]"
        return f"{self.bound} {number}{interval}".strip()


@dataclass(frozen=True)
class Draws:
    """Weights of replicates and subjects: row 0 the data as they are, then the resamples.

    The first `joint` resamples draw replicates and subjects, the others replicates alone.

    Attributes:
        replicates: `rows n`, how often each replicate is drawn.
        subjects: for each replicate `rows m`, how often each of its subjects is drawn.
        joint: number of resamples of both.
        subject_count: of all replicates together, each once.
    """

    replicates: Array
    subjects: tuple[Array, ...]
    joint: int
    subject_count: int

    def curves(self, sums: Sequence[Array], counts: Sequence[Array]) -> Array:
        """Means over drawn replicates of means over the cases of drawn subjects.

        Args:
            sums: for each replicate `m steps`, summed over the cases of a subject.
            counts: for each replicate `m`, cases of a subject.

        Returns:
            `rows steps`.
        """
        total = np.zeros((len(self.replicates), sums[0].shape[1]))
        for place, weights in enumerate(self.subjects):
            mean = (weights @ sums[place]) / (weights @ counts[place])[:, None]
            total += self.replicates[:, place, None] * mean
        curves: Array = total / self.replicates.sum(axis=1, keepdims=True)
        return curves

    def estimate(self, ranges: Ranges, *, confidence: float, log: bool = False) -> Estimate:
        """The number of row 0 with a stretched percentile interval of the joint resamples.

        Percentiles of a handful of replicates are too narrow: a bootstrap of n replicates has
        (n - 1)/n of their variance and knows nothing of Student's t (Hesterberg 2015,
        doi:10.1080/00031305.2015.1089789, section 4). Deviations from the estimate are stretched
        by what both lack; the share of replicates in the variance, from the resamples that
        draw replicates alone, gives the degrees of freedom by Satterthwaite's formula.

        Args:
            ranges: the number in each row.
            confidence: level of the interval.
            log: deviations are of logarithms; for quotients and times.
        """
        tail = (1 - confidence) / 2
        joint = slice(1, 1 + self.joint)
        scale = np.log if log else np.asarray
        with np.errstate(divide="ignore"):
            low, high = scale(ranges.low), scale(ranges.high)
        stretch = self._stretch(low, high, confidence)
        # Without interpolation: between a number and infinity there is no percentile.
        lower = float(np.quantile(low[joint], tail, method="lower"))
        upper = float(np.quantile(high[joint], 1 - tail, method="higher"))
        ends = (
            _stretched(low[0], min(lower, low[0]), stretch),
            _stretched(high[0], max(upper, high[0]), stretch),
        )
        if log:
            ends = (float(np.exp(ends[0])), float(np.exp(ends[1])))
        value, bound = _known(float(ranges.low[0]), float(ranges.high[0]))
        bounded_below = np.isfinite(ends[0]) and not (log and ends[0] == 0)
        return Estimate(
            value,
            bound,
            ends[0] if bounded_below else None,
            ends[1] if np.isfinite(ends[1]) else None,
            self.replicates.shape[1],
        )

    def _stretch(self, low: Array, high: Array, confidence: float) -> float:
        """By how much deviations of percentiles are too small."""
        exact = np.isfinite(low) & np.isfinite(high)
        middle = np.where(exact, (np.where(exact, low, 0) + np.where(exact, high, 0)) / 2, np.nan)
        both, alone = middle[1 : 1 + self.joint], middle[1 + self.joint :]
        total, n = _variance(both), self.replicates.shape[1]
        if total <= 0 or n < 1:
            return 1.0
        of_replicates = min(_variance(alone), total) if n > 1 else 0.0
        of_subjects = total - of_replicates
        share = of_replicates / total
        freedom = (share**2 / (n - 1) if n > 1 else 0.0) + (
            (of_subjects / total) ** 2 / max(self.subject_count - 1, 1)
        )
        upper = 1 - (1 - confidence) / 2
        correction = float(np.sqrt(1 + share / (n - 1))) if n > 1 else 1.0
        return correction * float(stdtrit(1 / freedom, upper) / ndtri(upper))


def first_reached(steps: Array, curves: Array, targets: Array) -> Ranges:
    """When the running maximum of each curve first reaches its target.

    Linear interpolation between the judged steps. A curve that never arrives is known to need
    more than the last step, one that is there when first judged at most the first.

    Args:
        steps: growing, `s`.
        curves: `rows s`.
        targets: `rows`.
    """
    rising = np.maximum.accumulate(curves, axis=1)
    reached = rising >= targets[:, None]
    rows, first = np.arange(len(rising)), reached.argmax(axis=1)
    after = np.maximum(first, 1) if len(steps) > 1 else first
    before = np.maximum(after - 1, 0)
    rise = rising[rows, after] - rising[rows, before]
    share = (targets - rising[rows, before]) / np.where(rise > 0, rise, 1.0)
    time = steps[before] + share * (steps[after] - steps[before])
    arrives, at_once = reached.any(axis=1), reached[:, 0]
    low = np.where(at_once, 0.0, np.where(arrives, time, steps[-1]))
    high = np.where(at_once, steps[0], np.where(arrives, time, np.inf))
    return Ranges(low, high)


def mean_height(
    steps: Array, curves: Array, start: float, stop: float, *, log: bool = False
) -> Array:
    """Area under each curve from `start` to `stop`, divided by the width: 0 to 1 for Dice.

    Args:
        steps: growing, `s`.
        curves: `rows s`; straight between the steps of the axis.
        start: first step of the area.
        stop: last step.
        log: the axis is logarithmic; `start` above 0.

    Returns:
        `rows`.
    """
    inside = steps[(steps > start) & (steps < stop)]
    at = np.concatenate([[start], inside, [stop]])
    kept = steps > 0 if log else np.ones(len(steps), bool)
    axis, wanted = (np.log(steps[kept]), np.log(at)) if log else (steps, at)
    # Interpolation is linear in the curve: what it does to unit curves serves every row.
    read = np.stack([np.interp(wanted, axis, unit) for unit in np.eye(len(axis))])
    widths = np.diff(wanted)
    shares = np.zeros(len(wanted))
    shares[:-1] += widths / 2
    shares[1:] += widths / 2
    total = shares.sum()
    mean: Array = curves[:, kept] @ read @ (shares / total if total > 0 else shares + 1 / len(at))
    return mean


def _known(low: float, high: float) -> tuple[float | None, Bound]:
    """A number in words: itself, above what, below what, or nothing."""
    if low == high:
        return low, ""
    if np.isinf(high):
        return (low, ">") if low > 0 else (None, "")
    return high, "<"


def _stretched(centre: float, end: float, stretch: float) -> float:
    if not (np.isfinite(centre) and np.isfinite(end)):
        return float(end)
    return float(centre + stretch * (end - centre))


def _variance(values: Array) -> float:
    values = values[np.isfinite(values)]
    return float(values.var()) if values.size > 1 else 0.0
