"""From a table of contrasts to predictions: pre-trained on three, fine-tuned on two, given one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from mim3d.config.data import DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig, ProbesConfig
from mim3d.config.plan import PretrainPlanConfig
from mim3d.config.task import DecoderConfig, SegmentationConfig
from mim3d.config.training import TrainingConfig
from mim3d.config.verbs import (
    FinetuneConfig,
    PredictConfig,
    PreparationConfig,
    PrepareConfig,
    PretrainConfig,
)
from mim3d.data.files import read_volume
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.reporting import Silent
from mim3d.inference.predict import predict_probabilities
from mim3d.workflows.finetune import finetune
from mim3d.workflows.loading import load_segmenter
from mim3d.workflows.plan.subject import subject_of
from mim3d.workflows.predict import predict
from mim3d.workflows.prepare import prepare
from mim3d.workflows.pretrain import pretrain
from mim3d.workflows.run_weights import encoder_of
from tests.contrast_cohorts import CONTRASTS, table, write_contrasts

ENCODER = EncoderConfig(width=24, depth=2, heads=2, patch=(8, 8, 4), embedding="per_contrast")
MASKS = PretextConfig(
    decoder_width=12,
    decoder_depth=1,
    decoder_heads=2,
    contrast_dropout=0.3,
    masks_per_contrast=True,
)
TRAINING = TrainingConfig(steps=2, batch_size=2, device="cpu", log_every=1, pictures_every=1)
PREDICT = PredictConfig(pictures=False, device="cpu")


def pretraining(store: Path) -> PretrainConfig:
    return PretrainConfig(
        data=DataConfig(store=str(store), crop_size=(16, 24, 8)),
        encoder=ENCODER,
        objective=MASKS,
        training=TRAINING,
        probes=ProbesConfig(every=0),
    )


def finetuning(store: Path, init: str) -> FinetuneConfig:
    return FinetuneConfig(
        data=DataConfig(store=str(store), crop_size=(16, 24, 8), placement="label"),
        decoder=DecoderConfig(feature_size=4),
        objective=SegmentationConfig(contrast_dropout=0.4),
        training=TRAINING,
        init=init,
    )


def stored(path: Path) -> NDArray[Any]:
    """What a NIfTI file holds, read by nibabel."""
    return np.asarray(nibabel.Nifti1Image.from_filename(path).dataobj)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of three and of two contrasts, a run pre-trained on the one, fine-tuned on the other.

    Beside them a store whose third contrast has another name.
    """
    folder = tmp_path_factory.mktemp("contrasts")
    data = write_contrasts(folder / "data")
    config = PrepareConfig(prepare=PreparationConfig(workers=0))
    tables = {
        "three": table(data, CONTRASTS),
        "two": table(data, ("FLAIR", "T1")),
        "other": table(data, ("T1", "T2"), called=("T1", "PD")),
    }
    for name, path in tables.items():
        prepare(str(path), out=str(folder / name), config=config, reporter=Silent())
    pretrain(pretraining(folder / "three"), out=str(folder / "pre"), reporter=Silent())
    finetune(
        finetuning(folder / "two", str(folder / "pre")),
        out=str(folder / "fine"),
        reporter=Silent(),
    )
    return folder


def test_a_run_keeps_the_names_of_its_contrasts(place: Path) -> None:
    assert encoder_of(place / "pre").contrasts == CONTRASTS
    assert encoder_of(place / "fine").contrasts == CONTRASTS
    assert load_segmenter(place / "fine", device="cpu").channel_names == ("FLAIR", "T1")


def test_the_loss_of_masked_contrasts_is_logged(place: Path) -> None:
    lines = [json.loads(line) for line in (place / "pre" / "log.jsonl").read_text().splitlines()]

    steps = [line for line in lines if "masked_share" in line]
    assert steps
    assert all(0.7 < line["masked_share"] < 1 for line in steps)


def test_any_contrasts_of_the_run_are_predicted_by_name(place: Path) -> None:
    sources = {
        "both": table(place / "data", ("FLAIR", "T1"), cases=1),
        "turned": table(place / "data", ("T1", "FLAIR"), cases=1),
        "one": table(place / "data", ("T1",), cases=1),
    }
    found = {}
    for name, source in sources.items():
        result = predict(
            str(place / "fine"),
            [str(source)],
            out=str(place / name),
            config=replace(PREDICT, inference=replace(PREDICT.inference, save_probabilities=True)),
            reporter=Silent(),
        )
        assert result.facts["predicted"] == 1
        found[name] = stored(place / name / "case_0_probabilities.nii.gz")

    assert np.array_equal(found["both"], found["turned"])
    assert not np.allclose(found["both"], found["one"], atol=1e-4)


def test_a_file_without_names_is_told_by_the_line(place: Path) -> None:
    image = str(place / "data" / "case_0_T1.nii.gz")
    told = replace(PREDICT, channels=("T1",))

    refused = predict(
        str(place / "fine"), [image], out=str(place / "silent"), config=PREDICT, reporter=Silent()
    )
    taken = predict(
        str(place / "fine"), [image], out=str(place / "told"), config=told, reporter=Silent()
    )

    assert refused.facts["refused"] == ["case_0_T1: left out (channels)"]
    assert taken.facts["predicted"] == 1
    # In the library the same goes by `for_channels`.
    model = load_segmenter(place / "fine", device="cpu").for_channels(["T1"])
    volume = read_volume(image)
    probabilities = predict_probabilities(model, volume).voxels
    source = table(place / "data", ("T1",), cases=1)
    predict(str(place / "fine"), [str(source)], out=str(place / "named"), config=PREDICT,
            reporter=Silent())  # fmt: skip
    labels = stored(place / "named" / "case_0.nii.gz")
    assert np.array_equal(probabilities.argmax(0), labels)
    assert np.array_equal(labels, stored(place / "told" / "case_0_T1.nii.gz"))


def test_a_contrast_that_the_run_was_not_tuned_on_is_refused_by_name(place: Path) -> None:
    model = load_segmenter(place / "fine", device="cpu")

    with pytest.raises(UserError, match="contrast `T2`, which the run does not know") as caught:
        model.for_channels(["T2"])

    assert "`FLAIR`, `T1`" in str(caught.value.remedy)
    assert "--channels" in str(caught.value.remedy)


def test_a_store_with_a_foreign_contrast_is_refused_with_both_lists(place: Path) -> None:
    config = finetuning(place / "other", str(place / "pre"))

    with pytest.raises(
        ConfigError, match="contrast `PD`, which the encoder does not know"
    ) as found:
        finetune(config, out=str(place / "never"), reporter=Silent())

    assert "`T1`, `PD`" in str(found.value.remedy)
    assert "`T1`, `T2`, `FLAIR`" in str(found.value.remedy)
    assert not (place / "never").exists()


def test_a_plan_knows_that_few_tokens_show_no_contrast(place: Path) -> None:
    config = pretraining(place / "three")
    plan = PretrainPlanConfig(data=config.data, encoder=ENCODER, objective=MASKS, training=TRAINING)

    tokens = subject_of(plan).tokens

    # 2 x 3 x 2 tokens; 0.75^3 = 0.42 of them are hidden, and every one is decoded.
    assert tokens == {"all": 12, "visible": 7, "decoded": 12}
