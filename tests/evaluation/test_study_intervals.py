"""Intervals of a convergence benchmark: how often they hold the truth, what is drawn."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from synthetic_study import SLOW, L, from_seed, record, rising, runs

from mim3d.evaluation.convergence import Record
from mim3d.evaluation.study import Study
from mim3d.foundation.randomness import generator


@pytest.mark.parametrize(("noise", "run_noise"), [(0.05, 0.0), (0.04, 0.02)])
def test_the_interval_holds_one_where_nothing_differs(noise: float, run_noise: float) -> None:
    """Broke: percentiles of three replicates as they are held 1 in three studies of four."""
    studies, held, ends = 100, 0, 0
    for seed in range(studies):
        settings = {"noise": noise, "run_noise": run_noise, "seed": seed, "cases": 20}
        study = Study((*runs("scratch", **settings), *runs("mae", **settings)), resamples=300)
        factor, difference = (
            study.factor("mae", "scratch", L),
            study.difference("mae", "scratch", L),
        )
        assert factor is not None
        assert difference is not None
        held += not factor.excludes(1.0)
        ends += not difference.excludes(0.0)

    # 0.95 less two standard errors of a share of 100.
    assert held / studies > 0.90
    assert ends / studies > 0.90


def of_seeds(arm: str, seeds: int, study: int, *, spread: float, count: int = 6) -> list[Record]:
    """Replicates; what a pre-training is worth is the same for all that start from it."""
    made = []
    for place in range(count):
        seed = place % seeds
        luck = 0.0 if arm == "scratch" else generator(study, "luck", arm, seed).normal(0, spread)
        curve = partial(rising, top=0.7 * (1 + luck))
        settings = {"noise": 0.03, "run_noise": 0.01, "cases": 16, "seed": study}
        run = record(arm, curve, replicate=place, **settings)  # type: ignore[arg-type]
        made.append(run if arm == "scratch" else from_seed(run, seed))
    return made


def test_the_interval_holds_nought_where_replicates_share_three_pretrainings() -> None:
    """Broke: as if independent, nine replicates of three pre-trainings held 0 in 70 of 100."""
    studies, held = 60, 0
    for seed in range(studies):
        made = [
            run
            for arm in ("scratch", "mae")
            for run in of_seeds(arm, 3, seed, spread=0.04, count=9)
        ]
        difference = Study(tuple(made), resamples=300).difference("mae", "scratch", L)
        assert difference is not None
        assert (difference.replicates, difference.pretrainings) == (9, 3)
        held += not difference.excludes(0.0)

    # 0.95 less three standard errors of a share of 60.
    assert held / studies > 0.86


def test_shared_pretrainings_widen_the_interval_and_no_number() -> None:
    shared = tuple(run for arm in ("scratch", "mae") for run in of_seeds(arm, 2, 0, spread=0.1))
    own = tuple(run if run.pretraining is None else from_seed(run, run.replicate) for run in shared)

    few, many = (Study(made).difference("mae", "scratch", L) for made in (shared, own))

    assert few is not None
    assert many is not None
    assert few.value == many.value
    assert (few.pretrainings, many.pretrainings) == (2, 6)
    assert few.low is not None
    assert many.low is not None
    assert few.low < many.low


def test_of_two_arms_the_coarser_pretrainings_count() -> None:
    mae, simclr = of_seeds("mae", 6, 0, spread=0.1), of_seeds("simclr", 3, 0, spread=0.1)
    # Replicates 0 and 1 share one of `byol`, so they hang together with those of `simclr`.
    byol = [from_seed(run, max(run.replicate, 1)) for run in of_seeds("byol", 6, 0, spread=0.1)]
    study = Study((*of_seeds("scratch", 6, 0, spread=0.1), *mae, *simclr, *byol))

    def behind(arm: str, other: str) -> int:
        found = study.difference(arm, other, L)
        assert found is not None
        return found.pretrainings

    assert behind("mae", "scratch") == 6
    assert behind("mae", "simclr") == behind("simclr", "mae") == 3
    assert behind("byol", "scratch") == 5
    assert behind("byol", "simclr") == 2
    final = study.final("scratch", L)
    assert final is not None
    assert final.pretrainings == 0


def test_the_target_moves_with_the_reference_in_each_resample() -> None:
    # Replicates end at other heights, all arms alike: the time to a share of the best is the same.
    made = [
        record(arm, partial(rising, top=top, speed=speed), replicate=place)
        for arm, speed in (("scratch", 0.5), ("mae", 1.0))
        for place, top in enumerate((0.6, 0.7, 0.85))
    ]

    time = Study(tuple(made)).time("mae", L)

    assert time is not None
    assert time.low == pytest.approx(time.value)
    assert time.high == pytest.approx(time.value)


def test_the_same_subjects_and_replicates_are_drawn_for_both_arms() -> None:
    one = runs("scratch", noise=0.05, run_noise=0.05)
    other = tuple(replace(run, arm="mae", kind="masked") for run in one)

    difference = Study((*one, *other)).difference("mae", "scratch", L)

    assert difference is not None
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)
    # An end belongs to its interval: arms that are one and the same do not differ.
    assert not difference.excludes(0.0)


def test_replicates_of_different_folds_are_resampled_by_their_own_subjects() -> None:
    def folded(arm: str, place: int) -> Record:
        run = record(arm, rising, replicate=place, noise=0.05)
        names = tuple(f"fold{place}_{case}" for case in run.cases)
        return replace(run, fold=place, cases=names, case_subjects=names)

    study = Study(tuple(folded(arm, place) for arm in ("scratch", "mae") for place in range(5)))
    runs_of = study.runs("mae", L).values()

    final = study.final("mae", L)

    assert final is not None
    assert final.value == pytest.approx(np.mean([np.mean(run.dice[-1]) for run in runs_of]))
    assert final.low is not None
    assert final.low < final.value


def test_a_case_of_many_counts_once_and_its_subject_is_drawn_whole() -> None:
    # One subject holds 29 of 30 cases and is far better: the interval must know of two subjects.
    run = record("scratch", rising)
    owners = ("small", *("large",) * 29)
    dice = tuple((row[0] * 0.5, *row[1:]) for row in run.dice)
    study = Study((replace(run, case_subjects=owners, dice=dice),))

    final = study.final("scratch", L)

    assert final is not None
    assert final.value == pytest.approx(np.mean(dice[-1]))
    assert final.low is not None
    assert final.low <= dice[-1][0]


def test_another_seed_of_the_bootstrap_moves_the_interval_alone() -> None:
    both = (*runs("scratch", SLOW, noise=0.03), *runs("mae", noise=0.03))

    one, two = (Study(both, seed=seed).final("mae", L) for seed in (0, 1))

    assert one is not None
    assert two is not None
    assert one.value == two.value
    assert one.low != two.low
