"""The last map of a classifier starts where a convex problem has its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from archives import write_archive
from preparing import Recorder, config_with

from mim3d.config.data import DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.inference import InferenceConfig
from mim3d.config.task import ClassificationConfig
from mim3d.config.training import OptimConfig, TrainingConfig
from mim3d.config.verbs import FinetuneConfig, PredictConfig
from mim3d.data.asked_target import AskedTarget
from mim3d.data.feed import make_feed
from mim3d.data.prepare import prepare_store
from mim3d.data.store import open_store
from mim3d.data.volume import spacing_of
from mim3d.evaluation.predictions import read_predictions
from mim3d.foundation.documents import read_object
from mim3d.foundation.reporting import Silent
from mim3d.models.classifier import VolumeClassifier
from mim3d.models.vit import VolumeViT
from mim3d.objectives.classification import Classification
from mim3d.workflows.finetune import finetune
from mim3d.workflows.predict import predict
from mim3d.workflows.tasks.classification import VALIDATION, ClassificationTraining
from mim3d.workflows.tasks.linear_head import start_head

pytestmark = pytest.mark.filterwarnings("ignore:.*an array says neither voxel size")

KIND = AskedTarget("kind", (0.0, 1.0, 2.0), counts=(8, 8, 8))
FOUND = AskedTarget("found", (0.0, 1.0), counts=(12, 12), is_sigmoid=True)
AGE = AskedTarget("age", None, mean=1.0, deviation=2.0)
VOLUMES = 24


def _task(asked: AskedTarget, *, has_norm: bool) -> Classification:
    torch.manual_seed(0)
    encoder = EncoderConfig(
        width=24, depth=2, heads=2, patch=(4, 4, 4), default_spacing_mm=(1.0, 1.0, 1.0)
    )
    network = VolumeClassifier(
        VolumeViT(encoder), asked.outputs, pool="statistics", standardises=has_norm
    )
    config = ClassificationConfig(loss="bce" if asked.is_sigmoid else None, start="linear")
    return Classification(network, config, [asked])


def _volumes(targets: np.ndarray) -> torch.Tensor:
    """Noise whose contrast rises with the target, not without noise either."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(VOLUMES, 1, 8, 8, 8, generator=generator)
    aims = torch.tensor(targets, dtype=torch.float32)
    size = 1 + 0.1 * aims + 0.1 * torch.randn(VOLUMES, generator=generator)
    return noise * size[:, None, None, None, None]


