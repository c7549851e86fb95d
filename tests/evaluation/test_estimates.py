"""Time to a target, area and intervals against formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mim3d.evaluation.estimates import Estimate, Ranges, first_reached, known, mean_height


def test_a_target_is_reached_between_steps_on_the_running_maximum() -> None:
    steps = np.array([0.0, 10, 20, 40])
    # Falls after step 10; 0.6 is reached a third of the way from 20 (still 0.5) to 40 (0.8).
    curve = np.array([[0.0, 0.5, 0.3, 0.8]])

    found = first_reached(steps, curve, np.array([0.6]))

    assert found.low[0] == found.high[0] == pytest.approx(20 + 20 / 3)


def test_a_target_that_is_never_reached_lies_beyond_the_last_step() -> None:
    found = first_reached(np.array([10.0, 20]), np.array([[0.1, 0.2]]), np.array([0.3]))

    assert (found.low[0], found.high[0]) == (20, math.inf)


def test_a_target_that_is_there_when_first_judged_lies_before() -> None:
    found = first_reached(np.array([10.0, 20]), np.array([[0.4, 0.5]]), np.array([0.3]))

    assert (found.low[0], found.high[0]) == (0, 10)


@pytest.mark.parametrize("curve", [[0.4, 0.5, 0.6], [0.1, 0.4, 0.6], [0.4, 0.2, 0.1]])
def test_what_is_there_at_step_0_or_between_it_and_the_next_lies_before_that(
    curve: list[float],
) -> None:
    """Broke: a time of 0 made the speed-up infinite, which no report can hold."""
    found = first_reached(np.array([0.0, 10, 20]), np.array([curve]), np.array([0.3]))

    assert (found.low[0], found.high[0]) == (0, 10)


def test_step_0_alone_tells_no_time() -> None:
    found = first_reached(np.array([0.0]), np.array([[0.4]]), np.array([0.3]))

    assert (found.low[0], found.high[0]) == (0, math.inf)


def test_what_is_known_is_never_infinite() -> None:
    assert known(math.inf, math.inf) == (None, "")
    assert known(0.0, math.inf) == (None, "")


def test_a_single_judged_step_bounds_from_either_side() -> None:
    found = first_reached(np.array([10.0]), np.array([[0.4], [0.2]]), np.array([0.3, 0.3]))

    assert found.low.tolist() == [0, 10]
    assert found.high.tolist() == [10, math.inf]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((200, 200), (100, 100), (2, 2)),
        ((320, math.inf), (100, 100), (3.2, math.inf)),
        ((100, 100), (320, math.inf), (0, 100 / 320)),
        ((320, math.inf), (320, math.inf), (0, math.inf)),
        ((100, 100), (0, 10), (10, math.inf)),
        ((0, 0), (0, 0), (0, math.inf)),
    ],
)
def test_quotients_of_bounds_are_bounds(
    one: tuple[float, float], other: tuple[float, float], expected: tuple[float, float]
) -> None:
    ranges = [Ranges(np.array([low], float), np.array([high])) for low, high in (one, other)]

    quotient = ranges[0].over(ranges[1])

    assert (quotient.low[0], quotient.high[0]) == pytest.approx(expected)


@pytest.mark.parametrize("log", [False, True])
def test_mean_height_is_the_area_of_a_fine_grid(log: bool) -> None:
    steps = np.array([0.0, 10, 30, 100, 320])
    curves = np.array([[0.0, 0.2, 0.5, 0.6, 0.8], [0.1, 0.1, 0.7, 0.4, 0.9]])
    kept = slice(1, None) if log else slice(None)
    axis = np.log if log else np.asarray
    fine = np.linspace(axis(10.0), axis(250.0), 200_001)

    found = mean_height(steps, curves, 10, 250, log=log)

    slow = [np.interp(fine, axis(steps[kept]), curve[kept]).mean() for curve in curves]
    assert found == pytest.approx(slow, abs=1e-5)


def test_mean_height_of_a_single_step_is_the_height() -> None:
    assert mean_height(np.array([10.0]), np.array([[0.4]]), 10, 10, log=True)[0] == 0.4


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(2.0, "", 1.8, 2.306, 3), "2.00 [1.80, 2.31]"),
        (Estimate(300.0, ">", 300.0, None, 3), "> 300.00"),
        (Estimate(1.52, ">", 1.2, None, 3), "> 1.52 [1.20, open]"),
        (Estimate(0.5, "<", None, 0.5, 3), "< 0.50"),
        (Estimate(0.8, "", None, None, 3), "0.80 [open, open]"),
        (Estimate(None, "", None, None, 3), "-"),
    ],
)
def test_an_estimate_in_words(estimate: Estimate, text: str) -> None:
    assert estimate.text() == text


def test_an_open_interval_excludes_only_what_lies_on_its_closed_side() -> None:
    bound = Estimate(1.52, ">", 1.2, None, 3)

    assert bound.excludes(1.0)
    assert not bound.excludes(100.0)


@pytest.mark.parametrize(
    ("replicates", "pretrainings", "repeated"),
    [(1, 0, False), (3, 0, True), (3, 1, False), (4, 2, True)],
)
def test_an_estimate_from_one_pretraining_is_not_repeated(
    replicates: int, pretrainings: int, repeated: bool
) -> None:
    assert Estimate(1.0, "", 0.9, 1.1, replicates, pretrainings).is_repeated is repeated


def test_an_interval_ends_where_its_number_does():
    wide = Estimate(0.4, "", -0.48, 1.31, 2)

    assert wide.within(0.0, 1.0) == Estimate(0.4, "", 0.0, 1.0, 2)
    assert Estimate(0.4, "", None, 0.5, 2).within(0.0, 1.0) == Estimate(0.4, "", None, 0.5, 2)


def test_an_end_that_no_judged_step_could_tell_is_open() -> None:
    """Broke: steps judged from 10 to 300 gave factors of `[0.90, 4220.86]` and 4 steps."""
    factor = Estimate(2.46, "", 0.9, 4220.86, 2)

    assert factor.seen(1 / 30, 30).text() == "2.46 [0.90, open]"
    assert Estimate(125.0, "", 4.0, 3963.0, 2).seen(10, 300).text(0) == "125 [open, open]"
    assert Estimate(39.0, "", 10.0, 300.0, 2).seen(10, 300).text(0) == "39 [10, 300]"
    assert factor.seen(1 / 30, 30).excludes(0.5)
    assert not factor.seen(1 / 30, 30).excludes(5000)


def test_differences_of_what_is_only_bounded_are_bounded_as_far_as_can_be() -> None:
    late = Ranges(np.array([300.0, 100.0]), np.array([np.inf, 100.0]))  # never, and at 100
    early = Ranges(np.array([0.0, 40.0]), np.array([10.0, 40.0]))  # at once, and at 40

    saved = late * 2.0 - early * 2.0

    assert saved.low.tolist() == [580.0, 120.0]
    assert saved.high.tolist() == [np.inf, 120.0]
    assert (early - late).low.tolist() == [-np.inf, -60.0]
