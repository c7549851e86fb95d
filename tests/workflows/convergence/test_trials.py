"""The matrix of trials, their order and their shards."""

from __future__ import annotations

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
    "change",
    [
        {"labels": ()},
        {"labels": (5, 5)},
        {"replicates": 0},
        {"rates": (0.1, 0.1)},
        {"warmups": (3,)},
        {"warmups": (3, 3), "rates": (0.1,)},
    ],
)
def test_a_matrix_that_makes_no_sense_is_refused(change):
    with pytest.raises(ConfigError, match=f"`convergence.{next(iter(change))}`"):
        all_trials([], ConvergenceConfig(**change))
