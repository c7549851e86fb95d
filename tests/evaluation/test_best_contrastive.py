"""Which contrastive arm a report calls the best: on curves whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from synthetic_study import SLOW, STEPS, L, record, rising, runs

from mim3d.evaluation.convergence import Record
from mim3d.evaluation.study import Study


def test_the_best_contrastive_arm_is_one_with_the_same_partner() -> None:
    made = [
        replace(run, kind="contrastive", against=partner)
        for arm, partner in (("simclr", None), ("simclr-4", "scratch-4"))
        for run in runs(arm, partial(rising, speed=2.0 if partner else 1.0))
    ]
    fine = [replace(run, kind="scratch", pretraining=None) for run in runs("scratch-4", SLOW)]
    study = Study((*runs("scratch", SLOW), *fine, *made))  # type: ignore[arg-type]

    assert study.best_contrastive(L) == "simclr"
    assert study.best_contrastive(L, partner="scratch-4") == "simclr-4"
    assert study.contrastive(L, "scratch") == ("simclr",)


def test_the_best_contrastive_arm_is_the_first_to_the_target() -> None:
    arms = {"mae": 3.0, "simclr": 1.0, "mocov3": 1.2, "byol": 1.1}
    made = [
        replace(run, kind="masked" if arm == "mae" else "contrastive")
        for arm, speed in arms.items()
        for run in runs(arm, partial(rising, speed=speed))
    ]

    assert Study((*runs("scratch", SLOW), *made)).best_contrastive(L) == "mocov3"


@pytest.mark.parametrize("top", [0.8, 0.4])
def test_no_contrastive_arm_is_the_best_for_having_run_the_easy_replicate_alone(top: float) -> None:
    # `byol`, slower and lower than `simclr` where both ran, is ahead of its mean over both.
    def made(arm: str, replicate: int, speed: float, top: float) -> Record:
        curve = partial(rising, speed=speed, top=top)
        kind = "scratch" if arm == "scratch" else "contrastive"
        return replace(record(arm, curve, replicate=replicate), kind=kind)  # type: ignore[arg-type]

    study = Study(
        (
            made("scratch", 0, 0.2, 0.6), made("scratch", 1, 2.0, 0.8),
            made("simclr", 0, 0.3, top - 0.2), made("simclr", 1, 3.0, top),
            made("byol", 1, 2.5, top - 0.02),
        )
    )  # fmt: skip

    means = {arm: study.final(arm, L) for arm in ("simclr", "byol")}
    assert means["byol"].value > means["simclr"].value  # type: ignore[union-attr,operator]
    assert study.best_contrastive(L) == "simclr"


def test_the_best_contrastive_arm_arrives_where_scratch_is_there_at_the_first_look() -> None:
    early = partial(rising, top=0.8, speed=100.0)
    arms = {"simclr": early, "mocov3": partial(rising, speed=2.0), "byol": partial(rising, top=0.5)}
    made = [
        replace(run, kind="contrastive") for arm, curve in arms.items() for run in runs(arm, curve)
    ]

    best = [Study((*runs("scratch", early), *made[3 * left :])).best_contrastive(L)
            for left in range(3)]  # fmt: skip

    assert best == ["simclr", "mocov3", "byol"]


def test_of_contrastive_arms_that_are_equal_the_one_with_most_replicates_is_best() -> None:
    made = [
        replace(run, kind="contrastive")
        for arm, replicates in (("vicreg", 2), ("byol", 3), ("simclr", 1))
        for run in runs(arm, replicates=replicates)
    ]

    assert Study((*runs("scratch", SLOW), *made)).best_contrastive(L) == "byol"


def test_of_contrastive_arms_that_never_arrive_the_highest_is_best() -> None:
    made = [
        replace(run, kind="contrastive")
        for arm, top in {"simclr": 0.4, "byol": 0.6}.items()
        for run in runs(arm, partial(rising, top=top, speed=3.0))
    ]

    assert Study((*runs("scratch"), *made)).best_contrastive(L) == "byol"


def test_the_best_contrastive_arm_is_ahead_of_most_at_the_target_that_is_asked_for() -> None:
    """Named and repeated so that neither decides: the best has the first name and fewest runs."""
    arms = {"byol": (4.0, 0.78, 2), "mocov3": (2.0, 0.80, 3), "simclr": (1.0, 0.85, 3)}
    made = [
        replace(run, kind="contrastive")
        for arm, (speed, top, count) in arms.items()
        for run in runs(arm, partial(rising, speed=speed, top=top), count)
    ]
    study = Study((*runs("scratch", SLOW), *made))

    # 0.8 of 0.846 is reached by all, the steepest first; 0.95 of it, 0.80, by `simclr` alone.
    assert [study.best_contrastive(L, target) for target in (0.8, 0.95)] == ["byol", "simclr"]


def test_of_arms_that_never_arrive_one_is_not_ahead_for_having_run_fewer_steps() -> None:
    short, long = partial(rising, top=0.4), partial(rising, top=0.6)
    made = [
        replace(run, kind="contrastive")
        for run in (*runs("simclr", short, steps=STEPS[:-1]), *runs("byol", long))
    ]

    assert Study((*runs("scratch"), *made)).best_contrastive(L) == "byol"
