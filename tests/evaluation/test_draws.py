"""Resamples of pre-trainings, replicates and subjects against formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mim3d.evaluation.draws import Draws, draw
from mim3d.evaluation.estimates import Ranges


def draws_of(n: int, m: int, groups: tuple[int, ...] = (), resamples: int = 4000) -> Draws:
    names = tuple(f"subject_{place}" for place in range(m))
    places = tuple(range(n))
    return draw(places, groups or places, [names] * n, resamples=resamples, seed=0)


def test_an_interval_of_replicates_alone_is_close_to_students() -> None:
    # Normal quantiles: the bootstrap of their mean is close to normal.
    values = stats.norm.ppf((np.arange(8) + 0.5) / 8)
    draws = draws_of(8, 5)
    means = draws.replicates @ values / 8

    found = draws.estimate(Ranges.exact(means), confidence=0.95)

    student = stats.t.ppf(0.975, 7) * values.std(ddof=1) / math.sqrt(8)
    assert found.value == pytest.approx(0, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((-student, student), rel=0.06)


def test_an_interval_of_subjects_alone_is_the_percentile_interval() -> None:
    values = stats.norm.ppf((np.arange(60) + 0.5) / 60)
    draws = draws_of(3, 60)
    means = draws.subjects[0] @ values / 60

    found = draws.estimate(Ranges.exact(means), confidence=0.95)

    student = stats.t.ppf(0.975, 59) * values.std() / math.sqrt(60)
    assert (found.low, found.high) == pytest.approx((-student, student), rel=0.06)


def test_resamples_that_never_arrive_open_the_interval() -> None:
    draws = draws_of(3, 5)
    low = np.full(1 + 3 * draws.resamples, 2.0)
    high = low.copy()
    high[5 : 5 + draws.resamples // 10] = math.inf  # a tenth of the joint resamples

    found = draws.estimate(Ranges(low, high), confidence=0.95, log=True)

    assert (found.value, found.bound, found.low, found.high) == (2.0, "", 2.0, None)
    assert found.text() == "2.00 [2.00, open]"


def test_replicates_of_one_pretraining_are_drawn_together() -> None:
    draws = draws_of(6, 4, (0, 1, 2, 0, 1, 2))
    joint, whole = draws.replicates[1:8001], draws.replicates[8001:]
    pairs = joint[:, :3] + joint[:, 3:]

    # Each drawn pre-training brings as many draws as it has replicates, and two in all.
    assert set(np.unique(pairs)) == {0, 2, 4, 6}
    assert (joint.sum(axis=1) == 6).all()
    assert (joint[:, 0] != joint[:, 3]).any()
    assert (whole[:, :3] == whole[:, 3:]).all()


def test_two_levels_spread_as_the_formula_says() -> None:
    groups = (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3)
    values = np.array([1, 2, 4, 9, 7, 6, 0, 3, 5, 8, 8, 2], float)
    draws = draws_of(12, 4, groups, 20_000)
    means = draws.replicates @ values / draws.replicates.sum(axis=1)
    by_group = values.reshape(4, 3)

    both, whole = means[20_001:40_001], means[40_001:]

    # Davison and Hinkley 1997, section 3.8: without replacement within groups, and with.
    between = by_group.mean(axis=1).var() / 4
    within = by_group.var(axis=1).mean() / 12
    assert whole.var() == pytest.approx(between, rel=0.04)
    assert both.var() == pytest.approx(between + within, rel=0.04)


def test_freedom_is_that_of_pretrainings_where_they_make_the_difference() -> None:
    shifts = np.array([-1.0, 0.1, 0.9])
    values, groups = np.tile(shifts, 4), (0, 1, 2) * 4
    few, many = draws_of(12, 5, groups), draws_of(12, 5)

    found, naive = (
        draws.estimate(
            Ranges.exact(draws.replicates @ values / draws.replicates.sum(axis=1)),
            confidence=0.95,
        )
        for draws in (few, many)
    )

    # Three means: 2 degrees of freedom. The percentiles of three values are coarse.
    student = stats.t.ppf(0.975, 2) * shifts.std(ddof=1) / math.sqrt(3)
    assert found.high is not None
    assert naive.high is not None
    assert found.high == pytest.approx(student, rel=0.15)
    assert naive.high < 0.4 * student


def test_replicates_of_a_single_pretraining_still_spread() -> None:
    values = np.array([0.1, 0.2, 0.4])
    draws = draws_of(3, 5, (0, 0, 0))

    found = draws.estimate(Ranges.exact(draws.replicates @ values / 3), confidence=0.95)

    assert found.low is not None
    assert found.low < 0.1


@pytest.mark.parametrize(("low", "high"), [(0.0, math.inf), (5.0, math.inf), (0.0, 5.0)])
def test_bounds_give_no_number_that_is_not_finite(low: float, high: float) -> None:
    draws = draws_of(3, 5)
    rows = len(draws.replicates)

    found = draws.estimate(
        Ranges(np.full(rows, low), np.full(rows, high)), confidence=0.95, log=True
    )

    ends = (found.value, found.low, found.high)
    assert all(end is None or math.isfinite(end) for end in ends)
