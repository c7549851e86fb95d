"""How well numbers of whole cases, such as an age, are predicted, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from mim3d.evaluation.intervals import Measure, drawn, measures
from mim3d.foundation.errors import ShapeError, check_shape

Array = NDArray[np.float64]


@dataclass(frozen=True)
class NumberScores:
    """How well numbers are predicted.

    Attributes:
        mae: mean absolute error, in the number's unit.
        pearson: correlation of predicted and true numbers; None where one of them is constant.
        spearman: correlation of their ranks, equal numbers sharing theirs.
    """

    mae: Measure
    pearson: Measure
    spearman: Measure

    def numbers(self) -> dict[str, float]:
        """The defined values by name, without intervals."""
        found = {field.name: getattr(self, field.name).value for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None}


def score_numbers(
    truth: Array,
    predicted: Array,
    *,
    subjects: Sequence[str] | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> NumberScores:
    """Scores of predicted numbers.

    Args:
        truth: `n`, finite.
        predicted: `n`, finite.
        subjects: whose each case is; by default each is its own.
        resamples: bootstrap draws of subjects; 0 gives no intervals.
        confidence: level of the intervals.

    Raises:
        ShapeError: arrays of other lengths, no case, a number that is none.
    """
    check_shape(truth, "n", "truth")
    if not len(truth) or predicted.shape != truth.shape:
        raise ShapeError(f"{predicted.shape} predictions of {truth.shape} numbers")
    if not (np.isfinite(truth).all() and np.isfinite(predicted).all()):
        raise ShapeError("a number is not finite")
    truth, predicted = truth.astype(np.float64), predicted.astype(np.float64)
    errors = np.abs(predicted - truth)

    def statistic(weights: Array) -> Array:
        mae = weights @ errors / weights.sum(axis=1)
        linear = correlation(truth[None], predicted[None], weights)
        ranked = correlation(ranks(truth, weights), ranks(predicted, weights), weights)
        return np.column_stack([mae, linear, ranked])

    whose = [f"{place:09d}" for place in range(len(truth))] if subjects is None else subjects
    return NumberScores(*measures(drawn(statistic, whose, resamples), confidence))


def correlation(x: Array, y: Array, weights: Array) -> Array:
    """Pearson's correlation of cases that count as often as their weights say.

    Args:
        x: `rows n`, or `1 n` where it is the same in each row.
        y: alike.
        weights: `rows n`.

    Returns:
        `rows`, -1 to 1; NaN where one of the two is constant.
    """
    varies = _varies(x, weights) & _varies(y, weights)
    x, y = _centred(x, weights), _centred(y, weights)
    shared, own_x, own_y = (
        (weights * one * other).sum(axis=1) for one, other in ((x, y), (x, x), (y, y))
    )
    scale = np.where(varies, np.sqrt(own_x) * np.sqrt(own_y), 1)
    return np.where(varies, np.clip(shared / scale, -1, 1), np.nan)


def ranks(values: Array, weights: Array) -> Array:
    """The rank of each case among those drawn, equal values sharing the mean of theirs.

    Args:
        values: `n`.
        weights: `rows n`, how often each case was drawn.

    Returns:
        `rows n`, from 1.
    """
    distinct, group = np.unique(values, return_inverse=True)
    counts = np.zeros((len(weights), len(distinct)))
    np.add.at(counts.T, group, weights.T)
    below = np.cumsum(counts, axis=1) - counts
    shared: Array = below + (counts + 1) / 2
    return shared[:, group]


def _centred(values: Array, weights: Array) -> Array:
    """Less the mean of what counts, and of a size whose squares are numbers; 0 what does not."""
    counted = weights > 0
    values = np.where(counted, values, 0.0)
    largest = np.abs(values).max(axis=1, keepdims=True)
    values = values / np.where(largest > 0, largest, 1)
    mean = (weights * values).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)
    return np.where(counted, values - mean, 0.0)


def _varies(values: Array, weights: Array) -> NDArray[np.bool_]:
    """Whether the values that count differ: rounding gives equal ones a variance above 0."""
    counted = weights > 0
    highest: Array = np.where(counted, values, -np.inf).max(axis=1)
    lowest: Array = np.where(counted, values, np.inf).min(axis=1)
    return highest > lowest
