"""Bootstrap over subjects against a loop that draws them one by one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap

from mim3d.config.inference import EvaluationConfig
from mim3d.evaluation.folders import evaluate_folder
from mim3d.evaluation.intervals import (
    Measure,
    check_evaluation,
    drawn,
    group_by_subject,
    interval,
    measures,
    resampled_means,
    row_means,
)
from mim3d.evaluation.target_pairs import evaluate_targets
from mim3d.foundation.errors import ConfigError


def test_cases_of_one_subject_are_drawn_together() -> None:
    values = np.array([[0.0], [0.0], [0.0], [1.0], [1.0], [1.0]])
    subjects = ["a", "a", "a", "b", "b", "b"]

    draws = resampled_means(*group_by_subject(values, subjects), resamples=400)

    assert set(np.unique(draws)) == {0.0, 0.5, 1.0}


def test_sums_and_counts_leave_out_what_is_not_defined() -> None:
    values = np.array([[1.0, np.nan], [3.0, 4.0], [5.0, np.nan]])

    sums, counts = group_by_subject(values, ["b", "a", "b"])

    assert sums.tolist() == [[3.0, 4.0], [6.0, 0.0]]
    assert counts.tolist() == [[1.0, 1.0], [2.0, 0.0]]


def test_interval_is_near_that_of_scipy() -> None:
    values = np.random.default_rng(3).beta(8, 2, size=(40, 1))

    grouped = group_by_subject(values, [str(i) for i in range(40)])
    low, high = interval(resampled_means(*grouped, resamples=20_000)[:, 0], 0.95) or (0, 0)

    other = bootstrap(
        (values[:, 0],), np.mean, method="percentile", n_resamples=20_000, rng=1
    ).confidence_interval
    # Two independent draws of 20,000: the ends differ by Monte Carlo error alone.
    assert low == pytest.approx(other.low, abs=2e-3)
    assert high == pytest.approx(other.high, abs=2e-3)


def test_the_same_cohort_has_the_same_interval() -> None:
    values = np.random.default_rng(3).random((7, 2))
    grouped = group_by_subject(values, list("abcdefg"))

    assert np.array_equal(resampled_means(*grouped, 100), resampled_means(*grouped, 100))


def test_draws_without_a_value_take_no_part() -> None:
    values = np.array([[np.nan, 1.0], [0.5, 1.0]])

    draws = resampled_means(*group_by_subject(values, ["a", "b"]), resamples=200)

    assert np.isnan(draws[:, 0]).any()
    assert interval(draws[:, 0], 0.95) == (0.5, 0.5)
    assert set(row_means(draws)) == {0.75, 1.0}
    assert interval(np.array([np.nan]), 0.95) is None


def test_draws_in_pieces_are_the_draws_of_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).random((9, 1))
    subjects = list("bbacdeacf")

    def mean(weights: np.ndarray) -> np.ndarray:
        return weights @ values / weights.sum(axis=1, keepdims=True)

    whole = drawn(mean, subjects, 100)
    monkeypatch.setattr("mim3d.evaluation.intervals.CHUNK", 27)

    # The draws are the same; a product of other shapes rounds its sums otherwise.
    assert np.allclose(drawn(mean, subjects, 100), whole, rtol=0, atol=1e-14)
    assert whole[0, 0] == pytest.approx(values.mean())
    other = resampled_means(*group_by_subject(values, subjects), 100)
    assert np.allclose(whole[1:], other, rtol=0, atol=1e-14)


def test_a_measure_is_told_with_its_interval() -> None:
    rows = np.array([[0.5, np.nan, 1.0], [0.25, 0.5, np.nan], [0.75, 0.5, np.nan]])

    first, second, third = measures(rows, 0.5)

    assert first == Measure(0.5, 0.375, 0.625)
    assert (str(first), str(second), str(third)) == ("0.500 [0.375, 0.625]", "-", "1.000")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("confidence", 95.0),
        ("confidence", 1.0),
        ("confidence", 0.0),
        ("confidence", float("nan")),
        ("resamples", -5),
        ("resamples", 0),
        ("resamples", 1_000_001),
        ("nsd_tolerance_mm", -1.0),
        ("nsd_tolerance_mm", float("inf")),
    ],
)
def test_settings_out_of_their_range_are_refused_before_anything_is_read(
    name: str, value: float
) -> None:
    config = EvaluationConfig(**{name: value})  # type: ignore[arg-type]

    for judge in (evaluate_folder, evaluate_targets):
        with pytest.raises(ConfigError, match=f"`evaluation.{name}` is"):
            judge("nowhere", "nowhere", config)


def test_settings_at_the_ends_of_their_range_are_taken() -> None:
    check_evaluation(EvaluationConfig(nsd_tolerance_mm=0, resamples=1, confidence=0.001))
    check_evaluation(EvaluationConfig(resamples=1_000_000, confidence=0.999))
