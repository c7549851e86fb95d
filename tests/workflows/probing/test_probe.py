"""One command compares readers of a run: who judges, what is compared, and that it goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import shapes, write_archive
from preparing import Recorder, config_with

from mim3d.config.data import DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.inference import EvaluationConfig
from mim3d.config.objective import GuideConfig, PretextConfig, SupervisedConfig
from mim3d.config.probe import ComparisonConfig, ProbeConfig
from mim3d.config.reading import read_config
from mim3d.config.task import ClassificationConfig, DecoderConfig
from mim3d.config.training import OptimConfig, TrainingConfig
from mim3d.config.verbs import FinetuneConfig, PretrainConfig
from mim3d.config.writing import to_mapping
from mim3d.data.phantom import PhantomRule, make_cohort
from mim3d.data.prepare import prepare_store
from mim3d.data.store import open_store
from mim3d.foundation.documents import read_object
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.reporting import Silent
from mim3d.workflows.prepare import prepare
from mim3d.workflows.probing import probe as module
from mim3d.workflows.probing.probe import probe
from mim3d.workflows.probing.question import question_of
from mim3d.workflows.probing.trained import random_run
from mim3d.workflows.probing.views import RANDOM, RUN, VOXELS
from mim3d.workflows.seen_cases import seen_before

pytestmark = pytest.mark.filterwarnings("ignore:.*an array says neither voxel size")
TRAINING = TrainingConfig(
    steps=2, batch_size=2, precision="fp32", device="cpu", threads=1, log_every=1,
    checkpoint_every=2,
)  # fmt: skip
ENCODER = EncoderConfig(
    width=24, depth=2, heads=2, patch=(4, 4, 4), channels=1, default_spacing_mm=(1, 1, 1)
)
ALL = {"knn", "linear", "frozen", "full"}


def config_for(store: Path, **fields: Any) -> ProbeConfig:
    plain = ProbeConfig(
        data=DataConfig(store=str(store), crop_size=(12, 12, 8), placement="label"),
        training=TRAINING,
        decoder=DecoderConfig(name="light", feature_size=4),
        evaluation=EvaluationConfig(resamples=50),
    )
    return replace(plain, **fields)


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    rule = PhantomRule(shape=(14, 13, 9), organs=1, tumour=False)
    subjects = ["a", "a", "b", "c", "d", "e", "v"]
    make_cohort(folder / "cohort", seed=2, training=6, validation=1, rule=rule, subjects=subjects)
    prepare(str(folder / "cohort"), out=str(folder / "store"), reporter=Silent())
    return folder / "store"


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Boxes that fill their volumes alike, bright in class 1."""
    folder = tmp_path_factory.mktemp("answers")
    arrays = {}
    for name, count in (("train", 20), ("val", 6)):
        labels = np.arange(count) % 2
        kinds = np.where(labels == 1, 255, 60)[:, None, None, None]
        arrays[f"{name}_images"] = (shapes(count, count) // 255 * kinds).astype(np.uint8)
        arrays[f"{name}_labels"] = labels[:, None].astype(np.uint8)
    archive = write_archive(folder / "shapes.npz", **arrays)
    prepare_store(archive, folder / "store", config_with())
    return folder / "store"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run") / "run"
    return random_run(folder, ENCODER, DataConfig(crop_size=(8, 12, 8)), seed=7)


@pytest.fixture(scope="module")
def compared(maps: Path, run: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("compared") / "probe"
    return folder, probe(run, out=str(folder), config=config_for(maps), reporter=Silent())


def rows_of(result: Any) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["reader"], row["features"]): row for row in result.facts["rows"]}


def test_label_maps_are_read_by_all_readers_of_all_views(compared):
    rows = rows_of(compared[1])

    expected = {(reader, view) for reader in ALL for view in (RUN, RANDOM)}
    expected |= {("knn", VOXELS), ("linear", VOXELS), ("lora", RUN)}
    assert set(rows) == expected
    for (_, view), row in rows.items():
        dice = row["scores"]["dice"]
        assert 0 <= dice["low"] <= dice["value"] <= dice["high"] <= 1
        assert bool(row["gains"]) == (view == RUN and row["reader"] != "lora")
    difference = rows["linear", RUN]["gains"][f"over {RANDOM}"]["value"]
    values = [rows["linear", view]["scores"]["dice"]["value"] for view in (RUN, RANDOM)]
    assert difference == pytest.approx(values[0] - values[1])


