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


def test_folds_and_replicates_are_drawn_by_their_names_and_not_by_their_number() -> None:
    """Folds of the same size that rose and fell together would widen the interval of their mean."""
    folds = [("a", "b", "c", "d"), ("e", "f", "g", "h")]

    one = draw((0, 1, 2), (0, 1, 2), [folds[0], folds[1], folds[0]], resamples=4000, seed=0)
    other = draw((3, 4, 5), (0, 1, 2), [folds[0]] * 3, resamples=4000, seed=0)

    joint = slice(1, 4001)
    # Four standard errors of the correlation of numbers that have nothing to do with each other.
    limit = 4 / math.sqrt(4000)
    assert abs(np.corrcoef(one.subjects[0][joint, 0], one.subjects[1][joint, 0])[0, 1]) < limit
    assert abs(np.corrcoef(one.replicates[joint, 0], other.replicates[joint, 0])[0, 1]) < limit
    assert np.array_equal(one.subjects[0], one.subjects[2])
    assert np.array_equal(one.subjects[0], other.subjects[0])


def test_freedom_of_replicates_within_pretrainings_is_what_their_means_leave() -> None:
    # Six pairs, each of mean 0: all that differs does so within them.
    shifts = stats.norm.ppf((np.arange(6) + 0.5) / 6)
    values = np.concatenate([shifts, -shifts])
    draws = draws_of(12, 5, (0, 1, 2, 3, 4, 5) * 2)

    found = draws.estimate(Ranges.exact(draws.replicates @ values / 12), confidence=0.95)

    # 12 values less 6 means: 6 degrees of freedom.
    student = stats.t.ppf(0.975, 6) * math.sqrt((values @ values) / 6 / 12)
    assert (found.low, found.high) == pytest.approx((-student, student), rel=0.06)


def test_freedom_of_subjects_is_one_less_than_all_of_them_each_once() -> None:
    draws = draw((0, 1), (0, 1), [("a", "b"), ("b", "c")], resamples=40, seed=0)
    values = np.zeros(1 + 3 * 40)
    values[1:41] = (-1, 1) * 20  # subjects alone make a difference

    found = draws.estimate(Ranges.exact(values), confidence=0.95)

    # Three subjects, hence 2 degrees of freedom for 1.96 deviations of a normal.
    half = stats.t.ppf(0.975, 2) / stats.norm.ppf(0.975)
    assert (found.low, found.high) == pytest.approx((-half, half))


def test_ends_are_the_next_resamples_outside_of_the_percentiles() -> None:
    # So many subjects that nothing is stretched.
    draws = Draws(np.ones((31, 3)), (), resamples=10, groups=3, subject_count=10**9)
    values = np.full(31, 4.5)
    values[1:11] = np.random.default_rng(0).permutation(10)

    found = draws.estimate(Ranges.exact(values), confidence=0.8)

    # The tenth of 0 to 9 is 0.9, between 0 and 1.
    assert (found.low, found.high) == pytest.approx((0, 9), abs=1e-6)


@pytest.mark.parametrize(("number", "ends"), [(1.0, (1.0, 2.0)), (3.0, (2.0, 3.0))])
def test_a_number_lies_in_its_interval_though_no_resample_does(
    number: float, ends: tuple[float, float]
) -> None:
    draws = draws_of(3, 5, resamples=20)
    values = np.full(61, 2.0)
    values[0] = number

    found = draws.estimate(Ranges.exact(values), confidence=0.95)

    assert (found.value, found.low, found.high) == (number, *ends)
