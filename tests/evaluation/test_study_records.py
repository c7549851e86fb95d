"""Which runs count in the numbers of a study, and which records are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from synthetic_study import SLOW, STEPS, L, record, rising, runs, without_curve

from mim3d.evaluation.study import TARGETS, Study
from mim3d.foundation.errors import UserError
from mim3d.foundation.randomness import generator


def as_numbers(study: Study, *arms: str) -> list[object]:
    """All there is to compare of some arms."""
    numbers: list[object] = []
    for arm in arms:
        numbers += [study.curve(arm, L), study.final(arm, L), study.area(arm, L, log=True)]
        numbers += [study.time(arm, L, x) for x in TARGETS]
        numbers += [study.factor(arm, other, L, x) for x in TARGETS for other in arms]
    return numbers


def test_a_collapsed_run_is_listed_and_in_no_number() -> None:
    sound = (*runs("scratch", SLOW, 4, noise=0.03), *runs("mae", replicates=3, noise=0.03))
    collapsed = record("mae", lambda steps: 0.0 * steps, replicate=3, dead="collapsed: rank 1.0")

    with_it, without = Study((*sound, collapsed)), Study(sound)

    assert with_it.dead == (collapsed,)
    assert as_numbers(with_it, "scratch", "mae") == as_numbers(without, "scratch", "mae")


@pytest.mark.parametrize("arm", ["scratch", "mae"])
def test_a_run_that_died_without_a_curve_leaves_its_pair_out(arm: str) -> None:
    every = (*runs("scratch", SLOW, noise=0.03), *runs("mae", noise=0.03))
    gone = next(run for run in every if run.arm == arm and run.replicate == 1)
    study = Study(tuple(without_curve(run, "NaN") if run is gone else run for run in every))
    pairs = Study(tuple(run for run in every if run.replicate != 1))

    assert study.factor("mae", "scratch", L) == pairs.factor("mae", "scratch", L)
    assert study.difference("mae", "scratch", L) == pairs.difference("mae", "scratch", L)


def test_arms_of_unequal_length_are_compared_where_both_are_done() -> None:
    whole = (*runs("scratch", SLOW, 5, noise=0.03), *runs("mae", replicates=5, noise=0.03))
    ragged = tuple(run for run in whole if run.arm == "scratch" or run.replicate in (1, 3))
    paired = tuple(run for run in whole if run.replicate in (1, 3))

    some, pairs = Study(ragged), Study(paired)

    assert some.factor("mae", "scratch", L) == pairs.factor("mae", "scratch", L)
    assert some.time("mae", L) == pairs.time("mae", L)
    scratch = some.final("scratch", L)
    assert scratch is not None
    assert scratch.replicates == 5


def test_the_order_of_records_changes_nothing() -> None:
    both = (*runs("scratch", SLOW, noise=0.03), *runs("mae", noise=0.03))

    one, two = Study(both), Study(tuple(reversed(both)))

    assert as_numbers(one, "scratch", "mae") == as_numbers(two, "scratch", "mae")


def test_order_of_cases_does_not_matter() -> None:
    run = record("mae", rising, noise=0.05)
    order = generator(0, "order").permutation(len(run.cases))
    other = replace(
        run,
        cases=tuple(run.cases[place] for place in order),
        case_subjects=tuple(run.case_subjects[place] for place in order),
        dice=tuple(tuple(row[place] for place in order) for row in run.dice),
    )
    scratch = record("scratch", SLOW, noise=0.05)

    one, two = (Study((scratch, mae)).difference("mae", "scratch", L) for mae in (run, other))

    assert one is not None
    assert two is not None
    assert (one.value, one.low, one.high) == pytest.approx((two.value, two.low, two.high))


def test_labels_are_ordered_by_their_subjects() -> None:
    made = [
        record("scratch", rising, labels=labels, subjects=count)
        for labels, count in (("1.0", 195), ("5", 5), ("0.1", 20))
    ]

    assert Study(tuple(made)).labels == ("5", "0.1", "1.0")


def test_the_same_run_twice_is_refused() -> None:
    run = record("scratch", rising)

    with pytest.raises(UserError, match="two records of the same run"):
        Study((run, run))


def test_runs_judged_on_other_cases_are_refused() -> None:
    with pytest.raises(UserError, match="judged on other cases than `scratch`"):
        Study((record("scratch", rising), record("mae", rising, cases=29)))


def test_runs_of_an_arm_judged_at_other_steps_are_refused() -> None:
    with pytest.raises(UserError, match="judged at other steps"):
        Study((record("mae", rising), record("mae", rising, replicate=1, steps=STEPS[1:])))