def _started(
    asked: AskedTarget, targets: np.ndarray, *, has_norm: bool = True
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Penalty, standardised features by hand, weight, bias, outputs of the network."""
    task, voxels = _task(asked, has_norm=has_norm).eval(), _volumes(targets)
    with torch.no_grad():
        tokens = task.encoder(voxels).tokens.double().numpy()
        pooled = task.network.features(voxels)
    subjects = [f"subject {number}" for number in range(VOLUMES)]
    (strength,) = start_head(task, pooled, [targets.astype(np.float64)], subjects)
    raw = np.concatenate([tokens.mean(axis=1), np.sqrt(tokens.var(axis=1) + 1e-6)], axis=1)
    features = (raw - raw.mean(axis=0)) / raw.std(axis=0)
    with torch.no_grad():
        outputs = task.network(voxels)
    linear = task.decoder.linear
    weight, bias = linear.weight.detach().double().numpy(), linear.bias.detach().double().numpy()
    if not has_norm:
        bias = bias + weight @ raw.mean(axis=0)
        weight = weight * raw.std(axis=0)
    np.testing.assert_allclose(outputs.numpy(), features @ weight.T + bias, atol=2e-3)
    return strength, features, weight, bias, outputs.double().numpy()


def _softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("has_norm", [True, False])
def test_of_classes_it_is_where_penalised_cross_entropy_has_no_slope(has_norm: bool) -> None:
    targets = np.arange(VOLUMES) % 3

    strength, features, weight, _, outputs = _started(KIND, targets, has_norm=has_norm)

    wrong = (_softmax(outputs) - np.eye(3)[targets]) / VOLUMES
    slope = features.T @ wrong + strength * weight.T
    assert np.abs(slope).max() < 1e-4
    assert np.abs(wrong.sum(axis=0)).max() < 1e-4
    assert (outputs.argmax(axis=1) == targets).mean() > 0.6


def test_of_a_label_with_one_output_it_tells_class_1_from_0() -> None:
    targets = np.arange(VOLUMES) % 2

    strength, features, weight, _, outputs = _started(FOUND, targets)

    assert outputs.shape == (VOLUMES, 1)
    wrong = (1 / (1 + np.exp(-outputs[:, 0])) - targets) / VOLUMES
    # The penalty is on a map of two classes, whose weights are half of this, once with each sign.
    assert np.abs(features.T @ wrong + strength * weight[0] / 2).max() < 1e-4


def test_of_a_number_it_is_ridge_regression_in_deviations() -> None:
    targets = np.arange(VOLUMES) / 5

    strength, features, weight, bias, _ = _started(AGE, targets)

    aims = (targets - AGE.mean) / AGE.deviation
    square = features.T @ features / VOLUMES + strength * np.eye(features.shape[1])
    expected = np.linalg.solve(square, features.T @ (aims - aims.mean()) / VOLUMES)
    np.testing.assert_allclose(weight[0], expected, atol=1e-4)
    assert bias[0] == pytest.approx(aims.mean(), abs=1e-5)


def _store(folder: Path) -> tuple[Path, Path]:
    """An archive of 16 and 6 volumes, half of them bright, and its store."""
    labels = np.arange(22) % 2
    bright = np.where(labels == 1, 255, 60)[:, None, None, None]
    speckles = np.random.default_rng(3).integers(0, 2, (22, 8, 8, 8))
    volumes = (speckles * bright).astype(np.uint8)
    archive = write_archive(
        folder / "shapes.npz", train_images=volumes[:16], val_images=volumes[16:],
        train_labels=labels[:16, None].astype(np.uint8),
        val_labels=labels[16:, None].astype(np.uint8),
    )  # fmt: skip
    prepare_store(archive, folder / "store", config_with())
    return archive, folder / "store"


def _config(store: Path, **settings: Any) -> FinetuneConfig:
    return FinetuneConfig(
        task="classification",
        data=DataConfig(store=str(store), crop_size=(8, 8, 8), placement="uniform"),
        encoder=EncoderConfig(width=24, depth=2, heads=2, patch=(4, 4, 4)),
        classification=ClassificationConfig(pool="statistics", norm="batch", start="linear"),
        optim=OptimConfig(lr=1e-5),
        training=TrainingConfig(
            steps=1, batch_size=4, precision="fp32", device="cpu", threads=1, log_every=1
        ),
        init="none",
        **settings,
    )


def test_it_is_fitted_to_volumes_as_they_are_predicted(tmp_path: Path) -> None:
    """Features are means over mirrors: the map is linear, so outputs of that mean are the mean."""
    _, path = _store(tmp_path)
    store = open_store(path)
    config = _config(path, inference=InferenceConfig(flips=("x", "z")))
    training = ClassificationTraining(config, store)
    cases = store.ids("training")
    task, encoder = training.build(cases)
    feed = make_feed(
        store, cases, data=config.data, augmentation=config.augmentation, needs=task.needs,
        batch_size=4, seed=0, device=torch.device("cpu"),
    )  # fmt: skip

    training.begin(feed, Silent())

    rows = []
    for case_id in cases:
        with store.open(case_id) as case:
            voxels = torch.from_numpy(case.read_normalised((0, 0, 0), case.shape[1:]))[None]
        looks = []
        for axes in ([], [2], [4], [2, 4]):
            with torch.no_grad():
                tokens = encoder(voxels.flip(axes), spacing_of(case.affine)).tokens[0].numpy()
            looks.append([*tokens.mean(axis=0), *np.sqrt(tokens.var(axis=0) + 1e-6)])
        rows.append(np.mean(looks, axis=0))
    head = task.decoder
    np.testing.assert_allclose(head.mean.numpy(), np.mean(rows, axis=0), atol=1e-5)
    np.testing.assert_allclose(head.deviation.numpy(), np.std(rows, axis=0), atol=1e-5)


def test_a_run_starts_from_what_the_probe_knows(tmp_path: Path) -> None:
    archive, store = _store(tmp_path)
    config = _config(store, inference=InferenceConfig(flips=("x", "z")))
    told = Recorder()

    finetune(config, out=str(tmp_path / "run"), reporter=told)

    assert any("linear start from 16 volumes" in line for line in told.lines)
    scores = read_object(tmp_path / "run" / "results.json")["validation"]["validation"]
    assert scores["auc"] == 1.0  # after one step of next to nothing
    predict(str(tmp_path / "run"), [str(archive)], out=str(tmp_path / "answers"), reporter=Silent(),
            config=PredictConfig(device="cpu", precision="fp32"))  # fmt: skip
    said = {row.case_id: row for row in read_predictions(tmp_path / "answers" / "predictions.csv")}
    for row in read_predictions(tmp_path / "run" / VALIDATION):
        assert said[row.case_id].probabilities == pytest.approx(row.probabilities, abs=1e-5)
