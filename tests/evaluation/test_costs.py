"""What pre-training costs and saves, worked by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from synthetic_study import pretraining, record, rising

from mim3d.evaluation.convergence import Record
from mim3d.evaluation.costs import cost, encoder_use, replaced_labels
from mim3d.evaluation.estimates import Array, Ranges
from mim3d.evaluation.study import HEADLINE, Study

SLOW = partial(rising, speed=0.5)
L = "0.1"


def pair(slow: object = SLOW, fast: object = rising) -> Study:
    return Study((record("scratch", slow), record("mae", fast)))  # type: ignore[arg-type]


def replaced(study: Study, arm: str) -> tuple[Any, str]:
    found = replaced_labels(study, arm, "10")
    assert found is not None
    return found.value, found.bound


def test_one_pretraining_in_units_of_one_finetuning() -> None:
    found = cost(pair(), "mae", L)

    # Pre-training: 600 s and 6.4e12; fine-tuning: 64 s and 6.4e11.
    assert found is not None
    assert found.in_finetunings("seconds") == pytest.approx(9.375)
    assert found.in_finetunings("flop") == pytest.approx(10)


def test_pretraining_pays_after_its_price_over_what_one_finetuning_saves() -> None:
    study = pair()
    slow, fast = study.time("scratch", L), study.time("mae", L)

    found = cost(study, "mae", L)

    # 640 steps take 64 s, so a step takes 0.1 s.
    assert slow is not None
    assert fast is not None
    assert slow.value is not None
    assert fast.value is not None
    assert found is not None
    assert found.break_even_seconds is not None
    expected = 600 / ((slow.value - fast.value) * 0.1)
    assert found.break_even_seconds.finetunings == pytest.approx(expected)
    assert found.break_even_seconds.text() == f"{expected:.1f} [{expected:.1f}, {expected:.1f}]"


def test_an_arm_that_is_slower_never_pays() -> None:
    found = cost(pair(rising, SLOW), "mae", L)

    assert found is not None
    assert found.break_even_flop is not None
    assert found.break_even_flop.text() == "never"


def test_a_busy_machine_makes_no_arm_dearer_whose_steps_are_the_same() -> None:
    """A step is 0.1 s in three of four runs: what the fourth waited for is nobody's price."""
    slow = (record("scratch", SLOW), replace(record("scratch", SLOW, replicate=1), seconds=6400.0))
    fast = (record("mae", rising), record("mae", rising, replicate=1))

    even, busy = (cost(Study((*runs, *fast)), "mae", L) for runs in (
        (slow[0], replace(slow[1], seconds=64.0)), slow
    ))  # fmt: skip

    assert even is not None
    assert busy is not None
    assert busy.break_even_seconds == even.break_even_seconds
    assert even.break_even_seconds is not None
    assert even.break_even_seconds.finetunings is not None


def test_each_arm_pays_its_own_price_where_a_step_is_another() -> None:
    """Twice the arithmetic in one and a half times the time: of 0.1 s and of 0.15 s a step."""
    dear = replace(record("mae", rising), flop=1.28e12, seconds=96.0)
    slow, fast = pair().time("scratch", L), pair().time("mae", L)

    found = cost(Study((record("scratch", SLOW), dear)), "mae", L)

    assert slow is not None
    assert slow.value is not None
    assert fast is not None
    assert fast.value is not None
    assert found is not None
    assert found.break_even_seconds is not None
    expected = 600 / (slow.value * 0.1 - fast.value * 0.15)
    assert found.break_even_seconds.finetunings == pytest.approx(expected)


def test_an_arm_that_never_arrives_never_pays() -> None:
    found = cost(pair(SLOW, partial(rising, top=0.4)), "mae", L)

    assert found is not None
    assert found.break_even_flop is not None
    assert found.break_even_flop.never


def test_an_arm_that_is_there_when_first_judged_pays_after_at_most_or_at_least() -> None:
    steps = (20, 40, 80)
    study = Study(
        (record("scratch", SLOW, steps=steps),
         record("mae", partial(rising, speed=40.0), steps=steps))
    )  # fmt: skip

    found = cost(study, "mae", L)

    assert found is not None
    assert found.break_even_seconds is not None
    # There by step 20 at the latest, so it saves at least what scratch needs more than 20 steps.
    slow = study.time("scratch", L)
    assert slow is not None
    assert slow.value is not None
    assert found.break_even_seconds.bound == "<"
    seconds = 64.0 / 80  # of a step
    expected = 600 / ((slow.value - 20) * seconds)
    assert found.break_even_seconds.finetunings == pytest.approx(expected)


def test_what_may_save_nothing_may_pay_after_more_than_a_number() -> None:
    """Both are there when first judged, at step 20: at most 20 steps are saved."""
    steps = (20, 40, 80)
    fast = partial(rising, speed=40.0)
    study = Study((record("scratch", fast, steps=steps), record("mae", fast, steps=steps)))

    found = cost(study, "mae", L)

    assert found is not None
    assert found.break_even_seconds is not None
    assert found.break_even_seconds.bound == ">"
    assert found.break_even_seconds.finetunings == pytest.approx(600 / (20 * 64.0 / 80))


