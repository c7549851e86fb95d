"""Metrics of numbers against SciPy; draws against repeated cases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, rankdata, spearmanr

from mim3d.evaluation.intervals import drawn, interval
from mim3d.evaluation.regression import ranks, score_numbers
from mim3d.foundation.errors import ShapeError

RANDOM = np.random.default_rng(7)
AGE = np.round(RANDOM.uniform(20, 90, 41))
GUESS = np.round(0.6 * AGE + RANDOM.normal(20, 9, 41), 0)


def test_error_and_correlations_are_those_of_scipy() -> None:
    scores = score_numbers(AGE, GUESS, resamples=0)

    assert scores.mae.value == pytest.approx(sum(abs(a - g) for a, g in zip(AGE, GUESS)) / 41)  # noqa: B905
    assert scores.pearson.value == pytest.approx(pearsonr(AGE, GUESS).statistic, abs=1e-12)
    assert scores.spearman.value == pytest.approx(spearmanr(AGE, GUESS).statistic, abs=1e-12)
    assert scores.mae.low is None


def test_ranks_of_a_draw_are_those_of_its_cases() -> None:
    weights = RANDOM.integers(0, 4, (9, 41))

    found = ranks(GUESS, weights.astype(float))

    for row, rank in zip(weights, found, strict=True):
        again = np.repeat(np.arange(41), row)
        assert np.array_equal(np.repeat(rank, row), rankdata(GUESS[again]))


def test_intervals_are_those_of_a_loop_over_drawn_subjects() -> None:
    subjects = [f"s{place % 13}" for place in range(41)]

    scores = score_numbers(AGE, GUESS, subjects=subjects, resamples=200, confidence=0.9)

    draws = []
    for row in drawn(lambda rows: rows, subjects, 200)[1:]:
        again = np.repeat(np.arange(41), row.astype(int))
        a, g = AGE[again], GUESS[again]
        draws.append([np.abs(a - g).mean(), pearsonr(a, g)[0], spearmanr(a, g)[0]])
    for measure, column in zip(
        (scores.mae, scores.pearson, scores.spearman), np.array(draws).T, strict=True
    ):
        assert (measure.low, measure.high) == pytest.approx(interval(column, 0.9), abs=1e-10)


def test_a_constant_prediction_has_no_correlation() -> None:
    # 0.1 summed and divided is not 0.1 again: rounding must not make a correlation of it.
    scores = score_numbers(AGE, np.full(41, 0.1), resamples=20)

    assert (scores.pearson.value, scores.pearson.low, scores.spearman.value) == (None, None, None)
    assert scores.numbers() == {"mae": pytest.approx(np.mean(AGE - 0.1))}


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_numbers_of_any_size_correlate(scale: float) -> None:
    expected = pearsonr(AGE, GUESS).statistic

    assert score_numbers(AGE * scale, GUESS, resamples=5).pearson.value == pytest.approx(expected)


def test_an_outlier_does_not_blind_the_draws_without_it() -> None:
    truth = np.array([1e300, 1e-10, 2e-10, 3e-10])

    scores = score_numbers(truth, np.array([0.0, 1, 2, 3]), resamples=300)

    assert scores.pearson.high == pytest.approx(1.0)


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(ShapeError, match="finite"):
        score_numbers(np.array([1.0, np.nan]), np.array([1.0, 2.0]))
    with pytest.raises(ShapeError):
        score_numbers(np.array([1.0]), np.array([1.0, 2.0]))
    with pytest.raises(ShapeError):
        score_numbers(np.zeros(0), np.zeros(0))
