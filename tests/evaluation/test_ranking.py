"""Paired tests of the final Dice and their correction."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from synthetic_study import from_seed, record, rising

from mim3d.evaluation.convergence import Record
from mim3d.evaluation.ranking import comparisons, holm, signed_rank
from mim3d.evaluation.study import Study

L = "0.1"


def study_of(
    heights: dict[str, float], replicates: int = 3, resamples: int = 500, **settings: object
) -> Study:
    made: list[Record] = [
        record(arm, partial(rising, top=top), replicate=place, **settings)  # type: ignore[arg-type]
        for arm, top in heights.items()
        for place in range(replicates)
    ]
    return Study(tuple(made), resamples=resamples)


def test_the_signed_rank_test_is_that_of_all_signs() -> None:
    differences = np.array([0.3, -0.1, 0.7, 1.1, -0.2, 0.5])
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1
    seen = ranks[differences > 0].sum()
    middle = ranks.sum() / 2
    every = [np.dot(signs, ranks) for signs in itertools.product((0, 1), repeat=6)]

    as_far = np.mean([abs(total - middle) >= abs(seen - middle) for total in every])

    assert signed_rank(differences) == pytest.approx(as_far)


def test_nothing_differs_where_all_differences_are_nought() -> None:
    assert signed_rank(np.zeros(5)) == 1.0


def test_holms_correction_is_that_worked_by_hand() -> None:
    # Sorted 0.01 x 4, 0.02 x 3, 0.03 x 2 (raised to 0.06 before), 0.8.
    assert holm([0.03, 0.01, 0.8, 0.02]) == pytest.approx((0.06, 0.04, 0.8, 0.06))
    assert holm([0.6, 0.7]) == (1.0, 1.0)
    assert holm([]) == ()


def test_every_arm_is_compared_with_its_partner_and_masked_ones_with_each_contrastive() -> None:
    heights = {
        "scratch": 0.8,
        "mae": 0.85,
        "simclr": 0.8,
        "byol": 0.7,
        "scratch-4": 0.8,
        "mae-4": 0.9,
    }
    study = study_of(heights, noise=0.03, resamples=20)
    said = {"byol": {"kind": "contrastive"}, "scratch-4": {"kind": "scratch", "pretraining": None},
            "mae-4": {"kind": "masked", "against": "scratch-4"}}  # fmt: skip
    made = [replace(run, **said.get(run.arm, {})) for run in study.records]

    pairs = [(row.arm, row.other) for row in comparisons(Study(tuple(made), resamples=20), L)]

    assert pairs == [
        ("mae", "scratch"), ("simclr", "scratch"), ("byol", "scratch"), ("mae-4", "scratch-4"),
        ("mae", "simclr"), ("mae", "byol"),
    ]  # fmt: skip


def test_p_values_are_corrected_over_all_comparisons_of_the_labels() -> None:
    rows = comparisons(study_of({"scratch": 0.8, "mae": 0.81, "simclr": 0.8}, noise=0.03), L)

    assert tuple(row.p_holm for row in rows) == holm([row.p for row in rows])


def test_a_difference_of_every_subject_is_shown_with_its_size() -> None:
    rows = comparisons(study_of({"scratch": 0.75, "mae": 0.80}, noise=0.02), L)

    assert rows[0].shown
    assert rows[0].difference.value == pytest.approx(0.05, abs=0.01)
    assert rows[0].subjects == 30


def test_a_subject_of_two_cases_is_one_pair() -> None:
    rows = comparisons(study_of({"scratch": 0.75, "mae": 0.80}, noise=0.02, per_subject=2), L)

    assert rows[0].subjects == 15


def test_one_replicate_shows_no_difference_between_methods() -> None:
    rows = comparisons(study_of({"scratch": 0.7, "mae": 0.8}, replicates=1, noise=0.02), L)

    assert rows[0].p_holm < 0.001
    assert not rows[0].shown


def test_one_pretraining_shows_no_difference_between_methods() -> None:
    study = study_of({"scratch": 0.7, "mae": 0.8}, noise=0.02)
    one = tuple(run if run.pretraining is None else from_seed(run, 0) for run in study.records)

    assert comparisons(study, L)[0].shown
    assert not comparisons(Study(one, resamples=500), L)[0].shown


@pytest.mark.parametrize("run_noise", [0.0, 0.02])
def test_hardly_a_study_of_equal_arms_shows_a_difference(run_noise: float) -> None:
    """With runs that differ the test alone rejects in half of such studies; see `comparisons`."""
    equal, studies, rejected, shown = {"scratch": 0.8, "mae": 0.8}, 100, 0, 0
    for seed in range(studies):
        study = study_of(equal, resamples=300, noise=0.05, run_noise=run_noise, seed=seed, cases=20)
        row = comparisons(study, L)[0]
        rejected += row.p_holm < 0.05
        shown += row.shown

    # 0.05 and two standard errors of a share of 100.
    assert shown / studies < 0.10
    if run_noise == 0:
        assert rejected / studies < 0.10
    else:
        assert rejected / studies > 0.20


def test_holm_keeps_wrong_rejections_rare_over_several_arms() -> None:
    equal = {"scratch": 0.8, "mae": 0.8, "simclr": 0.8, "other": 0.8}
    rejected = sum(
        any(row.p_holm < 0.05 for row in comparisons(
            study_of(equal, resamples=20, noise=0.05, seed=seed, cases=20), L))
        for seed in range(100)
    )  # fmt: skip

    assert rejected / 100 < 0.10
