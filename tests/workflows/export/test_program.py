"""Programs that need none of our code: ONNX Runtime and `torch.export` answer as the network does.

Tried with this break: a learned table's grid taken from the example's size.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import exporting
import numpy as np
import pytest
import torch
from torch import Tensor

from mim3d.config.export import ExportConfig, GraphConfig
from mim3d.config.task import ClassificationConfig
from mim3d.config.verbs import FinetuneConfig
from mim3d.foundation.errors import ConfigError, UserError, WeightsError
from mim3d.foundation.reporting import Silent
from mim3d.workflows.export import onnx as onnx_form
from mim3d.workflows.export.export import export
from mim3d.workflows.export.program import made_program
from mim3d.workflows.export.subject import load_subject

SIZES = ((1, (24, 12, 8)), (2, (16, 20, 16)), (3, (40, 8, 12)))
SHALLOW = replace(exporting.ENCODER, depth=1)
pytestmark = pytest.mark.filterwarnings("ignore")  # what exporters say of themselves


def drawn(batch: int, size: tuple[int, int, int], channels: int = 1) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(sum(size) + batch)
    voxels = torch.randn(batch, channels, *size, generator=random)
    return voxels, 0.6 + torch.rand(batch, 3, generator=random)


def test_onnx_runtime_segments_as_the_network_at_any_batch_size_and_spacing(
    tmp_path: Path,
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    ours = exporting.segmenter(tmp_path / "run", encoder=SHALLOW)
    out = tmp_path / "segmenter.onnx"

    result = export(str(tmp_path / "run"), out=str(out), config=ExportConfig("onnx"),
                    reporter=Silent())  # fmt: skip

    session = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    facts = json.loads(session.get_modelmeta().custom_metadata_map["mim3d"])
    assert facts["outputs"] == ["background", "left", "right"]
    assert facts["preparation"]["clip_percentiles"] == [0.5, 99.5]
    assert len(result.facts["compared"]) == 3
    for batch, size in SIZES:
        voxels, spacing = drawn(batch, size)
        feed = {"voxels": voxels.numpy(), "spacing_mm": spacing.numpy()}
        (answers,) = session.run(["answers"], feed)
        with torch.no_grad():
            expected = ours(voxels, spacing)
        np.testing.assert_allclose(answers, expected, atol=1e-4)
        assert not np.allclose(answers, ours(voxels, 2 * spacing).detach(), atol=1e-4)


def test_torch_export_encodes_as_the_encoder_tap_for_tap(tmp_path: Path) -> None:
    encoder = replace(SHALLOW, positions="learned", learned_grid=(2, 3, 2), registers=1)
    ours = exporting.pretrained(tmp_path / "run", encoder)
    out = tmp_path / "encoder.pt2"

    export(str(tmp_path / "run"), out=str(out), config=ExportConfig("torch-export"),
           reporter=Silent())  # fmt: skip

    program = torch.export.load(str(out)).module()
    for batch, size in SIZES:
        voxels, _ = drawn(batch, size)
        tokens, tap, prefix = program(voxels)
        states = ours(voxels, taps=(1,))
        torch.testing.assert_close(tokens, states.tokens, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(tap, states.taps[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(prefix, states.prefix, atol=1e-5, rtol=1e-4)


def test_a_classifier_of_slices_is_one_program_for_one_size(tmp_path: Path) -> None:
    encoder = replace(SHALLOW, patch=(8, 4, 1), positions="sincos_index")
    config = FinetuneConfig(task="classification", encoder=encoder,
                            data=replace(exporting.DATA, crop_size=(16, 12, 1)),
                            classification=ClassificationConfig(target="grade"))  # fmt: skip
    ours = exporting.classifier(tmp_path / "run", config)
    asked = ExportConfig("torch-export", graph=GraphConfig(dynamic=False))

    made = made_program(load_subject(tmp_path / "run", asked), asked)

    assert made.inputs == ("voxels",)
    voxels, _ = drawn(3, (16, 12, 1))
    torch.testing.assert_close(made.graph.module()(voxels)[0], ours(voxels), atol=1e-5, rtol=1e-4)
    with pytest.raises(WeightsError, match="answers otherwise"):
        made.difference(lambda inputs: [ours(*inputs) * 1.01 + 0.01], 1e-3)


@pytest.mark.parametrize(
    ("chooses", "said"),
    [
        (ClassificationConfig(target="grade", drop_air=True), "`classification.drop_air` chooses"),
        (
            ClassificationConfig(target="grade", keep=0.5, keep_at_test=True),
            "keep_at_test` chooses",
        ),
    ],
)
def test_a_classifier_that_sees_a_part_of_each_crop_is_no_program_of_voxels(
    tmp_path: Path, chooses: ClassificationConfig, said: str
) -> None:
    """It would be shown all of it, and answer otherwise than `predict`."""
    config = FinetuneConfig(task="classification", encoder=SHALLOW, data=exporting.DATA,
                            classification=chooses)  # fmt: skip
    exporting.classifier(tmp_path / "run", config)

    for dynamic in (True, False):
        asked = ExportConfig("torch-export", graph=GraphConfig(dynamic=dynamic))
        with pytest.raises(UserError, match=said):
            made_program(load_subject(tmp_path / "run", asked), asked)
    alone = ExportConfig("torch-export", graph=GraphConfig(part="encoder"))
    assert made_program(load_subject(tmp_path / "run", alone), alone).module.names[0] == "tokens"


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (GraphConfig(size=(16, 12, 9)), "`graph.size` is 16,12,9, expected whole patches of 8,4,4"),
        (GraphConfig(check_sizes=((16, 13, 8),)), "`graph.check_sizes` is 16,13,8"),
        (GraphConfig(taps=(3,)), "`graph.taps` is 3, the encoder has 2 blocks"),
        (GraphConfig(part="network"), "has no network but its encoder"),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_is_made(
    graph: GraphConfig, said: str, tmp_path: Path
) -> None:
    exporting.pretrained(tmp_path / "run")
    asked = ExportConfig("torch-export", graph=graph)

    with pytest.raises(UserError) as caught:
        export(str(tmp_path / "run"), out=str(tmp_path / "a.pt2"), config=asked, reporter=Silent())

    assert said in caught.value.what


def test_taps_of_a_whole_network_are_refused(tmp_path: Path) -> None:
    exporting.segmenter(tmp_path / "run", encoder=SHALLOW)
    asked = ExportConfig("torch-export", graph=GraphConfig(taps=(1,)))

    with pytest.raises(ConfigError, match=r"`graph\.taps` are an encoder's"):
        made_program(load_subject(tmp_path / "run", asked), asked)


def test_without_onnx_the_line_that_installs_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporting.pretrained(tmp_path / "run")
    monkeypatch.setattr(onnx_form.importlib.util, "find_spec", lambda name: None)

    with pytest.raises(ConfigError, match="needs `onnx` and `onnxscript`") as caught:
        export(str(tmp_path / "run"), out=str(tmp_path / "a.onnx"), config=ExportConfig("onnx"),
               reporter=Silent())  # fmt: skip

    assert "pip install onnx onnxscript" in str(caught.value.remedy)
