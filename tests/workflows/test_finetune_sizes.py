"""Fine-tuning on crops of several sizes, and prediction from such a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_benchmark import SHAPE, make_store

from mim3d.config.data import DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.inference import InferenceConfig
from mim3d.config.task import DecoderConfig
from mim3d.config.training import TrainingConfig
from mim3d.config.verbs import FinetuneConfig, PredictConfig
from mim3d.foundation.reporting import Silent
from mim3d.workflows.finetune import finetune
from mim3d.workflows.loading import load_segmenter
from mim3d.workflows.predict import predict
from mim3d.workflows.tasks.curve import read_curve

LARGER = (40, 18, 30)
"""A window around the whole of every volume."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("sizes"), subjects=6)


def config_of(store: Path, *sizes: tuple[int, int, int]) -> FinetuneConfig:
    """Of 2 steps, each 4 crops in 2 parts; one of the sizes is larger than the volumes."""
    return FinetuneConfig(
        data=DataConfig(store=str(store), crop_size=(16, 16, 12), crop_sizes=sizes),
        encoder=EncoderConfig(width=24, depth=4, heads=2, patch=(4, 4, 4)),
        decoder=DecoderConfig(name="light", feature_size=4),
        training=TrainingConfig(
            steps=2, batch_size=4, accumulation=2, precision="fp32", device="cpu", threads=1,
            log_every=1, validate_every=2,
        ),
        init="none",
    )  # fmt: skip


def test_a_run_of_several_sizes_trains_predicts_and_knows_no_padding(
    store: Path, tmp_path: Path
) -> None:
    """Seen to fail with validation, or prediction, in windows that are filled up."""
    config = config_of(store, (16, 16, 12), (24, 12, 20))
    run = tmp_path / "run"
    finetune(config, out=str(run), reporter=Silent())

    # Crops of 24 x 12 x 20 in volumes of 22 x 18 x 14 are padded; training cut that away.
    assert SHAPE == (22, 18, 14)
    segmenter = load_segmenter(str(run), device="cpu")
    assert not segmenter.pads
    cases = sorted((store.parent / "cohort").rglob("images*/*.nii*"))[:2]
    assert len(cases) == 2
    labels = []
    for name, window in (("whole", SHAPE), ("larger", LARGER)):
        asked = PredictConfig(device="cpu", inference=InferenceConfig(window=window))
        out = tmp_path / name
        predict(str(run), [str(path) for path in cases], out=str(out), config=asked,
                reporter=Silent())  # fmt: skip
        files = sorted(out.glob("*.nii.gz"))
        labels.append([np.asarray(nib.load(path).dataobj) for path in files])
    assert len(labels[0]) == 2
    for one, other in zip(*labels, strict=True):
        assert np.array_equal(one, other)


def test_validation_sees_no_padding_either(store: Path, tmp_path: Path) -> None:
    curves = []
    for name, window in (("whole", SHAPE), ("larger", LARGER)):
        config = config_of(store, (16, 16, 12), (24, 12, 20))
        config = replace(config, inference=InferenceConfig(window=window))
        finetune(config, out=str(tmp_path / name), reporter=Silent())
        curves.append(read_curve(tmp_path / name)["dice"])

    assert curves[0] == curves[1]


def test_one_size_trains_as_it_did_and_pads(store: Path, tmp_path: Path) -> None:
    config = config_of(store)

    finetune(config, out=str(tmp_path / "run"), reporter=Silent())

    assert load_segmenter(str(tmp_path / "run"), device="cpu").pads
