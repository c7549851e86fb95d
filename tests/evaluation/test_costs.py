"""What pre-training costs and saves, worked by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from synthetic_study import pretraining, record, rising

from mim3d.evaluation.convergence import Record
from mim3d.evaluation.costs import cost, encoder_use, replaced_labels
from mim3d.evaluation.study import Study

SLOW = partial(rising, speed=0.5)
L = "0.1"


def pair(slow: object = SLOW, fast: object = rising) -> Study:
    return Study((record("scratch", slow), record("mae", fast)))  # type: ignore[arg-type]


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
    assert found.break_even_seconds.text() == f"{expected:.1f}"


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
    assert found.break_even_seconds.bound == "<"


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
    assert replaced_labels(study, "mae", "10") == (pytest.approx(20), "")
    assert replaced_labels(study, "high", "10") == (160, ">")
    assert replaced_labels(study, "low", "10") == (10, "<")
    assert replaced_labels(pair(), "mae", L) is None


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
