"""The last map of a classifier starts where a convex problem has its end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from archives import shapes, write_archive
from preparing import Recorder, config_with

from mim3d.config.data import DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.task import ClassificationConfig
from mim3d.config.training import OptimConfig, TrainingConfig
from mim3d.config.verbs import FinetuneConfig, PredictConfig
from mim3d.data.asked_target import AskedTarget
from mim3d.data.batch import CropBatch
from mim3d.data.prepare import prepare_store
from mim3d.evaluation.predictions import read_predictions
from mim3d.foundation.documents import read_object
from mim3d.foundation.reporting import Silent
from mim3d.models.classifier import VolumeClassifier
from mim3d.models.vit import VolumeViT
from mim3d.objectives.classification import Classification
from mim3d.workflows.finetune import finetune
from mim3d.workflows.predict import predict
from mim3d.workflows.tasks.classification import VALIDATION
from mim3d.workflows.tasks.linear_head import HeadStart, start_head

pytestmark = pytest.mark.filterwarnings("ignore:.*an array says neither voxel size")

KIND = AskedTarget("kind", (0.0, 1.0, 2.0), counts=(8, 8, 8))
FOUND = AskedTarget("found", (0.0, 1.0), counts=(12, 12), is_sigmoid=True)
AGE = AskedTarget("age", None, mean=1.0, deviation=2.0)
CROPS = 24


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


def _batches(targets: np.ndarray) -> list[CropBatch]:
    """Crops whose contrast rises with the target, not without noise, in two batches."""
    generator = torch.Generator().manual_seed(1)
    aims = torch.tensor(targets, dtype=torch.float32)
    noise = torch.randn(CROPS, 1, 8, 8, 8, generator=generator)
    size = 1 + 0.1 * aims + 0.1 * torch.randn(CROPS, generator=generator)
    affine = torch.eye(4, dtype=torch.float64).repeat(CROPS, 1, 1)
    voxels = noise * size[:, None, None, None, None]
    return [
        CropBatch(
            voxels=voxels[part], affine=affine[part], targets=aims[part, None],
            case_ids=tuple(f"case{number}" for number in range(CROPS)[part]),
            crop_ids=torch.arange(CROPS)[part],
        )
        for part in (slice(0, 10), slice(10, CROPS))
    ]  # fmt: skip


def _started(
    asked: AskedTarget, targets: np.ndarray, *, has_norm: bool = True
) -> tuple[HeadStart, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What was fitted, standardised features by hand, weight, bias, outputs of the network."""
    task, batches = _task(asked, has_norm=has_norm), _batches(targets)
    with torch.no_grad():
        tokens = torch.cat([
            task.encoder(one.voxels, one.spacing_mm).tokens for one in batches
        ]).double().numpy()  # fmt: skip
    found = start_head(task, batches, lambda case_id: case_id)
    raw = np.concatenate([tokens.mean(axis=1), np.sqrt(tokens.var(axis=1) + 1e-6)], axis=1)
    features = (raw - raw.mean(axis=0)) / raw.std(axis=0)
    with torch.no_grad():
        task.eval()
        outputs = torch.cat([task.network(one.voxels, one.spacing_mm) for one in batches])
    linear = task.decoder.linear
    weight, bias = linear.weight.detach().double().numpy(), linear.bias.detach().double().numpy()
    if not has_norm:
        bias = bias + weight @ raw.mean(axis=0)
        weight = weight * raw.std(axis=0)
    np.testing.assert_allclose(outputs.numpy(), features @ weight.T + bias, atol=2e-3)
    return found, features, weight, bias, outputs.double().numpy()


def _softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("has_norm", [True, False])
def test_of_classes_it_is_where_penalised_cross_entropy_has_no_slope(has_norm: bool) -> None:
    targets = np.arange(CROPS) % 3

    found, features, weight, _, outputs = _started(KIND, targets, has_norm=has_norm)

    assert found.crops == CROPS
    wrong = (_softmax(outputs) - np.eye(3)[targets]) / CROPS
    slope = features.T @ wrong + found.strengths[0] * weight.T
    assert np.abs(slope).max() < 1e-4
    assert np.abs(wrong.sum(axis=0)).max() < 1e-4
    assert (outputs.argmax(axis=1) == targets).mean() > 0.6


def test_of_a_label_with_one_output_it_tells_class_1_from_0() -> None:
    targets = np.arange(CROPS) % 2

    found, features, weight, _, outputs = _started(FOUND, targets)

    assert outputs.shape == (CROPS, 1)
    wrong = (1 / (1 + np.exp(-outputs[:, 0])) - targets) / CROPS
    # The penalty is on a map of two classes, whose weights are half of this, once with each sign.
    assert np.abs(features.T @ wrong + found.strengths[0] * weight[0] / 2).max() < 1e-4


def test_of_a_number_it_is_ridge_regression_in_deviations() -> None:
    targets = np.arange(CROPS) / 5

    found, features, weight, bias, _ = _started(AGE, targets)

    aims = (targets - AGE.mean) / AGE.deviation
    square = features.T @ features / CROPS + found.strengths[0] * np.eye(features.shape[1])
    expected = np.linalg.solve(square, features.T @ (aims - aims.mean()) / CROPS)
    np.testing.assert_allclose(weight[0], expected, atol=1e-4)
    assert bias[0] == pytest.approx(aims.mean(), abs=1e-5)


def test_a_run_starts_from_what_the_probe_knows(tmp_path: Path) -> None:
    labels = np.arange(22) % 2
    bright = np.where(labels == 1, 255, 60)[:, None, None, None]
    volumes = (shapes(22, 3) // 255 * bright).astype(np.uint8)
    archive = write_archive(
        tmp_path / "shapes.npz", train_images=volumes[:16], val_images=volumes[16:],
        train_labels=labels[:16, None].astype(np.uint8),
        val_labels=labels[16:, None].astype(np.uint8),
    )  # fmt: skip
    prepare_store(archive, tmp_path / "store", config_with())
    config = FinetuneConfig(
        task="classification",
        data=DataConfig(store=str(tmp_path / "store"), crop_size=(8, 8, 8), placement="uniform"),
        encoder=EncoderConfig(width=24, depth=2, heads=2, patch=(4, 4, 4)),
        classification=ClassificationConfig(pool="statistics", norm="batch", start="linear"),
        optim=OptimConfig(lr=1e-5),
        training=TrainingConfig(
            steps=1, batch_size=4, precision="fp32", device="cpu", threads=1, log_every=1
        ),
        init="none",
    )
    told = Recorder()

    finetune(config, out=str(tmp_path / "run"), reporter=told)

    assert any("linear start from 64 crops" in line for line in told.lines)
    scores = read_object(tmp_path / "run" / "results.json")["validation"]["validation"]
    assert scores["auc"] == 1.0  # after one step of next to nothing
    predict(str(tmp_path / "run"), [str(archive)], out=str(tmp_path / "answers"), reporter=Silent(),
            config=PredictConfig(device="cpu", precision="fp32"))  # fmt: skip
    said = {row.case_id: row for row in read_predictions(tmp_path / "answers" / "predictions.csv")}
    for row in read_predictions(tmp_path / "run" / VALIDATION):
        assert said[row.case_id].probabilities == pytest.approx(row.probabilities, abs=1e-5)