def test_the_interval_of_what_pays_is_that_of_what_is_saved_turned_round() -> None:
    """Three replicates whose own savings are known: 600 s over 0.1 s a step of each."""
    speeds = (0.4, 0.5, 0.6)
    slow = [record("scratch", partial(rising, speed=speed), replicate=place)
            for place, speed in enumerate(speeds)]  # fmt: skip
    study = Study((*slow, *(record("mae", rising, replicate=place) for place in range(3))))

    found = cost(study, "mae", L)

    assert found is not None
    even = found.break_even_seconds
    assert even is not None
    assert even.finetunings is not None
    assert even.low is not None
    assert even.high is not None
    assert even.low < even.finetunings < even.high
    arms = ("scratch", "mae", "scratch")

    def steps(curves: Sequence[Array]) -> Ranges:
        scratch, mae, _ = study.times(L, arms, curves, HEADLINE)
        return scratch - mae

    saved = study.estimate(tuple((arm, L) for arm in arms), steps, what="saved steps")
    assert saved is not None
    assert saved.low is not None
    assert saved.high is not None
    assert (even.low, even.high) == pytest.approx((6000 / saved.high, 6000 / saved.low))


def test_an_arm_that_may_be_slower_may_never_pay() -> None:
    """Ahead in one replicate and behind in another: a number, open above."""
    runs = [
        record(arm, partial(rising, speed=speed), replicate=place)
        for arm, both in (("scratch", (0.3, 1.0)), ("mae", (1.0, 0.6)))
        for place, speed in enumerate(both)
    ]

    found = cost(Study(tuple(runs)), "mae", L)

    assert found is not None
    even = found.break_even_seconds
    assert even is not None
    assert even.finetunings is not None
    assert even.low is not None
    assert even.high is None
    assert even.text() == f"{even.finetunings:.1f} [{even.low:.1f}, open]"


def test_a_price_is_paid_back_on_the_replicates_that_both_have() -> None:
    """Broke when unpaired: the fastest run from scratch has no counterpart."""
    lone = record("scratch", partial(rising, speed=2.0), replicate=1)
    both = pair()

    found, paired = cost(Study((*both.records, lone)), "mae", L), cost(both, "mae", L)

    assert found is not None
    assert paired is not None
    assert found.break_even_seconds == paired.break_even_seconds


def test_a_pretraining_that_had_to_wait_is_nobodys_price() -> None:
    """Broke: a mean of 600 s, 600 s and 6,000 s was called the cost of one."""
    runs = [
        replace(record("mae", rising, replicate=place),
                pretraining=replace(pretraining("mae", place), seconds=seconds))
        for place, seconds in enumerate((600.0, 6000.0, 600.0))
    ]  # fmt: skip

    found = cost(Study(tuple(runs)), "mae", L)

    assert found is not None
    assert found.pretraining_seconds == 600.0


def test_pretrainings_that_serve_several_finetunings_count_once() -> None:
    cheap, dear = pretraining("mae", 0), replace(pretraining("mae", 1), seconds=1200.0)
    runs: list[Record] = [
        replace(record("mae", rising, replicate=place), pretraining=before)
        for place, before in enumerate((cheap, cheap, dear))
    ]

    found = cost(Study(tuple(runs)), "mae", L)

    assert found is not None
    assert (found.pretraining_runs, found.pretraining_seconds) == (2, 900.0)


def test_scratch_costs_nothing_before() -> None:
    found = cost(pair(), "scratch", L)

    assert found is not None
    assert (found.pretraining_runs, found.in_finetunings("flop")) == (0, 0.0)
    assert found.break_even_flop is None


def test_labels_replaced_lie_on_the_references_curve() -> None:
    # Scratch ends at 0.6, 0.7 and 0.8 with 10, 40 and 160 subjects; steps are long enough.
    steps = (0, 10, 10_000)
    scratch = [
        record("scratch", partial(rising, top=top), labels=str(n), subjects=n, steps=steps)
        for n, top in ((10, 0.6), (40, 0.7), (160, 0.8))
    ]
    arms = [
        record(arm, partial(rising, top=top), labels="10", subjects=10, steps=steps)
        for arm, top in (("mae", 0.65), ("high", 0.9), ("low", 0.5))
    ]
    study = Study((*scratch, *arms))

    # Halfway between 10 and 40 on a logarithmic axis: 20.
    assert replaced(study, "mae") == (pytest.approx(20), "")
    assert replaced(study, "high") == (160, ">")
    assert replaced(study, "low") == (10, "<")
    assert replaced_labels(pair(), "mae", L) is None


