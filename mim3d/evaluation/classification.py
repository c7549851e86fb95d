"""How well classes of whole cases are predicted: accuracy, F1, ROC-AUC, with intervals.

Every number is a function of how often each case counts, so that a draw of the bootstrap is a row
of weights and all draws are taken at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from mim3d.evaluation.intervals import Measure, drawn, measures, row_means
from mim3d.foundation.errors import ShapeError, check_shape

Array = NDArray[np.float64]
Places = NDArray[np.int64]
NONE = -1
"""Place of the class of a case without prediction: right for no class, wrong for its own."""


@dataclass(frozen=True)
class ClassScore:
    """How well one class is told from the rest.

    Attributes:
        recall: share of its cases that are predicted as it (sensitivity).
        precision: share of the cases predicted as it that are its own.
        f1: harmonic mean of both; 0 where it is only true or only predicted.
        auc: area under the ROC curve of its probability, this class against the rest: how often a
            case of it has a higher one than another case; ties count half.
        count: its cases.
    """

    recall: Measure
    precision: Measure
    f1: Measure
    auc: Measure
    count: int


@dataclass(frozen=True)
class ClassScores:
    """How well classes are predicted.

    Attributes:
        accuracy: share of cases whose class is predicted.
        balanced_accuracy: mean recall of the classes that have cases.
        macro_f1: mean F1 of the classes that are true or predicted anywhere.
        auc: mean area under the ROC curve of the classes that some cases have and others have not.
        classes: each by itself.
        confusion: cases of each class (row) by predicted class (column), `k k`; those without
            prediction are in no column.
    """

    accuracy: Measure
    balanced_accuracy: Measure
    macro_f1: Measure
    auc: Measure
    classes: tuple[ClassScore, ...]
    confusion: Places

    def numbers(self) -> dict[str, float]:
        """The defined values by name, without intervals."""
        return _numbers(self)


@dataclass(frozen=True)
class LabelScores:
    """How well several yes-or-no labels of the same cases are predicted (multi-label).

    Attributes:
        accuracy: share of labels that are right, mean over the labels.
        balanced_accuracy: mean over the labels.
        macro_f1: F1 of `yes`, mean over the labels that are true or predicted anywhere.
        auc: mean over the labels that some cases have and others have not.
        exact_match: share of cases all of whose labels are right, of those that have all labels.
    """

    accuracy: Measure
    balanced_accuracy: Measure
    macro_f1: Measure
    auc: Measure
    exact_match: Measure

    def numbers(self) -> dict[str, float]:
        """The defined values by name, without intervals."""
        return _numbers(self)


def score_classes(
    truth: Places,
    probabilities: Array,
    *,
    predicted: Places | None = None,
    subjects: Sequence[str] | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> ClassScores:
    """Scores of one prediction of `k` classes.

    Args:
        truth: `n`, place of each case's class, 0 to k - 1.
        probabilities: `n k`, finite; only their order within a class matters.
        predicted: `n`, place of the predicted class, or `NONE`; by default that of the highest
            probability, the first among equals.
        subjects: whose each case is; by default each is its own.
        resamples: bootstrap draws of subjects; 0 gives no intervals.
        confidence: level of the intervals.

    Raises:
        ShapeError: arrays that do not belong together, no case, a place without class.
    """
    guesses = probabilities.argmax(axis=1) if predicted is None else predicted
    _check_classes(truth, probabilities, guesses)
    subjects = _own(len(truth)) if subjects is None else subjects

    def statistic(weights: Array) -> Array:
        return _of_classes(truth, probabilities, guesses, weights)

    accuracy, balanced, f1, auc, *rest = measures(drawn(statistic, subjects, resamples), confidence)
    k = probabilities.shape[1]
    counts = np.bincount(truth, minlength=k).tolist()
    by_class = zip(*(rest[start * k : (start + 1) * k] for start in range(4)), counts, strict=True)
    classes = tuple(ClassScore(*row) for row in by_class)
    return ClassScores(accuracy, balanced, f1, auc, classes, confusion_matrix(truth, guesses, k))


def score_labels(
    truth: Array,
    probabilities: Array,
    *,
    predicted: Array | None = None,
    subjects: Sequence[str] | None = None,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> LabelScores:
    """Scores of `t` yes-or-no labels.

    Args:
        truth: `n t`, 0 or 1, NaN where a case's label is not known.
        probabilities: `n t`, of `yes`, finite.
        predicted: `n t`, 0 or 1; by default whether the probability is above a half.
        subjects: whose each case is; by default each is its own.
        resamples: bootstrap draws of subjects; 0 gives no intervals.
        confidence: level of the intervals.

    Raises:
        ShapeError: arrays that do not belong together, no case, a label that nothing is known of.
    """
    guesses = (probabilities > 0.5).astype(np.float64) if predicted is None else predicted
    _check_labels(truth, probabilities, guesses)
    subjects = _own(len(truth)) if subjects is None else subjects
    known = ~np.isnan(truth)
    whole = known.all(axis=1)
    right = (guesses == truth).all(axis=1)

    def statistic(weights: Array) -> Array:
        labels = np.stack([_of_label(truth, probabilities, guesses, weights, label)
                           for label in range(truth.shape[1])], axis=2)  # fmt: skip
        exact = share(weights[:, whole], right[whole])
        return np.column_stack([*(row_means(labels[:, i]) for i in range(4)), exact])

    return LabelScores(*measures(drawn(statistic, subjects, resamples), confidence))


def confusion_matrix(truth: Places, predicted: Places, classes: int) -> Places:
    """Cases of each class (row) by predicted class (column), `k k`; `NONE` is in no column."""
    given = predicted != NONE
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (truth[given], predicted[given]), 1)
    return matrix


def roc_auc(scores: Array, positive: NDArray[np.bool_], weights: Array) -> Array:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half.

    Mann and Whitney's U over the number of pairs (Bamber 1975, doi:10.1016/0022-2496(75)90001-2),
    with cases counted as often as they were drawn.

    Args:
        scores: `n`, finite.
        positive: `n`.
        weights: `rows n`, how often each case counts.

    Returns:
        `rows`; NaN where there is no positive or no negative.
    """
    order, starts = _tied(scores)
    sorted_weights, sorted_positive = weights[:, order], positive[order]
    positives = np.add.reduceat(sorted_weights * sorted_positive, starts, axis=1)
    negatives = np.add.reduceat(sorted_weights * ~sorted_positive, starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives
    won = (positives * (below + negatives / 2)).sum(axis=1)
    return _quotient(won, positives.sum(axis=1) * negatives.sum(axis=1))


def roc_curve(scores: Array, positive: NDArray[np.bool_]) -> tuple[Array, Array]:
    """False and true positive rate at every threshold, from (0, 0) to (1, 1).

    Equal scores pass the threshold together, so that straight lines between the points enclose the
    area of `roc_auc`. NaN where there is no positive or no negative.
    """
    order, starts = _tied(-scores)
    rates = []
    for kind in (~positive, positive):
        passed = np.cumsum(np.add.reduceat(kind[order].astype(np.float64), starts))
        rates.append(_quotient(np.concatenate([[0.0], passed]), np.array(float(kind.sum()))))
    return rates[0], rates[1]


def share(weights: Array, is_so: NDArray[np.bool_]) -> Array:
    """Which share of the cases something is so of, `rows`; NaN where no case counts."""
    return _quotient(weights @ is_so.astype(np.float64), weights.sum(axis=1))


def _of_classes(truth: Places, probabilities: Array, predicted: Places, weights: Array) -> Array:
    """Accuracy, balanced accuracy, F1, AUC; then recall, precision, F1, AUC of each class."""
    places = np.arange(probabilities.shape[1])
    is_true, is_predicted = truth[:, None] == places, predicted[:, None] == places
    true, guessed, hits = (
        weights @ cases.astype(np.float64)
        for cases in (is_true, is_predicted, is_true & is_predicted)
    )
    recall, precision = _quotient(hits, true), _quotient(hits, guessed)
    f1 = _quotient(2 * hits, true + guessed)
    auc = np.column_stack(
        [roc_auc(probabilities[:, place], is_true[:, place], weights) for place in places]
    )
    accuracy = share(weights, truth == predicted)
    means = (accuracy, row_means(recall), row_means(f1), row_means(auc))
    return np.column_stack([*means, recall, precision, f1, auc])


def _of_label(
    truth: Array, probability: Array, guesses: Array, weights: Array, label: int
) -> Array:
    """Accuracy, balanced accuracy, F1 of `yes`, AUC of one label, `rows 4`."""
    known = ~np.isnan(truth[:, label])
    yes = probability[known, label]
    columns = _of_classes(
        truth[known, label].astype(np.int64),
        np.column_stack([-yes, yes]),
        guesses[known, label].astype(np.int64),
        weights[:, known],
    )
    f1, auc = columns[:, 4:].reshape(-1, 4, 2)[:, 2:, 1].T
    return np.column_stack([columns[:, 0], columns[:, 1], f1, auc])


def _tied(scores: Array) -> tuple[Places, Places]:
    """The rising order of the scores, and where in it each group of equal ones begins."""
    order = np.argsort(scores, kind="stable")
    changes = np.flatnonzero(np.diff(scores[order])) + 1
    return order, np.concatenate([np.zeros(1, np.int64), changes])


def _quotient(over: Array, under: Array) -> Array:
    """Of counts; NaN where there are none."""
    return np.where(under > 0, over / np.maximum(under, 1), np.nan)


def _own(count: int) -> list[str]:
    return [f"{place:09d}" for place in range(count)]


def _numbers(scores: ClassScores | LabelScores) -> dict[str, float]:
    found = {field.name: getattr(scores, field.name) for field in fields(scores)}
    return {
        name: measure.value
        for name, measure in found.items()
        if isinstance(measure, Measure) and measure.value is not None
    }


def _check_classes(truth: Places, probabilities: Array, predicted: Places) -> None:
    check_shape(truth, "n", "truth")
    check_shape(probabilities, "n k", "probabilities")
    n, k = probabilities.shape
    if not n or truth.shape != (n,) or predicted.shape != (n,):
        raise ShapeError(f"{len(truth)} classes, {len(predicted)} predictions of {n} cases")
    if truth.min() < 0 or max(truth.max(), predicted.max()) >= k or predicted.min() < NONE:
        raise ShapeError(f"places of classes lie between 0 and {k - 1}")
    if not np.isfinite(probabilities).all():
        raise ShapeError("a probability is not finite")


def _check_labels(truth: Array, probabilities: Array, predicted: Array) -> None:
    check_shape(truth, "n t", "truth")
    if not len(truth) or probabilities.shape != truth.shape or predicted.shape != truth.shape:
        raise ShapeError(f"labels {truth.shape}, probabilities {probabilities.shape}")
    if not (~np.isnan(truth)).any(axis=0).all():
        raise ShapeError("nothing is known of one of the labels")
    if not (np.isnan(truth) | (truth == 0) | (truth == 1)).all():
        raise ShapeError("labels are 0 and 1")
    if not np.isfinite(probabilities).all():
        raise ShapeError("a probability is not finite")
