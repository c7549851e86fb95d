"""Which trainings are dead, by their features, their loss and their Dice."""

from __future__ import annotations

import math

import pytest
from training_logs import write_log

from mim3d.workflows.convergence.health import (
    last_levels,
    why_collapsed,
    why_hopeless,
    why_unlearnt,
)


@pytest.mark.parametrize(
    ("rank", "spread", "cosine", "is_dead"),
    [
        (1.9, 0.5, 0.1, True),
        (float("nan"), 0.5, 0.1, True),
        (5.0, 0.009, 0.996, True),
        (5.0, 0.011, 0.999, False),
        (5.0, 0.009, 0.994, False),
        (2.0, 0.3, 0.9, False),
    ],
)
def test_features_are_dead_by_rank_or_by_cosine_with_spread(rank, spread, cosine, is_dead):
    health = {"crops_rank": rank, "crops_spread": spread, "crops_cosine": cosine}

    assert (why_collapsed(health) is not None) == is_dead


def test_the_last_levels_are_means_by_steps_over_the_last_tenth(tmp_path):
    write_log(
        tmp_path,
        {"step": 80, "loss": 9.0, "chance": 9.0},
        {"step": 92, "loss": 4.0, "chance": 3.0},  # of steps 81 to 92
        {"step": 100, "loss": 2.0, "chance": 1.0},  # of 8 steps
    )

    assert last_levels(tmp_path) == pytest.approx({"loss": 3.2, "chance": 2.2})
    assert last_levels(tmp_path / "none") == {}


def test_a_loss_that_was_not_a_number_is_one_in_the_levels(tmp_path):
    write_log(tmp_path, {"step": 100, "loss": None, "mean_predictor": 1.0})

    levels = last_levels(tmp_path)

    assert math.isnan(levels["loss"])
    assert why_unlearnt(levels, 100) is not None


@pytest.mark.parametrize(
    ("levels", "why"),
    [
        ({"loss": 3.135, "chance": math.log(23)}, "3.135 is not 2 % below 3.135 of guessing"),
        ({"loss": 3.115, "chance": math.log(23)}, "3.115 is not 2 % below 3.135 of guessing"),
        ({"loss": 3.0, "chance": math.log(23)}, None),
        ({"loss": 1.0, "mean_predictor": 1.0}, "1 is not below 1 of predicting the mean"),
        ({"loss": 0.999, "mean_predictor": 1.0}, None),
        ({"loss": 7.0}, None),
        ({}, None),
    ],
)
def test_a_pre_training_that_knows_nothing_of_its_task_is_told_of(levels, why):
    found = why_unlearnt(levels, 91)

    assert found == (None if why is None else f"learned nothing: loss {why}")
    assert why_unlearnt(levels, 19) is None


def test_a_dice_below_a_hundredth_is_hopeless():
    assert why_hopeless(0.0099) == "Dice 0.0099 after the last step"
    assert why_hopeless(0.01) is None
