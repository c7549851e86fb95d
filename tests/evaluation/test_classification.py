"""Metrics of classes against written-out loops and SciPy; draws against repeated cases."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from scipy.stats import mannwhitneyu

from mim3d.evaluation.classification import (
    NONE,
    confusion_matrix,
    roc_auc,
    roc_curve,
    score_classes,
    score_labels,
)
from mim3d.evaluation.intervals import drawn, group_by_subject, interval, resampled_means
from mim3d.foundation.errors import ShapeError

Array = NDArray[np.float64]


def auc_by_pairs(scores: Array, positive: NDArray[np.bool_]) -> float:
    """Every pair of a positive and a negative, one by one."""
    won = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p in scores[positive]
        for n in scores[~positive]
    ]
    return sum(won) / len(won)


def cohort(n: int = 37, k: int = 3, seed: int = 0) -> tuple[NDArray[np.int64], Array]:
    """Unequal classes, probabilities in steps of a tenth so that ties abound, sums of 1."""
    random = np.random.default_rng(seed)
    truth = random.choice(k, n, p=np.arange(1, k + 1) / np.arange(1, k + 1).sum())
    scores = random.random((n, k))
    scores[np.arange(n), truth] += 0.4
    steps = np.round(10 * scores / scores.sum(axis=1, keepdims=True))
    return truth, steps / 10


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_the_share_of_pairs_in_the_right_order(seed: int) -> None:
    truth, probabilities = cohort(seed=seed)
    scores, positive = probabilities[:, 1], truth == 1

    area = roc_auc(scores, positive, np.ones((1, len(truth))))[0]

    u = mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert area == pytest.approx(auc_by_pairs(scores, positive), abs=1e-14)
    assert area == pytest.approx(u / (positive.sum() * (~positive).sum()), abs=1e-14)


def test_auc_of_equal_scores_is_a_half_and_of_one_kind_undefined() -> None:
    positive = np.array([True, False, True, False, False])
    ones = np.ones((1, 5))

    assert roc_auc(np.full(5, 0.3), positive, ones)[0] == 0.5
    assert roc_auc(np.array([2.0, 1, 2, 1, 1]), positive, ones)[0] == 1.0
    assert np.isnan(roc_auc(np.arange(5.0), np.full(5, True), ones)[0])
    assert np.isnan(roc_auc(np.arange(5.0), np.full(5, False), ones)[0])


def test_weights_count_like_repeated_cases() -> None:
    truth, probabilities = cohort()
    weights = np.random.default_rng(1).integers(0, 4, (11, len(truth)))

    areas = roc_auc(probabilities[:, 0], truth == 0, weights.astype(float))

    for row, area in zip(weights, areas, strict=True):
        again = np.repeat(np.arange(len(truth)), row)
        assert area == pytest.approx(auc_by_pairs(probabilities[again, 0], truth[again] == 0))


def test_curve_encloses_the_area() -> None:
    truth, probabilities = cohort(n=60)
    scores, positive = probabilities[:, 2], truth == 2

    false_rate, true_rate = roc_curve(scores, positive)

    assert (false_rate[0], true_rate[0], false_rate[-1], true_rate[-1]) == (0, 0, 1, 1)
    assert trapezoid(true_rate, x=false_rate) == pytest.approx(auc_by_pairs(scores, positive))
    for threshold in np.unique(scores):
        point = ((scores >= threshold) & ~positive).sum() / (~positive).sum()
        assert np.abs(false_rate - point).min() < 1e-14
    assert len(false_rate) == len(np.unique(scores)) + 1


@pytest.mark.parametrize(("k", "seed"), [(2, 0), (3, 1), (5, 2)])
def test_scores_of_classes_are_those_of_loops(k: int, seed: int) -> None:
    truth, probabilities = cohort(n=53, k=k, seed=seed)

    scores = score_classes(truth, probabilities, resamples=0)

    guesses = [max(range(k), key=lambda j: row[j]) for row in probabilities.tolist()]
    recall, f1, areas = [], [], []
    for j in range(k):
        hits = sum(t == j and g == j for t, g in zip(truth, guesses, strict=True))
        true, guessed = int((truth == j).sum()), guesses.count(j)
        recall.append(hits / true)
        f1.append(2 * hits / (true + guessed))
        areas.append(auc_by_pairs(probabilities[:, j], truth == j))
        score = scores.classes[j]
        assert score.count == true
        assert score.recall.value == pytest.approx(recall[j])
        assert score.f1.value == pytest.approx(f1[j])
        assert score.auc.value == pytest.approx(areas[j])
        assert score.precision.value == (pytest.approx(hits / guessed) if guessed else None)
        assert scores.confusion[j].tolist() == [
            sum(t == j and g == i for t, g in zip(truth, guesses, strict=True)) for i in range(k)
        ]
    assert scores.numbers() == pytest.approx(
        {
            "accuracy": float(np.mean(truth == guesses)),
            "balanced_accuracy": float(np.mean(recall)),
            "macro_f1": float(np.mean(f1)),
            "auc": float(np.mean(areas)),
        }
    )
    assert scores.accuracy.low is None


def test_a_class_without_cases_takes_no_part_in_means_of_recall_and_area() -> None:
    # Class 2 is never true and once predicted, class 3 neither.
    truth = np.array([0, 0, 1, 1])
    probabilities = np.array(
        [[0.9, 0.1, 0, 0], [0.2, 0.1, 0.7, 0], [0.3, 0.7, 0, 0], [0.6, 0.4, 0, 0]]
    )

    scores = score_classes(truth, probabilities, resamples=0)

    assert scores.accuracy.value == 0.5
    assert scores.balanced_accuracy.value == 0.5
    # F1: 2/(2+2), 2/(2+1), 0/(0+1), and none.
    assert scores.macro_f1.value == pytest.approx((0.5 + 2 / 3 + 0) / 3)
    assert scores.auc.value == pytest.approx((0.5 + 1.0) / 2)
    assert [score.f1.value for score in scores.classes[2:]] == [0.0, None]
    assert [score.auc.value for score in scores.classes[2:]] == [None, None]


def test_a_case_without_prediction_is_wrong_and_in_no_column() -> None:
    truth = np.array([0, 1, 1, 0])
    probabilities = np.array([[0.8, 0.2], [0.3, 0.7], [0.4, 0.6], [0.0, 1.0]])

    scores = score_classes(truth, probabilities, predicted=np.array([0, 1, 1, NONE]), resamples=0)

    assert scores.accuracy.value == 0.75
    assert scores.classes[0].recall.value == 0.5
    assert scores.classes[1].precision.value == 1.0
    assert scores.confusion.tolist() == [[1, 0], [0, 2]]
    assert scores.auc.value == pytest.approx(0.5)


def test_draws_are_of_subjects_and_score_what_a_loop_over_them_does() -> None:
    truth, probabilities = cohort(n=24)
    subjects = [f"s{place // 2 % 9}" for place in range(24)]

    scores = score_classes(truth, probabilities, subjects=subjects, resamples=300)

    names = sorted(set(subjects))
    weights = drawn(lambda rows: rows, subjects, 300)[1:]
    rows = {name: [i for i, s in enumerate(subjects) if s == name] for name in names}
    assert all(len({row[i] for i in rows[name]}) == 1 for row in weights for name in names)
    accuracies, areas = [], []
    for row in weights:
        again = np.repeat(np.arange(24), row.astype(int))
        accuracies.append(np.mean(probabilities[again].argmax(axis=1) == truth[again]))
        if 0 < (truth[again] == 1).sum() < len(again):
            areas.append(auc_by_pairs(probabilities[again, 1], truth[again] == 1))
    measured = scores.accuracy, scores.classes[1].auc
    for measure, draws in zip(measured, (accuracies, areas), strict=True):
        assert (measure.low, measure.high) == pytest.approx(interval(np.array(draws), 0.95))


def test_interval_of_accuracy_is_that_of_a_mean() -> None:
    truth, probabilities = cohort(n=40)
    right = (probabilities.argmax(axis=1) == truth).astype(float)[:, None]
    subjects = [f"{place:03d}" for place in range(40)]

    accuracy = score_classes(truth, probabilities, subjects=subjects, resamples=500).accuracy

    means = resampled_means(*group_by_subject(right, subjects), 500)[:, 0]
    assert (accuracy.low, accuracy.high) == pytest.approx(interval(means, 0.95))


def test_several_labels_are_scored_each_by_itself_and_together() -> None:
    random = np.random.default_rng(4)
    probabilities = np.round(random.random((31, 3)), 1)
    truth = (probabilities + random.normal(0, 0.4, (31, 3)) > 0.6).astype(float)
    truth[5, 1] = np.nan

    scores = score_labels(truth, probabilities, resamples=50)

    parts = []
    for label in range(3):
        known = ~np.isnan(truth[:, label])
        yes, guess = truth[known, label] == 1, probabilities[known, label] > 0.5
        recall = [(guess & yes).sum() / yes.sum(), (~guess & ~yes).sum() / (~yes).sum()]
        f1 = 2 * (guess & yes).sum() / (guess.sum() + yes.sum())
        area = auc_by_pairs(probabilities[known, label], yes)
        parts.append([np.mean(guess == yes), np.mean(recall), f1, area])
    whole = [row for row in range(31) if row != 5]
    exact = np.mean([all((probabilities[i] > 0.5) == (truth[i] == 1)) for i in whole])
    names = ("accuracy", "balanced_accuracy", "macro_f1", "auc")
    expected = dict(zip(names, np.mean(parts, axis=0), strict=True)) | {"exact_match": exact}
    assert scores.numbers() == pytest.approx(expected)
    assert scores.auc.low is not None
    assert scores.auc.low < expected["auc"]


def test_confusion_has_the_truth_down_and_the_prediction_across() -> None:
    truth, predicted = np.array([0, 0, 1, 2]), np.array([1, NONE, 1, 0])

    assert confusion_matrix(truth, predicted, 3).tolist() == [[0, 1, 0], [0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize(
    ("truth", "probabilities"),
    [
        (np.zeros(0, int), np.zeros((0, 2))),
        (np.array([0, 2]), np.full((2, 2), 0.5)),
        (np.array([0, 1, 1]), np.full((2, 2), 0.5)),
        (np.array([0, 1]), np.array([[0.5, np.nan], [0.5, 0.5]])),
        (np.array([[0, 1]]), np.full((2, 2), 0.5)),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(
    truth: NDArray[np.int64], probabilities: Array
) -> None:
    with pytest.raises(ShapeError):
        score_classes(truth, probabilities)


def test_labels_other_than_yes_and_no_are_refused() -> None:
    with pytest.raises(ShapeError, match="0 and 1"):
        score_labels(np.array([[0.0, 2.0]]), np.full((1, 2), 0.5))
    with pytest.raises(ShapeError, match="nothing is known"):
        score_labels(np.array([[0.0, np.nan]]), np.full((1, 2), 0.5))
