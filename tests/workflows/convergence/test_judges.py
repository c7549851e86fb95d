"""Nobody who judges has taught: what is refused before the first run, and what is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_benchmark import make_store, write_benchmark

from mim3d.config.reading import read_config
from mim3d.config.verbs import BenchmarkConfig, PreparationConfig, PrepareConfig
from mim3d.data.store import open_store
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.reporting import Silent
from mim3d.workflows.convergence import judges
from mim3d.workflows.convergence.arms import read_arms
from mim3d.workflows.convergence.judges import check_draws, check_seen
from mim3d.workflows.convergence.trials import all_trials
from mim3d.workflows.prepare import prepare

LED = "  mae: {pretrain: {objective: {guide: {by: map}}}}\n"
TOLD = "  mae: {pretrain: {objective: {supervised: {target: age}}}}\n"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return tmp_path_factory.mktemp("judges")


@pytest.fixture(scope="module")
def store(cohort):
    return make_store(cohort)


@pytest.fixture(scope="module")
def elsewhere(cohort, store):
    """Images of who judges, without labels and at another spacing: all are to train on."""
    lists = PreparationConfig(workers=0, spacing_mm=(2.0, 2.0, 2.0), validation_fraction=0.0)
    prepare(str(cohort / "cohort" / "imagesVal"), out=str(cohort / "elsewhere"),
            config=PrepareConfig(lists), reporter=Silent())  # fmt: skip
    return cohort / "elsewhere"


def seen(folder, store, arms, **settings):
    path = write_benchmark(folder, store, "  scratch: {}\n" + arms, **settings)
    found = read_config(path, BenchmarkConfig).convergence
    matrix = {arm.name: arm for arm in read_arms(path, found)}
    return check_seen(all_trials(list(matrix.values()), found), matrix, found)


@pytest.mark.parametrize(
    ("arm", "what"), [(LED, "masks led by their label maps"), (TOLD, "their `age`")]
)
def test_a_pre_training_that_would_read_labels_of_a_folds_judges_is_refused(
    tmp_path, store, arm, what
):
    with pytest.raises(ConfigError, match=f"told of subjects that judge a fold: {what}") as error:
        seen(tmp_path, store, arm, folds=[1], budget_arm="mae")

    assert "`mae`" in error.value.where
    assert "pretrain_per_fold" in error.value.remedy
    assert seen(tmp_path, store, arm, folds=[1], pretrain_per_fold=True) == ()
    assert seen(tmp_path, store, arm) == ()


def test_images_of_a_folds_judges_are_seen_in_the_benchmarks_own_store(tmp_path, store):
    assert seen(tmp_path, store, "  mae: {pretrain: {}}\n", folds=[1]) == ()


def test_images_of_who_judges_in_another_store_are_refused(tmp_path, store, elsewhere):
    arm = f"  mae: {{pretrain: {{data: {{store: {elsewhere}}}}}}}\n"

    with pytest.raises(ConfigError, match="would see 2 of 2 cases that judge, in") as error:
        seen(tmp_path, store, arm)
    assert error.value.where == "arm `mae`"


@pytest.mark.parametrize("verb", ["finetune", "pretrain"])
def test_a_run_that_learned_from_who_judges_is_refused_and_one_that_saw_images_is_told(
    tmp_path, store, monkeypatch, verb
):
    here = open_store(store)
    record = {
        "verb": verb,
        "trained_on": {case: here.source_hash(case) for case in here.ids("validation")},
    }
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("objective: {name: mae}\n")
    monkeypatch.setattr(judges, "load_preparation", lambda folder: record)
    arm = f"  again: {{finetune: {{init: {run}}}}}\n"

    if verb == "pretrain":
        (text,) = seen(tmp_path, store, arm, budget_arm="mae")
        assert text == (
            f"`again`: `{run}` was pre-trained on the images of 2 of 2 judged cases, without "
            "their labels"
        )
        return
    with pytest.raises(ConfigError, match="was fine-tuned on 2 of 2 judged cases") as error:
        seen(tmp_path, store, arm)
    assert error.value.where == "arm `again`"


def test_without_a_store_the_option_of_the_benchmark_is_named(tmp_path, store):
    path = write_benchmark(tmp_path, store, "  scratch: {}\n")
    settings = replace(read_config(path, BenchmarkConfig).convergence, store=None)
    matrix = {arm.name: arm for arm in read_arms(path, settings)}

    with pytest.raises(ConfigError, match="no store is named") as error:
        check_draws(all_trials(list(matrix.values()), settings), matrix, settings)
    assert "`--convergence.store STORE`" in error.value.remedy
