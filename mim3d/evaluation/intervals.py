"""Bootstrap intervals of means over subjects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mim3d.foundation.randomness import generator

Array = NDArray[np.float64]


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
