"""Arms that never reach a target, or are there before the first step: bounds."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from synthetic_study import SLOW, L, record, rising, runs

from mim3d.evaluation.study import Study


def test_an_arm_that_never_arrives_is_a_bound() -> None:
    low = partial(rising, top=0.5)
    study = Study((*runs("scratch", SLOW), *runs("mae", rising), *runs("byol", low)))

    time = study.time("byol", L)
    slower = study.factor("byol", "scratch", L)
    faster = study.factor("mae", "byol", L)

    assert time is not None
    assert time.text(0) == "> 640"
    assert slower is not None
    assert (slower.bound, slower.low) == ("<", None)
    assert faster is not None
    assert (faster.bound, faster.high) == (">", None)
    mae = study.time("mae", L)
    assert mae is not None
    assert mae.value is not None
    assert faster.value == pytest.approx(640 / mae.value)


def test_an_arm_that_is_there_at_step_0_is_a_bound() -> None:
    """Broke: a time of 0 made factors infinite and the report impossible to write."""
    ready = partial(rising, speed=0.5, top=0.05)
    study = Study(
        (*runs("scratch", SLOW, noise=0.03), *runs("mae", noise=0.03),
         *runs("linear", lambda steps: 0.8 + ready(steps), noise=0.03))
    )  # fmt: skip

    time, ahead = study.time("linear", L), study.factor("linear", "scratch", L)
    behind, same = study.factor("mae", "linear", L), study.factor("linear", "linear", L)

    assert time is not None
    assert time.text(0) == "< 10"
    scratch = study.time("scratch", L)
    assert scratch is not None
    assert scratch.value is not None
    assert ahead is not None
    assert (ahead.bound, ahead.high) == (">", None)
    assert ahead.value == pytest.approx(scratch.value / 10)
    assert ahead.excludes(1.0)
    assert behind is not None
    assert (behind.bound, behind.low) == ("<", None)
    assert same is not None
    assert (same.value, same.low, same.high) == (None, None, None)


def test_two_arms_that_never_arrive_cannot_be_told_apart() -> None:
    low, lower = partial(rising, top=0.5), partial(rising, top=0.4)
    study = Study((*runs("scratch"), *runs("byol", low), *runs("dino", lower)))

    factor = study.factor("byol", "dino", L)

    assert factor is not None
    assert (factor.value, factor.low, factor.high) == (None, None, None)


def test_an_arm_that_arrives_in_some_resamples_has_an_open_interval() -> None:
    # 0.9 of 0.85 is 0.765: two replicates end above, one far below, their mean hardly above.
    tops = (0.85, 0.85, 0.62)
    some = tuple(
        record("byol", partial(rising, top=top), replicate=place) for place, top in enumerate(tops)
    )
    study = Study((*runs("scratch"), *some))

    time, factor = study.time("byol", L), study.factor("byol", "scratch", L)

    assert time is not None
    assert time.bound == ""
    assert time.high is None
    assert factor is not None
    assert factor.low is None


def test_without_a_run_of_the_reference_there_is_no_target() -> None:
    study = Study(runs("mae"))

    assert study.time("mae", L) is None
    assert study.factor("mae", "scratch", L) is None
    assert study.final("mae", L) is not None
    assert study.best_contrastive(L) is None


def test_intervals_of_dice_stay_where_dice_can_be() -> None:
    """Two subjects, 0.2 and 0.8: Student's t would stretch the interval far past both ends."""
    made = [
        replace(one, dice=tuple((0.02 * step, 0.2 + 0.6 * (step > 0)) for step in range(8)))
        for arm in ("mae", "scratch")
        for place in range(2)
        for one in [record(arm, rising, replicate=place, cases=2)]
    ]
    study = Study(tuple(made), "scratch", 500)

    for estimate in (study.final("mae", L), study.area("mae", L, log=False)):
        assert estimate is not None
        assert (estimate.low, estimate.high) == (0.0, 1.0)
    moved = [replace(made[0], dice=((0.0, 1.0),) * 8), made[1], *made[2:]]
    difference = Study(tuple(moved), "scratch", 500).difference("mae", "scratch", L)
    assert difference is not None
    assert difference.high == 1.0
