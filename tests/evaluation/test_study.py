"""The statistics of a convergence benchmark on curves whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from synthetic_study import SLOW, STEPS, L, rising, runs

from mim3d.evaluation.study import TARGETS, Study
from mim3d.foundation.errors import UserError


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_a_curve_with_time_halved_is_twice_as_fast(target: float, noise: float) -> None:
    # The fast arm's noise is the slow one's, at every step: halving time is all that differs.
    slow = runs("scratch", SLOW, noise=noise)
    fast = tuple(
        replace(run, arm="mae", kind="masked", dice=(run.dice[0], *run.dice[2:], run.dice[-1]))
        for run in slow
    )
    study = Study((*slow, *fast))

    factor = study.factor("mae", "scratch", L, target)

    assert factor is not None
    assert factor.bound == ""
    assert factor.value == pytest.approx(2.0, abs=1e-9)
    assert factor.low is not None
    assert factor.high is not None
    assert 1.9 < factor.low <= 2.0 + 1e-9
    assert 2.0 - 1e-9 <= factor.high < 2.1
    assert factor.excludes(1.0)


def test_twice_as_fast_with_noise_of_its_own_is_near_two_and_excludes_one() -> None:
    settings = {"noise": 0.03, "run_noise": 0.01}
    study = Study((*runs("scratch", SLOW, **settings), *runs("mae", rising, **settings)))

    factor = study.factor("mae", "scratch", L)

    assert factor is not None
    assert factor.value == pytest.approx(2.0, rel=0.1)
    assert not factor.excludes(2.0)
    assert factor.excludes(1.0)


def test_the_time_to_a_target_is_that_of_the_formula() -> None:
    steps = tuple(range(0, 1001, 2))
    study = Study((*runs("scratch", SLOW, steps=steps), *runs("mae", rising, steps=steps)))
    best = rising(np.array([1000.0]), speed=0.5)[0]

    found = study.time("mae", L, 0.9)

    assert found is not None
    assert found.value == pytest.approx(-60 * np.log(1 - 0.9 * best / 0.85), abs=0.05)


def test_the_point_estimates_are_those_of_a_slow_loop() -> None:
    both = (
        *runs("scratch", SLOW, noise=0.05, per_subject=2),
        *runs("mae", noise=0.05, per_subject=2),
    )
    study = Study(both)
    means = {
        arm: np.mean([np.mean(run.dice, axis=1) for run in both if run.arm == arm], axis=0)
        for arm in ("scratch", "mae")
    }

    def reached(curve: np.ndarray, target: float) -> float:
        highest = curve[0]
        for before, after, y0, y1 in zip(STEPS, STEPS[1:], curve, curve[1:], strict=False):
            y0 = max(highest, y0)
            if y1 >= target:
                return before + (after - before) * (target - y0) / (y1 - y0)
            highest = max(highest, y1)
        raise AssertionError

    goal = 0.9 * means["scratch"].max()
    factor, final = study.factor("mae", "scratch", L, 0.9), study.final("mae", L)
    assert factor is not None
    assert factor.value == pytest.approx(
        reached(means["scratch"], goal) / reached(means["mae"], goal)
    )
    assert final is not None
    assert final.value == pytest.approx(means["mae"][-1])
    curve = study.curve("mae", L)
    assert curve is not None
    assert curve.mean == pytest.approx(means["mae"])


def test_crossing_curves_are_faster_early_and_slower_late() -> None:
    early = partial(rising, speed=2.0, top=0.78)
    late = partial(rising, speed=0.9, top=0.85)
    study = Study((*runs("scratch", late), *runs("mae", early)))

    first, last = study.factor("mae", "scratch", L, 0.8), study.factor("mae", "scratch", L, 0.95)
    difference = study.difference("mae", "scratch", L)

    assert first is not None
    assert first.value is not None
    assert first.value > 1.5
    assert last is not None
    assert last.bound == "<"
    assert difference is not None
    assert difference.value == pytest.approx(-0.07, abs=0.001)


def test_a_curve_that_falls_again_counts_as_arrived() -> None:
    falling = np.array([0.0, 0.1, 0.5, 0.84, 0.84, 0.7, 0.6, 0.5])
    study = Study((*runs("scratch", SLOW), *runs("mae", lambda steps: falling)))

    time = study.time("mae", L)

    assert time is not None
    assert time.value is not None
    assert 20 < time.value < 40


def test_the_area_is_taken_over_steps_that_all_arms_have() -> None:
    long = (*STEPS, 1280, 2560)
    study = Study((*runs("scratch"), *runs("mae", steps=long)))

    for log in (False, True):
        areas = [study.area(arm, L, log=log) for arm in ("mae", "scratch")]
        one, other = ((area.value, area.low, area.high) for area in areas if area is not None)
        assert one == other


def test_the_target_is_a_share_of_the_best_dice_of_a_reference_that_falls_again() -> None:
    falling = np.array([0.0, 0.2, 0.4, 0.8, 0.8, 0.7, 0.6, 0.5])
    study = Study((*runs("scratch", lambda steps: falling), *runs("mae", lambda steps: falling)))

    times = [study.time(arm, L, 0.9) for arm in ("scratch", "mae")]

    # 0.9 of 0.8 is 0.72, between 0.4 at step 20 and 0.8 at step 40: 20 + 20 * 0.32 / 0.4.
    assert [time.value for time in times if time is not None] == pytest.approx([36, 36])


def test_a_plateau_at_the_target_itself_is_reached_at_its_first_step() -> None:
    flat = np.array([0.0, 0.2, 0.4, 0.8, 0.8, 0.8, 0.8, 0.8])
    study = Study((*runs("scratch", lambda steps: flat), *runs("mae", lambda steps: flat)))

    time = study.time("mae", L, 1.0)

    assert time is not None
    assert (time.value, time.bound) == (40, "")


def test_the_area_begins_where_the_last_of_the_arms_is_first_judged() -> None:
    """From 40 on, and not from step 0, where the other grid cannot be read on a logarithm."""
    late = (0, 40, 80, 160, 320, 640)
    study = Study(
        (*runs("scratch", steps=late), *runs("mae", lambda steps: steps / 1000, steps=STEPS))
    )

    area, log_area = (study.area("mae", L, log=log) for log in (False, True))

    # A straight line from 0.04 to 0.64. On the axis that doubles: four trapezes of width 1.
    assert area is not None
    assert area.value == pytest.approx((0.04 + 0.64) / 2)
    assert log_area is not None
    assert log_area.value == pytest.approx((0.02 + 0.08 + 0.16 + 0.32 + 0.32) / 4)


def test_an_arm_is_measured_against_the_partner_it_names() -> None:
    fine = tuple(replace(run, kind="scratch", pretraining=None)
                 for run in runs("scratch-4", partial(SLOW, top=0.6)))  # fmt: skip
    led = tuple(
        replace(run, against="scratch-4") for run in runs("mae-4", partial(rising, top=0.6))
    )
    study = Study((*runs("scratch", SLOW), *runs("mae"), *fine, *led))

    own, other = study.time("mae-4", L), study.time("mae", L)
    factor, partner = study.factor("mae-4", "scratch-4", L), study.time("scratch-4", L)

    assert [study.partner(arm) for arm in study.arms] == [
        "scratch", "scratch", "scratch-4", "scratch-4",
    ]  # fmt: skip
    # 0.6 never reaches 0.9 of 0.85, and 0.9 of 0.6 as soon as 0.85 does 0.9 of 0.85.
    assert own is not None
    assert other is not None
    assert own.value == pytest.approx(other.value)
    assert partner is not None
    assert partner.value is not None
    assert factor is not None
    assert factor.value == pytest.approx(partner.value / (own.value or 0))


def test_a_pretrained_partner_is_itself_measured_against_the_reference() -> None:
    led = tuple(replace(run, against="mae") for run in runs("mae-dense"))

    study = Study((*runs("scratch", SLOW), *runs("mae"), *led))

    assert (study.partner("mae-dense"), study.partner("mae")) == ("mae", "scratch")


def test_an_arm_with_two_partners_is_refused() -> None:
    one, other, third = runs("mae")

    with pytest.raises(UserError, match="compared with `b`, other runs of the arm with `a`"):
        Study((replace(one, against="a"), replace(other, against="b"), third))
