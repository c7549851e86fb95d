"""Numbers with intervals from few replicates, some of which are only known to lie beyond a step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

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

    def __mul__(self, price: float) -> Ranges:
        """Times a number of at least 0."""
        return Ranges(self.low * price, self.high * price)

    def __sub__(self, other: Ranges) -> Ranges:
        """Differences; what cannot be told is minus infinity to infinity."""
        return Ranges(self.low - other.high, self.high - other.low)

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
        pretrainings: how many independent ones do; of two arms, those of which both have a run
            of their own. 0 where no arm has any.
    """

    value: float | None
    bound: Bound
    low: float | None
    high: float | None
    replicates: int
    pretrainings: int = 0

    @property
    def is_repeated(self) -> bool:
        """Whether it speaks of other runs of the methods too, pre-training included."""
        return self.replicates > 1 and self.pretrainings != 1

    def as_json(self) -> dict[str, Any]:
        """The fields."""
        return dict(vars(self))

    def within(self, least: float, most: float) -> Estimate:
        """The same with an interval that goes no further than the number can."""
        low = None if self.low is None else max(self.low, least)
        high = None if self.high is None else min(self.high, most)
        return replace(self, low=low, high=high)

    def seen(self, least: float, most: float) -> Estimate:
        """The same with ends that were seen: those beyond what could be are open.

        Args:
            least: the smallest that the judged steps can tell.
            most: the largest.
        """
        low = None if self.low is None or self.low < least else self.low
        high = None if self.high is None or self.high > most else self.high
        return replace(self, low=low, high=high)

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
        told = {">": [number, "open"], "<": ["open", number], "": []}
        interval = "" if ends == told[self.bound] else f" [{', '.join(ends)}]"
        return f"{self.bound} {number}{interval}".strip()


def first_reached(steps: Array, curves: Array, targets: Array) -> Ranges:
    """When the running maximum of each curve first reaches its target.

    Linear interpolation between the judged steps after 0: before the first of them nothing is
    known. A curve that never arrives needs more than the last step, one that is there at step 0
    or when first judged after it at most that one.

    Args:
        steps: growing, `s`; 0 may be the first.
        curves: `rows s`.
        targets: `rows`.
    """
    if steps[-1] <= 0:
        return Ranges(np.zeros(len(curves)), np.full(len(curves), np.inf))
    start = int(np.argmax(steps > 0))
    rising, steps = np.maximum.accumulate(curves, axis=1)[:, start:], steps[start:]
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


def known(low: float, high: float) -> tuple[float | None, Bound]:
    """A number in words: itself, above what, below what, or nothing. Never infinite."""
    if np.isinf(high):
        return (low, ">") if 0 < low < np.inf else (None, "")
    return (low, "") if low == high else (high, "<")