def test_labels_are_replaced_on_the_replicates_that_are_at_every_fraction() -> None:
    """Broke: scratch's means were over other replicates at each fraction, luckier ones at 10."""
    steps = (0, 10, 10_000)
    scratch = [
        record("scratch", partial(rising, top=top), labels=str(n), subjects=n, steps=steps,
               replicate=place)
        for n, top, place in ((10, 0.6, 0), (10, 0.8, 1), (40, 0.7, 0))
    ]  # fmt: skip
    mae = [
        record("mae", partial(rising, top=top), labels="10", subjects=10, steps=steps,
               replicate=place)
        for top, place in ((0.65, 0), (0.9, 1))
    ]  # fmt: skip

    found = replaced_labels(Study((*scratch, *mae)), "mae", "10")

    assert found is not None
    assert found.value == pytest.approx(20)
    assert found.replicates == 1
    assert replaced_labels(Study((*scratch[:2], *mae)), "mae", "10") is None, "one fraction"
    assert replaced_labels(Study((*scratch[1:], *mae)), "mae", "10") is None, "none is shared"


def test_more_labels_that_lower_the_reference_replace_none() -> None:
    """0.6, 0.75, 0.7 with 10, 40, 160: a running maximum, so 0.72 is on the way to 40."""
    steps = (0, 10, 10_000)
    scratch = [
        record("scratch", partial(rising, top=top), labels=str(n), subjects=n, steps=steps)
        for n, top in ((10, 0.6), (40, 0.75), (160, 0.7))
    ]
    arms = [
        record(arm, partial(rising, top=top), labels="10", subjects=10, steps=steps)
        for arm, top in (("mae", 0.72), ("high", 0.76))
    ]

    study = Study((*scratch, *arms))

    assert replaced(study, "mae") == (pytest.approx(10 * 4 ** (0.12 / 0.15)), "")
    assert replaced(study, "high") == (160, ">")


def test_replaced_labels_lie_between_those_of_luckier_and_unluckier_runs() -> None:
    """Replicates at 20 and 80 subjects: the middle is 40, and an interval of two is wide open."""
    steps = (0, 10, 10_000)
    scratch = [
        record("scratch", partial(rising, top=top), labels=str(n), subjects=n, steps=steps,
               replicate=place)
        for n, top in ((10, 0.6), (160, 0.8)) for place in (0, 1)
    ]  # fmt: skip
    mae = [
        record("mae", partial(rising, top=top), labels="10", subjects=10, steps=steps,
               replicate=place)
        for top, place in ((0.65, 0), (0.75, 1))
    ]  # fmt: skip

    found = replaced_labels(Study((*scratch, *mae)), "mae", "10")

    assert found is not None
    assert found.value == pytest.approx(40, rel=1e-3)
    assert (found.low, found.high) == (None, None), "stretched past 10 and 160"
    assert found.text(0) == "40 [open, open]"


def test_the_audit_puts_the_zeroed_encoder_beside_the_real_one_over_the_same_cases() -> None:
    """Broke: the scalar is a mean over structures; beside a mean over cases it is another thing."""
    runs = tuple(
        replace(record("mae", rising, replicate=place, cases=2, noise=0.05), zeroed=0.9,
                zeroed_cases=zeroed)
        for place, zeroed in enumerate(((0.1, 0.5), (0.2, 0.6), None))
    )  # fmt: skip

    found = encoder_use(Study(runs), "mae", L)

    assert found is not None
    assert found.is_alike
    assert found.runs == 2
    assert found.zeroed == pytest.approx(0.35)
    assert found.dice == pytest.approx(sum(sum(run.dice[-1]) for run in runs[:2]) / 4)


def test_the_audit_of_older_records_says_what_it_is() -> None:
    runs = (
        replace(record("mae", rising), zeroed=0.2),
        replace(record("mae", rising, replicate=1), zeroed=0.4),
        replace(record("mae", rising, replicate=2), zeroed=None),
    )

    found = encoder_use(Study(runs), "mae", L)

    assert found is not None
    assert not found.is_alike
    assert found.dice == pytest.approx(0.85, abs=1e-3)
    assert found.zeroed == pytest.approx(0.3)
    assert encoder_use(Study(runs[2:]), "mae", L) is None


def test_pretraining_pays_over_what_the_partner_would_need() -> None:
    fine = replace(record("scratch-4", partial(SLOW, top=0.6)), kind="scratch", pretraining=None)
    led = replace(record("mae-4", partial(rising, top=0.6)), against="scratch-4")
    study = Study((record("scratch", SLOW), record("mae", rising), fine, led))  # type: ignore[arg-type]

    one, other = cost(study, "mae", L), cost(study, "mae-4", L)

    assert one is not None
    assert other is not None
    assert one.break_even_seconds is not None
    assert other.break_even_seconds is not None
    assert other.break_even_seconds.finetunings == pytest.approx(one.break_even_seconds.finetunings)
