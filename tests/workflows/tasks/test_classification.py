"""From a store of targets to a run of whole volumes, and from that to a CSV."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from archives import shapes, write_archive
from preparing import Recorder, config_with

from mim3d.config.data import DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.inference import InferenceConfig
from mim3d.config.plan import FinetunePlanConfig
from mim3d.config.reading import read_config
from mim3d.config.task import ClassificationConfig
from mim3d.config.training import OptimConfig, TrainingConfig
from mim3d.config.verbs import FinetuneConfig, PredictConfig
from mim3d.config.writing import dump, to_mapping
from mim3d.data.asked_target import AskedTarget
from mim3d.data.prepare import prepare_store
from mim3d.data.store import open_store
from mim3d.evaluation.predictions import read_predictions
from mim3d.foundation.documents import read_object
from mim3d.foundation.errors import ConfigError, ExitCode, UserError
from mim3d.foundation.reporting import Silent
from mim3d.training.checkpoints import weights_digest
from mim3d.workflows.finetune import finetune, resolved
from mim3d.workflows.loading import load_classifier, load_segmenter
from mim3d.workflows.plan.subject import subject_of
from mim3d.workflows.predict import predict
from mim3d.workflows.tasks.classification import VALIDATION, ClassificationTraining, scores_of

pytestmark = pytest.mark.filterwarnings("ignore:.*an array says neither voxel size")

COUNTS = {"train": 16, "val": 6}
LABELS = {name: np.arange(count) % 2 for name, count in COUNTS.items()}


def _volumes(name: str) -> np.ndarray:
    """Boxes, bright in class 1 and dim in class 0."""
    kinds = np.where(LABELS[name] == 1, 255, 60)[:, None, None, None]
    return (shapes(COUNTS[name], len(name)) // 255 * kinds).astype(np.uint8)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    arrays = {f"{name}_images": _volumes(name) for name in COUNTS}
    arrays |= {f"{name}_labels": LABELS[name][:, None].astype(np.uint8) for name in COUNTS}
    return write_archive(folder / "shapes.npz", **arrays)


@pytest.fixture(scope="module")
def store(archive: Path) -> Path:
    prepare_store(archive, archive.parent / "store", config_with())
    return archive.parent / "store"


def config_of(store: Path, steps: int = 2, **fields) -> FinetuneConfig:
    said = {
        "task": "classification",
        "data": DataConfig(store=str(store), crop_size=(8, 8, 8), placement="label"),
        "encoder": EncoderConfig(width=24, depth=2, heads=2, patch=(4, 4, 4)),
        "optim": OptimConfig(lr=3e-3),
        "training": TrainingConfig(
            steps=steps, batch_size=4, precision="fp32", device="cpu", threads=1, log_every=1,
            checkpoint_every=2,
        ),
        "init": "none",
    }  # fmt: skip
    return FinetuneConfig(**{**said, **fields})


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    finetune(config_of(store, 50), out=str(folder), reporter=Silent())
    return folder


def test_a_classifier_learns_what_sets_the_classes_apart(run: Path) -> None:
    scores = read_object(run / "results.json")["validation"]["validation"]

    assert scores["auc"] == 1.0
    assert scores["accuracy"] > 0.8
    assert scores["loss"] < 0.5  # of guessing: 0.69


def test_prediction_of_the_files_is_what_validation_saw_in_the_store(
    run: Path, archive: Path, tmp_path: Path
) -> None:
    """Windows, air, spacing and normalisation: 11 x 13 x 7 voxels in crops of 8 x 8 x 8."""
    predict(str(run), [str(archive)], out=str(tmp_path), reporter=Silent(),
            config=PredictConfig(device="cpu", precision="fp32"))  # fmt: skip

    said = {row.case_id: row for row in read_predictions(tmp_path / "predictions.csv")}
    seen = read_predictions(run / VALIDATION)
    assert len(said) == 22
    assert len(seen) == 6
    for row in seen:
        own = said[row.case_id]
        assert (own.target, own.value) == (row.target, row.value)
        assert own.probabilities == pytest.approx(row.probabilities, abs=1e-5)


def test_prediction_goes_on_and_makes_anew_what_another_setting_made(
    run: Path, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mim3d.workflows import predict_answers

    made: list[int] = []
    whole = predict_answers.classify

    def counted(*given):
        made.append(1)
        return whole(*given)

    monkeypatch.setattr(predict_answers, "classify", counted)
    counts = []
    plain, mirrored = PredictConfig(device="cpu", precision="fp32"), InferenceConfig(flips=("x",))
    for config in (plain, plain, replace(plain, inference=mirrored)):
        predict(str(run), [str(archive)], out=str(tmp_path), config=config, reporter=Silent())
        counts.append(len(made))

    assert counts == [22, 22, 44]


def test_runs_that_were_judged_with_other_mirrors_are_not_averaged_unasked(
    run: Path, archive: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other, symlinks=True)
    config = read_config(other / "config.yaml", FinetuneConfig)
    mirrored = replace(config, inference=replace(config.inference, flips=("x",)))
    (other / "config.yaml").write_text(dump(to_mapping(mirrored)))
    both, out = f"{run},{other}", str(tmp_path / "answers")

    with pytest.raises(UserError, match=r"different axes: \[\], \[x\]"):
        predict(both, [str(archive)], out=out, reporter=Silent())
    asked = PredictConfig(device="cpu", inference=InferenceConfig(flips=()))
    predict(both, [str(archive)], out=out, reporter=Silent(), config=asked)

    plain = PredictConfig(device="cpu", precision="fp32")
    for folder, said in (("a", plain), ("b", replace(plain, inference=mirrored.inference))):
        predict(str(other), [str(archive)], out=str(tmp_path / folder), config=said,
                reporter=Silent())  # fmt: skip
    texts = [(tmp_path / one / "predictions.csv").read_text() for one in "ab"]
    assert texts[0] == texts[1]


def test_a_case_that_cannot_be_read_is_left_out_and_the_others_go_on(
    run: Path, archive: Path, tmp_path: Path
) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "broken.nii.gz").write_bytes(b"no scan")

    result = predict(str(run), [str(archive), str(tmp_path / "scans" / "broken.nii.gz")],
                     out=str(tmp_path / "out"), reporter=Silent(),
                     config=PredictConfig(device="cpu", precision="fp32"))  # fmt: skip

    assert result.exit_code == ExitCode.PARTIAL
    assert len(read_predictions(tmp_path / "out" / "predictions.csv")) == 22


def test_crops_lie_anywhere_unless_it_is_said_otherwise(store: Path) -> None:
    opened, config = open_store(store), config_of(store)

    assert resolved(config, opened).data.placement == "uniform"
    assert resolved(config, opened, {"data.placement"}).data.placement == "label"
    body = replace(config, data=replace(config.data, placement="body"))
    assert resolved(body, opened).data.placement == "body"


@pytest.mark.parametrize(
    "drawn",
    [
        ClassificationConfig(mixup=0.4, keep=0.5, dropout=0.2, class_weights="balanced"),
        ClassificationConfig(keep=0.5, keep_by="attention", keep_at_test=True),
        ClassificationConfig(pool="statistics", norm="batch"),
    ],
    ids=["blends-kept-dropout", "attention", "norm-by-batch"],
)
def test_an_interrupted_run_ends_with_the_same_weights(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: ClassificationConfig
) -> None:
    """With everything drawn, or led by maps or moments that are in the checkpoint."""
    config = config_of(store, 4, classification=drawn)
    finetune(config, out=str(tmp_path / "whole"), reporter=Silent())

    from mim3d.objectives import classification

    whole, calls = classification.Classification.forward, []

    def stopping(self, batch, moment):
        calls.append(moment.step)
        if moment.step == 2 and calls.count(2) == 1:
            raise KeyboardInterrupt
        return whole(self, batch, moment)

    monkeypatch.setattr(classification.Classification, "forward", stopping)
    with pytest.raises(KeyboardInterrupt):
        finetune(config, out=str(tmp_path / "parts"), reporter=Silent())
    finetune(config, out=str(tmp_path / "parts"), reporter=Silent())

    assert calls == [0, 1, 2, 2, 3]
    digests = [
        weights_digest(
            load_classifier(str(tmp_path / name), device="cpu").model.network.state_dict()
        )
        for name in ("whole", "parts")
    ]
    assert digests[0] == digests[1]


def test_a_number_is_learned_in_its_own_unit(store: Path, tmp_path: Path) -> None:
    config = config_of(
        store, 50, task="regression", data=DataConfig(store=str(store), crop_size=(8, 8, 8),
                                                      selection_fraction=0.25),
    )  # fmt: skip
    finetune(config, out=str(tmp_path / "run"), reporter=Silent())

    (asked,) = load_classifier(str(tmp_path / "run"), device="cpu").table
    assert asked.classes is None
    scores = read_object(tmp_path / "run" / "results.json")["validation"]
    assert scores["validation"]["mae"] < 0.35  # of 0 and 1: half of them would be 0.5
    assert scores["selection"]["loss"] < 0.6
    assert (tmp_path / "run" / "checkpoints" / "best").is_symlink()
    rows = read_predictions(tmp_path / "run" / VALIDATION)
    assert all(row.probabilities is None for row in rows)


def test_a_classifier_is_no_segmenter_and_the_other_way_round(run: Path) -> None:
    with pytest.raises(UserError, match="no label maps"):
        load_segmenter(str(run), device="cpu")


def test_blends_need_more_than_one_crop_at_a_time(store: Path) -> None:
    config = config_of(
        store,
        classification=ClassificationConfig(mixup=0.2),
        training=TrainingConfig(steps=1, batch_size=4, accumulation=4),
    )

    with pytest.raises(ConfigError, match="each comes alone"):
        finetune(config, dry_run=True, reporter=Silent())


def test_a_norm_by_the_batch_needs_more_than_one_crop_at_a_time(store: Path) -> None:
    config = config_of(
        store,
        classification=ClassificationConfig(norm="batch"),
        training=TrainingConfig(steps=1, batch_size=4, accumulation=4),
    )

    with pytest.raises(ConfigError, match="norm batch.*each comes alone"):
        finetune(config, dry_run=True, reporter=Silent())


def test_blends_need_more_than_one_crop_of_each_process(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(
        store,
        classification=ClassificationConfig(mixup=0.2),
        training=TrainingConfig(steps=1, batch_size=4, accumulation=2),
    )
    finetune(config, dry_run=True, reporter=Silent())
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "1",
                        "LOCAL_WORLD_SIZE": "2"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)

    with pytest.raises(ConfigError, match="each comes alone"):
        finetune(config, dry_run=True, reporter=Silent())


def test_numbers_of_different_units_have_no_mean_error() -> None:
    rng = np.random.default_rng(0)
    table = (AskedTarget("age", None, 40.0, 10.0), AskedTarget("volume", None, 1e6, 1e5))
    truth = np.stack([40 + 10 * rng.normal(size=9), 1e6 + 1e5 * rng.normal(size=9)], axis=1)
    said = truth + np.array([2.0, -3e4])
    known = {f"c{i}": {"age": row[0], "volume": row[1]} for i, row in enumerate(truth)}
    store = SimpleNamespace(entry=lambda case: SimpleNamespace(targets=known[case]))

    scores = scores_of(table, [said[:, :1], said[:, 1:]], store, list(known))  # type: ignore[arg-type]

    assert "mae" not in scores
    assert scores["mae of age"] == pytest.approx(2)
    assert scores["mae of volume"] == pytest.approx(3e4)
    assert scores["loss"] == pytest.approx((0.2**2 + 0.3**2) / 2)  # of deviations
    assert scores["pearson"] == pytest.approx(1)


def test_labels_are_scored_together_as_evaluate_scores_them() -> None:
    """F1 is that of `yes`, by loops, and not the mean of yes and no."""
    rng = np.random.default_rng(1)
    table = tuple(AskedTarget(name, (0.0, 1.0), is_sigmoid=True) for name in ("sick", "old"))
    truth = rng.integers(0, 2, (12, 2)).astype(float)
    yes = rng.random((12, 2))
    known = {f"c{i}": dict(zip(("sick", "old"), row, strict=True)) for i, row in enumerate(truth)}
    store = SimpleNamespace(entry=lambda case: SimpleNamespace(targets=known[case]))
    found = [np.stack([1 - yes[:, i], yes[:, i]], axis=1) for i in range(2)]

    scores = scores_of(table, found, store, list(known))  # type: ignore[arg-type]

    f1 = []
    for i in range(2):
        guess = yes[:, i] > 0.5
        hits = sum(g and t == 1 for g, t in zip(guess, truth[:, i], strict=True))
        f1.append(2 * hits / (guess.sum() + truth[:, i].sum()))
    assert scores["macro_f1"] == pytest.approx(np.mean(f1))
    exact = [((row > 0.5) == t).all() for row, t in zip(yes, truth, strict=True)]
    assert scores["exact_match"] == np.mean(exact)
    assert scores["loss"] == pytest.approx(
        -np.mean(np.log(np.where(truth == 1, yes, 1 - yes)).mean(axis=0))
    )


def test_a_run_tells_what_it_learns_of_whom_and_warns_of_a_class_without_cases(
    store: Path, tmp_path: Path
) -> None:
    heard = Recorder()
    kind = ClassificationTraining(config_of(store), open_store(store))
    kind.store.entries = {
        case: replace(entry, targets={"label": 2.0 if entry.part == "validation" else place % 2})
        for place, (case, entry) in enumerate(kind.store.entries.items())
    }

    kind.build(kind.store.ids("training"))
    kind.begin(None, heard)  # type: ignore[arg-type]

    assert any("`label`: 0 (8), 1 (8), 2 (0)" in line for line in heard.lines)
    assert any("class 2 of `label` has no training case" in text for text in heard.warnings)


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("has_store", [False, True])
def test_a_plan_takes_the_real_task(store: Path, task: str, has_store: bool) -> None:
    config = resolved(config_of(store, task=task), open_store(store))
    data = config.data if has_store else replace(config.data, store=None)
    planned = FinetunePlanConfig(**vars(replace(config, data=data)))

    subject = subject_of(planned)

    outputs = 1 if task == "regression" else 2
    assert subject.build().network.decoder.linear.out_features == outputs
    assert not subject.cohort.has_labels
