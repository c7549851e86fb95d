"""Pictures as volumes one voxel thick through every command: weights, masks, labels, classes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from archives import write_archive
from foreign_networks import networks

from mim3d.cli.main import main
from mim3d.foundation.errors import ExitCode
from mim3d.models.weights import encoder_config, save_weights
from mim3d.training.checkpoints import read_weights
from mim3d.workflows.run_weights import checkpoint_of

CROP = ["--data.crop_size", "32,32,1", "--training.batch_size", "2", "--training.precision", "fp32"]
AFFINE = np.diag([0.5, 0.8, 6.0, 1.0])


def picture(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A disc on a slope, and where it is; `x y 1`."""
    random = np.random.default_rng(seed)
    x, y = np.mgrid[0:40, 0:36]
    labels = ((x - random.integers(12, 28)) ** 2 + (y - random.integers(12, 24)) ** 2 < 60)[
        ..., None
    ]
    values = (
        100 + x[..., None] + 0.5 * y[..., None] + 80 * labels + random.normal(0, 4, labels.shape)
    )
    return values.astype(np.float32), labels.astype(np.uint8)


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of slices, prepared; 2D weights converted; fine-tuned from them and predicted."""
    folder = tmp_path_factory.mktemp("flat")
    for part in ("images", "labels"):
        (folder / "source" / part).mkdir(parents=True)
    for i in range(6):
        for part, content in zip(("images", "labels"), picture(i), strict=True):
            nibabel.save(nibabel.Nifti1Image(content, AFFINE),
                         folder / "source" / part / f"case_{i}.nii.gz")  # fmt: skip
    (folder / "pretrain.yaml").write_text("data:\n  placement: body\n")
    (folder / "finetune.yaml").write_text("data:\n  placement: label\n")
    theirs = networks.randomised(networks.FacebookMae(32, 3, 24, 4, 2, 8))
    save_weights(folder / "mae.safetensors", theirs.state_dict(), {})
    commands = [
        ["prepare", str(folder / "source"), "--out", str(folder / "store"), "--workers", "0"],
        ["convert", str(folder / "mae.safetensors"), "--out", str(folder / "mae"),
         "--encoder.heads", "2", "--encoder.channels", "1"],
        ["pretrain", str(folder / "pretrain.yaml"), "--data.store", str(folder / "store"),
         "--init", str(folder / "mae"), "--out", str(folder / "pretrained"), "--training.steps",
         "2", "--objective.decoder_width", "24", "--objective.decoder_depth",
         "1", "--objective.decoder_heads", "2",
         "--training.pictures_every", "2", *CROP],
        ["finetune", str(folder / "finetune.yaml"), "--data.store", str(folder / "store"),
         "--init", str(folder / "pretrained"), "--out", str(folder / "tuned"), "--training.steps",
         "30", "--optim.lr", "2e-3",
         "--decoder.feature_size", "8", *CROP],
        ["predict", str(folder / "tuned"), str(folder / "source" / "images"), "--out",
         str(folder / "predictions")],
        ["evaluate", str(folder / "predictions"), str(folder / "source" / "labels"), "--out",
         str(folder / "results.json")],
    ]  # fmt: skip
    assert [main(command) for command in commands] == [ExitCode.DONE] * len(commands)
    return folder


def test_a_picture_is_predicted_on_its_own_thin_grid(walk: Path) -> None:
    for i in range(6):
        found = nibabel.load(walk / "predictions" / f"case_{i}.nii.gz")

        assert found.shape == (40, 36, 1)
        np.testing.assert_allclose(found.affine, AFFINE)
    rows = json.loads((walk / "results.json").read_text())["cases"]
    assert np.mean([row["dice"] for row in rows]) > 0.5  # all background has 0


def test_the_encoder_is_the_converted_one_of_flat_patches(walk: Path) -> None:
    tensors, metadata = read_weights(checkpoint_of(walk / "mae"))
    config = encoder_config(metadata)

    assert (config.patch, config.channels, config.learned_grid) == ((8, 8, 1), 1, (4, 4, 1))
    theirs = networks.randomised(networks.FacebookMae(32, 3, 24, 4, 2, 8))
    kernel = theirs.patch_embed.proj.weight.detach()
    ours = tensors["encoder.embedding.projection.weight"]
    torch.testing.assert_close(ours, kernel.sum(1).flatten(1))
    assert encoder_config(read_weights(checkpoint_of(walk / "tuned"))[1]).patch == (8, 8, 1)


def test_pre_training_draws_pictures_of_flat_volumes(walk: Path) -> None:
    assert list((walk / "pretrained" / "pictures").glob("*.png"))


@pytest.mark.filterwarnings("ignore::mim3d.data.files.reading.ReadWarning")
def test_pictures_of_an_archive_are_classified(tmp_path: Path) -> None:
    """MedMNIST's 2D form, `n 28 28`."""
    random = np.random.default_rng(0)
    y = np.array([[i % 2] for i in range(12)], np.uint8)
    x = (random.integers(0, 90, (12, 28, 28)) + 120 * y[:, :, None]).astype(np.uint8)
    archive = write_archive(tmp_path / "a.npz", train_images=x, train_labels=y, val_images=x[:4],
                            val_labels=y[:4], test_images=x[:4], test_labels=y[:4])  # fmt: skip
    (tmp_path / "c.yaml").write_text("task: classification\ndata:\n  placement: uniform\n")
    encoder = ["--encoder.preset", "tiny", "--encoder.depth", "2", "--encoder.patch", "4,4,1"]
    run, store = str(tmp_path / "run"), str(tmp_path / "store")
    commands = [
        ["prepare", str(archive), "--out", store, "--workers", "0"],
        ["finetune", str(tmp_path / "c.yaml"), "--data.store", store, "--init", "none", "--out",
         run, "--training.steps", "4", "--data.crop_size", "28,28,1", "--training.batch_size",
         "4", *encoder],
        ["predict", run, str(archive), "--out", str(tmp_path / "answers")],
    ]  # fmt: skip

    codes = [main(command) for command in commands]

    assert codes == [ExitCode.DONE] * 3
    with open(tmp_path / "answers" / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