def test_a_trained_row_is_the_validation_of_its_own_run(compared):
    folder, result = compared
    for (reader, view), row in rows_of(result).items():
        if reader in ("knn", "linear"):
            assert row["trained_parameters"] == 0
            continue
        slug = {RUN: "run", RANDOM: "random"}[view]
        known = read_object(folder / f"{reader}-{slug}" / "results.json")
        # one structure, which every case has
        dice = known["validation"]["validation"]["dice"]
        assert row["scores"]["dice"]["value"] == pytest.approx(dice)
        assert row["trained_parameters"] == known["trained_parameters"]
    rows = rows_of(result)
    counts = [rows[reader, RUN]["trained_parameters"] for reader in ("frozen", "lora", "full")]
    assert counts == sorted(set(counts))


def test_bright_organs_are_found_by_their_voxels(compared):
    rows = rows_of(compared[1])

    for reader in ("linear", "knn"):
        assert rows[reader, VOXELS]["scores"]["dice"]["value"] > 0.3


def test_who_judges_is_an_inner_fold_of_training_subjects_and_never_the_validation_list(maps):
    store = open_store(maps)
    seen = set()
    for fold in range(5):
        config = config_for(maps)
        config = replace(config, data=replace(config.data, inner_fold=fold))
        question = question_of(config, "segmentation", store)
        fit, judging = ({store.subject(case) for case in cases}
                        for cases in (question.fit, question.judging))  # fmt: skip
        assert not fit & judging
        assert fit | judging == set("abcde")
        seen |= judging
    assert seen == set("abcde")


def test_the_validation_list_judges_only_where_it_is_asked_for(maps, run):
    store = open_store(maps)
    config = config_for(maps, probe=ComparisonConfig(judge="validation"))
    question = question_of(config, "segmentation", store)
    assert {store.subject(case) for case in question.judging} == {"v"}

    both = replace(config, data=replace(config.data, inner_fold=1))
    with pytest.raises(ConfigError, match="inner_fold"):
        probe(run, config=both, reporter=Silent(), dry_run=True)


def test_the_same_command_goes_on_and_trains_nothing_twice(compared, maps, run, monkeypatch):
    folder, first = compared
    lines = {path: path.read_text() for path in folder.glob("*/log.jsonl")}
    assert len(lines) == 5

    again = probe(run, out=str(folder), config=config_for(maps), reporter=Silent())

    assert again.facts == first.facts
    assert {path: path.read_text() for path in folder.glob("*/log.jsonl")} == lines
    assert read_object(folder / "probe.json")["rows"] == first.facts["rows"]


def test_classes_of_volumes_are_read_and_trained(answers, run, tmp_path):
    config = config_for(answers, data=DataConfig(store=str(answers), crop_size=(12, 12, 8)))

    result = probe(run, out=str(tmp_path / "p"), config=config, reporter=Silent())

    assert (result.facts["task"], result.facts["headline"]) == ("classification", "auc")
    rows = rows_of(result)
    assert len(rows) == 11
    assert set(rows["lora", RUN]["scores"]) == {"auc", "accuracy", "balanced_accuracy", "macro_f1"}
    # how bright a volume is decides, which any encoder passes on
    assert rows["linear", RUN]["scores"]["auc"]["value"] > 0.9
    known = read_object(tmp_path / "p" / "frozen-run" / "results.json")["validation"]["validation"]
    assert rows["frozen", RUN]["scores"]["auc"]["value"] == pytest.approx(known["auc"])
    assert "over random weights" in result.text


def test_numbers_of_volumes_are_read(answers, run, tmp_path):
    config = config_for(
        answers,
        task="regression",
        data=DataConfig(store=str(answers), crop_size=(12, 12, 8)),
        probe=ComparisonConfig(readers=("linear", "knn"), neighbours=3),
    )

    result = probe(run, out=str(tmp_path / "p"), config=config, reporter=Silent())

    rows = rows_of(result)
    assert set(rows) == {(reader, view) for reader in ("linear", "knn")
                         for view in (RUN, RANDOM, VOXELS)}  # fmt: skip
    assert rows["linear", RUN]["scores"]["pearson"]["value"] > 0.5
    assert not (tmp_path / "p" / "frozen-run").exists()


