"""State dicts for MONAI: MONAI's own modules load them strictly and answer the same.

Tried with these breaks: `narrow` and `widen` exchanged in `NAMES`, the kernel's axes transposed,
the table worked out at 1 mm, LayerScale left out of the second map, `decoder4` for `decoder5`;
in `layouts.shapes`, the kernel's axes transposed.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import exporting
import monai.networks.nets
import pytest
import torch
from safetensors.torch import load_file

from mim3d.config.convert import ConvertConfig, ForeignSegmenterConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.export import ExportConfig, GraphConfig
from mim3d.config.task import ClassificationConfig, DecoderConfig
from mim3d.config.verbs import FinetuneConfig
from mim3d.foundation.errors import UserError
from mim3d.foundation.reporting import Silent
from mim3d.workflows.convert import convert
from mim3d.workflows.export.export import export

SIZE = (32, 12, 20)
GRAPH = GraphConfig(size=SIZE)
ENCODERS = {
    "mm": exporting.ENCODER,
    "index, two channels": replace(
        exporting.ENCODER, positions="sincos_index", channels=2, mlp_ratio=2.5
    ),
    "another grid's table": replace(
        exporting.ENCODER, positions="learned", learned_grid=(3, 3, 2), qkv_bias=False
    ),
    "layer scale": replace(exporting.ENCODER, layer_scale=0.3),
}


def exported(run: Path, graph: GraphConfig = GRAPH) -> torch.nn.Module:
    """MONAI's module of what was written, as the printed lines make it."""
    out = run.parent / "theirs.safetensors"
    export(str(run), out=str(out), config=ExportConfig("monai", graph=graph), reporter=Silent())
    made = json.loads(out.with_suffix(".json").read_text())
    module = getattr(monai.networks.nets, made["class"].rsplit(".", 1)[1])(**made["arguments"])
    module.load_state_dict(load_file(out), strict=True)
    return module.eval()


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
def test_an_encoder_gives_the_same_hidden_states_in_monai(
    encoder: EncoderConfig, tmp_path: Path
) -> None:
    ours = exporting.pretrained(tmp_path / "run", encoder)
    theirs = exported(tmp_path / "run")
    voxels = torch.randn(
        2, encoder.channels or 1, *SIZE, generator=torch.Generator().manual_seed(1)
    )

    with torch.no_grad():
        states = ours(voxels, taps=(1, 2))
        tokens, hidden = theirs(voxels)

    torch.testing.assert_close(tokens, states.tokens, atol=2e-5, rtol=1e-4)
    for own, their in zip(states.taps, hidden, strict=True):
        torch.testing.assert_close(their, own, atol=2e-5, rtol=1e-4)


def test_a_published_unetr_gives_the_same_logits_in_monai(tmp_path: Path) -> None:
    encoder = replace(exporting.ENCODER, depth=12, patch=(16, 16, 16))
    decoder = DecoderConfig(taps=(4, 7, 10, 12), tap_norm="none", feature_size=2,
                            deep_supervision=1)  # fmt: skip
    ours = exporting.segmenter(tmp_path / "run", encoder=encoder, decoder=decoder)
    size = (32, 16, 48)
    theirs = exported(tmp_path / "run", GraphConfig(size=size))
    voxels = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(1))

    with torch.no_grad():
        torch.testing.assert_close(theirs(voxels), ours(voxels), atol=1e-3, rtol=1e-4)


def test_a_classifier_by_class_token_gives_the_same_answers_in_monai(tmp_path: Path) -> None:
    encoder = replace(exporting.ENCODER, class_token=True)
    config = FinetuneConfig(task="classification", encoder=encoder, data=exporting.DATA,
                            classification=ClassificationConfig(target="grade",
                                                                pool="class_token"))  # fmt: skip
    ours = exporting.classifier(tmp_path / "run", config)
    theirs = exported(tmp_path / "run")
    voxels = torch.randn(2, 1, *SIZE, generator=torch.Generator().manual_seed(1))

    with torch.no_grad():
        torch.testing.assert_close(theirs(voxels)[0], ours(voxels), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["vit", "unetr"])
def test_what_was_converted_from_monai_goes_back_tensor_by_tensor(
    kind: str, tmp_path: Path
) -> None:
    """Round trip: MONAI's state dict, `convert`, `export --format monai`, MONAI."""
    nets, size = monai.networks.nets, (32, 32, 32)
    sides = {"hidden_size": 24, "mlp_dim": 48, "num_heads": 2, "qkv_bias": True}
    if kind == "vit":
        theirs = nets.ViT(2, size, (16, 8, 16), num_layers=3, **sides)
    else:
        theirs = nets.UNETR(2, 3, size, feature_size=2, **sides)
    exporting.drawn(theirs)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "w.pt")
    said = ForeignSegmenterConfig() if kind == "vit" else ForeignSegmenterConfig(modality="mr")
    grid = (2, 4, 2) if kind == "vit" else None
    config = ConvertConfig(encoder=EncoderConfig(heads=2, learned_grid=grid), segmenter=said)
    convert(str(tmp_path / "w.pt"), out=str(tmp_path / "run"), config=config, reporter=Silent())

    back = exported(tmp_path / "run", GraphConfig(size=size)).state_dict()

    assert back.keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        # MONAI makes `norm_cross_attn` and never reads it; the export fills it with 1 and 0.
        if "norm_cross_attn" not in name:
            assert torch.equal(back[name], tensor), name


def test_another_epsilon_than_that_of_monai_is_refused(tmp_path: Path) -> None:
    exporting.pretrained(tmp_path / "run", replace(exporting.ENCODER, norm_epsilon=1e-6))

    with pytest.raises(UserError) as caught:
        exported(tmp_path / "run")

    assert "`encoder.norm_epsilon 1e-06`: MONAI's is 1e-05" in str(caught.value.remedy)
    with pytest.raises(UserError, match="has no place"):
        export(str(tmp_path / "run"), out=str(tmp_path / "o.safetensors"), dry_run=True,
               config=ExportConfig("monai"), reporter=Silent())  # fmt: skip


def test_all_that_monai_has_no_place_for_is_listed_and_nothing_written(tmp_path: Path) -> None:
    encoder = replace(exporting.ENCODER, positions="rotary_mm", registers=2, class_token=True)
    exporting.pretrained(tmp_path / "run", encoder)

    with pytest.raises(UserError) as caught:
        exported(tmp_path / "run")

    assert caught.value.code == "no-counterpart"
    for said in ("rotary_mm", "encoder.registers 2", "encoder.class_token", "--format onnx"):
        assert said in str(caught.value.remedy)
    assert not list(tmp_path.glob("theirs*"))


def test_a_segmenter_of_another_form_is_refused_and_its_encoder_is_not(tmp_path: Path) -> None:
    exporting.segmenter(tmp_path / "run")

    with pytest.raises(UserError, match="UNETR has no place") as caught:
        exported(tmp_path / "run")

    assert "decoder.name light" in str(caught.value.remedy)
    assert "--graph.part encoder" in str(caught.value.remedy)
    assert exported(tmp_path / "run", replace(GRAPH, part="encoder")).__class__.__name__ == "ViT"
