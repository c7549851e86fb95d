"""Bootstrap intervals over subjects, of means and of any other number of a cohort."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mim3d.config.inference import EvaluationConfig
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.randomness import generator

Array = NDArray[np.float64]
CHUNK = 2_000_000
"""Weights in memory at once: 16 MB."""
MOST_RESAMPLES = 1_000_000


def check_evaluation(config: EvaluationConfig) -> None:
    """Raises `ConfigError` for intervals that cannot be drawn, and for a tolerance that is none."""
    if not 0 <= config.nsd_tolerance_mm < math.inf:
        raise ConfigError(
            f"`evaluation.nsd_tolerance_mm` is {config.nsd_tolerance_mm:g}, expected 0 mm or more",
            remedy="leave it out for 1 mm",
            code="nsd-tolerance",
        )
    if not 1 <= config.resamples <= MOST_RESAMPLES:
        raise ConfigError(
            f"`evaluation.resamples` is {config.resamples}, expected 1 to {MOST_RESAMPLES:,}",
            remedy="leave it out for 2,000",
            code="resamples",
        )
    if not 0 < config.confidence < 1:
        raise ConfigError(
            f"`evaluation.confidence` is {config.confidence:g}, expected above 0 and below 1",
            remedy="95 % is `--evaluation.confidence 0.95`",
            code="confidence",
        )


@dataclass(frozen=True)
class Measure:
    """A number of a cohort and its bootstrap interval over subjects.

    Attributes:
        value: None where it is undefined.
        low: lower end; None without resamples, or where no draw defines it.
        high: upper end.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        return self.told(".3f")

    def told(self, form: str) -> str:
        """The value with its interval, each in the form of a format string; `-` without one."""
        if self.value is None:
            return "-"
        if self.low is None or self.high is None:
            return f"{self.value:{form}}"
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"


def measures(rows: Array, confidence: float) -> tuple[Measure, ...]:
    """The measure of each column of what `drawn` returns."""
    found = []
    for value, *draws in rows.T:
        low, high = interval(np.array(draws), confidence) or (None, None)
        found.append(Measure(None if np.isnan(value) else float(value), low, high))
    return tuple(found)


def drawn(
    statistic: Callable[[Array], Array], subjects: Sequence[str], resamples: int, seed: int = 0
) -> Array:
    """A statistic of all cases, and of those of `resamples` draws of subjects with replacement.

    Args:
        statistic: from how often each case counts, `rows cases`, to its values, `rows columns`.
        subjects: whose each case is.
        resamples: draws of as many subjects, with replacement, as there are.
        seed: names the draws, which are those of `resampled_means`.

    Returns:
        `1 + resamples columns`; the first row is that of all cases.
    """
    names, place = np.unique(np.array(subjects, dtype=object), return_inverse=True)
    count = len(names)
    random = generator(seed, "bootstrap", count)
    rows = [statistic(np.ones((1, len(subjects))))]
    step = max(1, CHUNK // len(subjects))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        weights = random.multinomial(count, np.full(count, 1 / count), size=size)
        rows.append(statistic(weights[:, place].astype(np.float64)))
    return np.concatenate(rows)


def group_by_subject(values: Array, subjects: Sequence[str]) -> tuple[Array, Array]:
    """Sums and counts of the defined values of each subject.

    Args:
        values: `cases columns`; NaN where a case has no value.
        subjects: whom each case belongs to.

    Returns:
        Sums and counts, `subjects columns`, subjects in the order of their names.
    """
    names = sorted(set(subjects))
    place = {name: row for row, name in enumerate(names)}
    rows = np.array([place[subject] for subject in subjects], dtype=np.intp)
    defined = ~np.isnan(values)
    sums = np.zeros((len(names), values.shape[1]))
    counts = np.zeros_like(sums)
    np.add.at(sums, rows, np.where(defined, values, 0.0))
    np.add.at(counts, rows, defined.astype(np.float64))
    return sums, counts


def resampled_means(sums: Array, counts: Array, resamples: int, seed: int = 0) -> Array:
    """Means of `resamples` draws of as many subjects, with replacement, as there are.

    The same draws serve every column, so that means over columns can be taken draw by draw.

    Returns:
        `resamples columns`; NaN where a draw holds no value of that column.
    """
    subjects = sums.shape[0]
    random = generator(seed, "bootstrap", subjects)
    weights = random.multinomial(subjects, np.full(subjects, 1 / subjects), size=resamples)
    totals = weights @ counts
    with np.errstate(invalid="ignore"):
        return np.where(totals > 0, (weights @ sums) / np.maximum(totals, 1), np.nan)


def interval(draws: Array, confidence: float) -> tuple[float, float] | None:
    """The percentile interval of the defined draws; None where there are none."""
    draws = draws[~np.isnan(draws)]
    if not draws.size:
        return None
    tail = 50 * (1 - confidence)
    low, high = np.percentile(draws, (tail, 100 - tail))
    return float(low), float(high)


def row_means(draws: Array) -> Array:
    """Mean over the defined columns of each row; NaN where none is defined."""
    defined = ~np.isnan(draws)
    counts = defined.sum(axis=1)
    sums = np.where(defined, draws, 0.0).sum(axis=1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
