"""The matrix of trials, their order and their shards."""

from __future__ import annotations

import math

import pytest

from mim3d.config.verbs import ConvergenceConfig, FinetuneConfig
from mim3d.foundation.errors import ConfigError
from mim3d.workflows.convergence.arms import Arm
from mim3d.workflows.convergence.trials import all_trials, shard_of


def test_trials_go_by_labels_then_replicate_then_arm_and_shards_part_them():
    settings = ConvergenceConfig(labels=(0.05, 5), replicates=2)
    arms = [Arm(name, "other", FinetuneConfig()) for name in ("a", "b", "c")]

    trials = all_trials(arms, settings)
    shards = [shard_of(trials, f"{i}/5") for i in range(5)]

    assert [trial.name for trial in trials[:4]] == [
        "a-labels0.05-0", "b-labels0.05-0", "c-labels0.05-0", "a-labels0.05-1",
    ]  # fmt: skip
    assert trials[-1].name == "c-labels5-1"
    assert sorted(sum(shards, ()), key=trials.index) == list(trials)
    for wrong in ("5/5", "1", "a/b", "-1/2"):
        with pytest.raises(ConfigError, match="expected `i/n`"):
            shard_of(trials, wrong)


def test_one_subject_and_all_of_them_are_two_label_fractions():
    settings = ConvergenceConfig(labels=(1, 0.5, 1.0), replicates=1)

    trials = all_trials([Arm("a", "other", FinetuneConfig())], settings)

    assert [trial.name for trial in trials] == ["a-labels1-0", "a-labels0.5-0", "a-labels1.0-0"]


@pytest.mark.parametrize(
    ("change", "what", "remedy"),
    [
        ({"labels": ()}, "` must list different values and at least one", "labels 0.1,0.5"),
        ({"labels": (5, 5)}, "` must list different values and at least one", "labels 0.1,0.5"),
        ({"labels": (5, 1.5)}, "` has 1.5, expected", "whole numbers of subjects"),
        ({"labels": (0.0,)}, "` has 0.0, expected", "labels 0.1,0.5"),
        ({"labels": (0,)}, "` has 0, expected", "labels 0.1,0.5"),
        ({"labels": (math.nan,)}, "` has nan, expected", "labels 0.1,0.5"),
        ({"folds": (0, 7)}, "` has 7, expected 0 to 4", "folds 0,1,2,3,4"),
        ({"folds": (-1,)}, "` has -1, expected 0 to 4", "folds 0,1,2,3,4"),
        ({"folds": (1, 1)}, "` must list different values", "folds 0,1,2,3,4"),
        ({"replicates": 0}, "` is 0, expected 1 or more", "replicates 3"),
        ({"pretraining_seeds": -1}, "` is -1, expected 1 or more", "pretraining_seeds 3"),
        ({"points": 1}, "` is 1, expected 2 or more", "points 14"),
        ({"rates": (0.1, 0.1)}, "` must list different values", "rates 0.0003,0.001"),
        ({"rates": (0.1, 0.0)}, "` has 0.0, expected numbers above 0", "rates 0.0003,0.001"),
        ({"rates": (math.inf,)}, "` has inf, expected numbers above 0", "rates 0.0003,0.001"),
        ({"warmups": (3,)}, "` are tried with learning rates", "list the rates too"),
        ({"warmups": (3, 3), "rates": (0.1,)}, "` must list different values", "warmups 0,50"),
        ({"warmups": (-3,), "rates": (0.1,)}, "` has -3, expected 0 or more steps", "warmups 0,50"),
    ],
)
def test_a_matrix_that_makes_no_sense_is_refused_by_the_name_that_was_typed(change, what, remedy):
    with pytest.raises(ConfigError) as caught:
        all_trials([], ConvergenceConfig(**change))

    assert caught.value.what.startswith(f"`convergence.{next(iter(change))}{what}")
    assert remedy in caught.value.remedy
    assert caught.value.where is None, "no arm is to blame"
