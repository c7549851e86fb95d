"""Folders in the Hugging Face layout: they load by their path, and tell nothing private.

Tried with these breaks: `data.store` kept in `_anonymous`, `trained_on` kept as it is, `_outputs`
without the division, the checksum not compared.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import exporting
import pytest
import torch

from mim3d import UNETR, VolumeViT, load_segmenter
from mim3d.config.convert import ConvertConfig, ForeignSegmenterConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.export import ExportConfig
from mim3d.config.task import ClassificationConfig, DecoderConfig
from mim3d.config.verbs import FinetuneConfig
from mim3d.foundation.errors import ExitCode, WeightsError
from mim3d.foundation.reporting import Silent
from mim3d.models.weights import save_weights
from mim3d.workflows.convert import convert
from mim3d.workflows.doctor import doctor
from mim3d.workflows.export.export import export
from mim3d.workflows.info import info
from mim3d.workflows.loading import load_classifier
from mim3d.workflows.result import Result
from mim3d.workflows.run_record import load_preparation
from mim3d.workflows.run_weights import encoder_of, initial_record, run_digest, start_from


def exported(run: Path, out: Path) -> Result:
    return export(str(run), out=str(out), config=ExportConfig("hub-folder"), reporter=Silent())


def test_a_pretrained_encoder_starts_another_run_by_the_path_of_its_folder(tmp_path: Path) -> None:
    ours = exporting.pretrained(tmp_path / "run")
    exported(tmp_path / "run", tmp_path / "hub")

    loaded, fresh = VolumeViT.load(tmp_path / "hub"), VolumeViT(encoder_of(tmp_path / "hub"))
    start_from(fresh, str(tmp_path / "hub"), "last", Silent())

    for name, tensor in ours.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
        assert torch.equal(fresh.state_dict()[name], tensor)
    assert not loaded.training
    record, own = (initial_record(str(tmp_path / name)) for name in ("hub", "run"))
    assert {**record, "init": ""} == {**own, "init": ""}
    assert record["step"] == 7


@pytest.mark.parametrize("name", ["unetr", "half", "light", "hybrid"])
def test_a_segmenter_loads_whole_from_folder_and_run(name: str, tmp_path: Path) -> None:
    decoder = DecoderConfig(name=name, feature_size=4)  # type: ignore[arg-type]
    ours = exporting.segmenter(tmp_path / "run", decoder=decoder)
    exported(tmp_path / "run", tmp_path / "hub")
    voxels = torch.randn(1, 1, 13, 9, 10, generator=torch.Generator().manual_seed(1))

    from_hub, from_run = UNETR.load(tmp_path / "hub"), UNETR.load(tmp_path / "run")
    segmenter = load_segmenter(tmp_path / "hub", device="cpu")

    with torch.no_grad():
        for network in (from_hub, from_run, segmenter.network):
            assert torch.equal(network(voxels), ours(voxels))
    assert segmenter.window == exporting.DATA.crop_size
    assert segmenter.classes == exporting.CLASSES


def test_a_classifier_answers_from_the_folder_alone(tmp_path: Path) -> None:
    config = FinetuneConfig(task="classification", encoder=exporting.ENCODER, data=exporting.DATA,
                            classification=ClassificationConfig(target="grade"))  # fmt: skip
    ours = exporting.classifier(tmp_path / "run", config)
    exported(tmp_path / "run", tmp_path / "hub")

    loaded = load_classifier(tmp_path / "hub", device="cpu")

    voxels = torch.randn(1, 1, 13, 9, 10, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(loaded.model.network(voxels), ours(voxels))
    assert loaded.table[0].classes == (1.0, 2.0, 4.0)
    with pytest.raises(WeightsError, match="no segmenter"):
        UNETR.load(tmp_path / "hub")


@pytest.mark.parametrize("made", [exporting.segmenter, exporting.pretrained])
def test_no_path_and_no_name_of_a_case_leaves_the_house(tmp_path: Path, made: Any) -> None:
    made(tmp_path / "run")

    exported(tmp_path / "run", tmp_path / "hub")

    content = b"".join(path.read_bytes() for path in (tmp_path / "hub").iterdir())
    for private in (b"somebody", b"sub-miller", b"sub-smith"):
        assert private not in content
    assert set(load_preparation(tmp_path / "hub")["trained_on"].values()) == {"aa11", "bb22"}


def test_the_card_is_filled_from_the_run(tmp_path: Path) -> None:
    exporting.segmenter(tmp_path / "run")

    exported(tmp_path / "run", tmp_path / "hub")

    card = (tmp_path / "hub" / "README.md").read_text()
    for told in ("library_name: mim3d", "pipeline_tag: image-segmentation", "MR volumes (T1)",
                 "background, left, right", "validation: dice | 0.8765", "| volumes trained on | 2",
                 "1 x 1.5 x 2 mm", "| steps | 7 |", "licence"):  # fmt: skip
        assert told in card


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    exporting.pretrained(tmp_path / "run")
    exported(tmp_path / "run", tmp_path / "hub")
    weights = tmp_path / "hub" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)

    with pytest.raises(WeightsError, match="is not as it was written"):
        VolumeViT.load(tmp_path / "hub")


def test_info_and_doctor_know_the_folder(tmp_path: Path) -> None:
    exporting.segmenter(tmp_path / "run")
    exported(tmp_path / "run", tmp_path / "hub")

    told, sound = info(str(tmp_path / "hub")), doctor(str(tmp_path / "hub"), reporter=Silent())

    for line in ("hub folder of a UNETR, step 7", "encoder   width 24, depth 2, heads 2, patch (8,",
                 "outputs   background, left, right", "spacing   1 x 1.5 x 2 mm",
                 "trained   on 2 cases"):  # fmt: skip
        assert line in told.text
    assert {state for state, _ in sound.facts.values()} == {"ok"}
    weights = tmp_path / "hub" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    damaged = doctor(str(tmp_path / "hub"), reporter=Silent())
    assert damaged.facts["model.safetensors"][0] == "fail"
    assert damaged.exit_code == ExitCode.INPUT


def test_the_card_of_converted_weights_claims_nothing_of_a_training(tmp_path: Path) -> None:
    """It told 0 volumes, a batch, a learning rate, and the HU window that the range replaces."""
    monai = pytest.importorskip("monai.networks.nets")
    theirs = monai.UNETR(1, 3, (32, 32, 32), feature_size=2, hidden_size=24, mlp_dim=48,
                         num_heads=2)  # fmt: skip
    save_weights(tmp_path / "w.safetensors", theirs.state_dict(), {})
    segmenter = ForeignSegmenterConfig(modality="ct", intensity_range=(-175.0, 250.0))
    config = ConvertConfig(encoder=EncoderConfig(heads=2), segmenter=segmenter)
    convert(str(tmp_path / "w.safetensors"), out=str(tmp_path / "run"), config=config,
            reporter=Silent())  # fmt: skip

    exported(tmp_path / "run", tmp_path / "hub")

    card = (tmp_path / "hub" / "README.md").read_text()
    assert "-175 to 250 become 0 to 1" in card
    assert "HU" not in card
    assert load_preparation(tmp_path / "run")["converted_from"] in card
    for claim in ("learning rate", "seed", "trained on |", "Trained on", "fine-tuning |"):
        assert claim not in card
    assert "elsewhere" in info(str(tmp_path / "hub")).text


def test_digests_tell_the_folder_of_one_run_from_that_of_another(tmp_path: Path) -> None:
    exporting.pretrained(tmp_path / "one")
    exporting.pretrained(tmp_path / "other", replace(exporting.ENCODER, depth=1))
    exported(tmp_path / "one", tmp_path / "hub-one")
    exported(tmp_path / "other", tmp_path / "hub-other")

    assert run_digest(tmp_path / "hub-one") != run_digest(tmp_path / "hub-other")