def test_without_references_only_the_run_is_read(maps, run, tmp_path):
    config = config_for(maps, probe=ComparisonConfig(readers=("linear",), references=False))

    result = probe(run, out=str(tmp_path / "p"), config=config, reporter=Silent())

    assert set(rows_of(result)) == {("linear", RUN)}
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["probe.json"]


def test_the_crop_is_the_runs_where_nothing_is_said(maps, run):
    config = config_for(maps, data=DataConfig(store=str(maps)))

    quiet = module._resolved(config, run, "segmentation", {"data.store"})
    said = module._resolved(config, run, "segmentation", {"data.crop_size"})

    assert quiet.data.crop_size == (8, 12, 8)
    assert said.data.crop_size == (96, 96, 96)
    assert quiet.data.inner_fold == 0


def test_a_run_that_learned_from_who_judges_is_warned_of(maps, run, compared, tmp_path):
    heard = Recorder()
    tuned = str(compared[0] / "full-run")
    config = config_for(maps, probe=ComparisonConfig(readers=("knn",), references=False))
    config = replace(config, data=replace(config.data, inner_fold=1))

    result = probe(tuned, out=str(tmp_path / "p"), config=config, reporter=heard)

    assert any("was fine-tuned on" in text and "flatter" in text for text in heard.warnings)
    assert "note: " in result.text


@pytest.mark.parametrize(
    ("objective", "is_flattered"),
    [
        (PretextConfig(name="mae"), False),
        (PretextConfig(name="mae", supervised=SupervisedConfig(target="label")), True),
        (PretextConfig(name="mae", guide=GuideConfig(by="map")), True),
    ],
)
def test_pretraining_that_was_told_labels_is_not_said_to_have_seen_none(
    answers, run, tmp_path, objective, is_flattered
):
    config = config_for(
        answers, data=DataConfig(store=str(answers), crop_size=(8, 8, 8), inner_fold=0)
    )
    question = question_of(config, "classification", open_store(answers))
    told = PretrainConfig(encoder=ENCODER, objective=objective)
    (tmp_path / "config.yaml").write_text(json.dumps(to_mapping(told)))
    hashes = {case: question.store.source_hash(case) for case in question.judging}
    record = {"verb": "pretrain", "trained_on": hashes}

    (note,) = seen_before(str(tmp_path), record, question.store, question.judging)

    assert note.flatters is is_flattered
    assert ("without their labels" in note.text) is not is_flattered


def test_a_dry_run_lists_the_rows_and_writes_nothing(maps, run, tmp_path):
    result = probe(run, out=str(tmp_path / "p"), config=config_for(maps), reporter=Silent(),
                   dry_run=True)  # fmt: skip

    assert "linear of raw voxels" in result.text
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"probe": ComparisonConfig(readers=())}, ConfigError, "no reader"),
        ({"probe": ComparisonConfig(neighbours=0)}, ConfigError, "1 or more"),
        ({"evaluation": EvaluationConfig(confidence=95)}, ConfigError, "above 0 and below 1"),
        ({"optim": OptimConfig(adapt="lora")}, ConfigError, "what a comparison compares"),
        ({"task": "classification"}, UserError, "no targets"),
        ({"classification": ClassificationConfig(target="age")}, UserError, "no targets"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_sentence(maps, run, fields, error, text):
    with pytest.raises(error, match=text):
        probe(run, config=config_for(maps, **fields), reporter=Silent(), dry_run=True)


def test_trainings_are_shown_what_the_other_readers_are_where_a_run_left_air_out(
    answers: Path, tmp_path: Path
) -> None:
    data = DataConfig(crop_size=(8, 12, 8))
    run = random_run(tmp_path / "run", ENCODER, data, seed=7, drop_air=True)
    config = config_for(answers, probe=ComparisonConfig(readers=("frozen",), references=False))

    def shown(name: str, **said: Any) -> bool:
        probe(run, out=str(tmp_path / name), config=config, reporter=Silent(), **said)
        (kept,) = (tmp_path / name).rglob("config.yaml")
        return read_config(kept, FinetuneConfig).classification.drop_air

    assert shown("silent")
    assert not shown("said", said={"classification.drop_air"})
