"""`mim3d convert` of other programs' checkpoints: whole runs, adapted encoders, and refusals."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import monai.networks.nets as nets
import nibabel
import numpy as np
import pytest
import torch
from foreign_networks import networks
from torch import nn

from mim3d.config.convert import ConversionConfig, ConvertConfig, ForeignSegmenterConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.verbs import PredictConfig
from mim3d.foundation.errors import ConfigError, UserError, WeightsError
from mim3d.foundation.reporting import Silent
from mim3d.models.adaptation import changed_channels
from mim3d.models.layouts.layout import layout_of
from mim3d.models.resize import resized_kernel
from mim3d.models.vit import VolumeViT
from mim3d.models.weights import encoder_config, load_weights, save_weights
from mim3d.workflows.convert import convert
from mim3d.workflows.foreign import Converted
from mim3d.workflows.foreign_layouts import by_layout
from mim3d.workflows.info import info
from mim3d.workflows.loading import load_segmenter
from mim3d.workflows.predict import predict
from mim3d.workflows.run_weights import encoder_of, start_from

quiet = functools.partial(convert, reporter=Silent())
SIZE = (32, 16, 16)
HEADS = EncoderConfig(heads=2, learned_grid=(2, 1, 1))
OTHER = ForeignSegmenterConfig(
    modality="other", intensity_range=(0.0, 1.0), crop_to_body=False, classes=("air", "a", "b")
)


@pytest.fixture(scope="module")
def unetr() -> nn.Module:
    return networks.randomised(nets.UNETR(1, 3, SIZE, 4, 24, 48, num_heads=2))


@pytest.fixture
def source(unetr: nn.Module, tmp_path: Path) -> str:
    save_weights(tmp_path / "w.safetensors", unetr.state_dict(), {})
    return str(tmp_path / "w.safetensors")


def test_a_whole_unetr_predicts_what_its_own_program_does(
    unetr: nn.Module, source: str, tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    voxels = np.random.default_rng(0).random(SIZE, np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1, 1.5, 2, 1])), tmp_path / "case.nii.gz")

    result = quiet(source, out=run, config=ConvertConfig(encoder=HEADS, segmenter=OTHER))
    predict(run, [str(tmp_path / "case.nii.gz")], out=str(tmp_path / "out"),
            config=PredictConfig(precision="fp32", pictures=False), reporter=Silent())  # fmt: skip

    with torch.no_grad():
        logits = unetr(torch.from_numpy(voxels)[None, None])[0]
        ours = load_segmenter(run).network(torch.from_numpy(voxels)[None, None])[0]
    torch.testing.assert_close(ours, logits, atol=1e-4, rtol=0)
    found = np.asarray(nibabel.load(tmp_path / "out" / "case.nii.gz").dataobj)
    top = logits.topk(2, dim=0).values
    is_clear = (top[0] - top[1]).numpy() > 0.05  # stored voxels are rounded
    assert is_clear.mean() > 0.5
    assert (found == logits.argmax(0).numpy())[is_clear].all()
    assert load_segmenter(run).classes.names == ("air", "a", "b")
    assert "the encoder is whole, and its decoder" in result.text
    assert info(run).text.startswith("converted run, done")
    start_from(VolumeViT(encoder_of(run)), run, "last", Silent())


def test_without_what_predict_needs_the_encoder_goes_into_the_run_and_it_is_said(
    source: str, tmp_path: Path
) -> None:
    result = quiet(source, out=str(tmp_path / "run"), config=ConvertConfig(encoder=HEADS))

    assert "for `predict` say also `--segmenter.modality ct`" in result.text
    assert "left out  out.conv.conv.bias, 3" in result.text
    with pytest.raises(UserError, match="cannot segment"):
        load_segmenter(tmp_path / "run")
    assert encoder_of(tmp_path / "run").learned_grid == (2, 1, 1)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"modality": "ct", "intensity_range": None}, "--segmenter.window_hu"),
        ({"classes": ("air", "a")}, "`segmenter.classes` has 2 entries, but the network has 3"),
        ({"classes": ("air", "a", "a")}, "`segmenter.classes` has more than one `a`"),
        ({"channels": ("t1", "t1")}, "`segmenter.channels` has more than one `t1`"),
        ({"channels": ("t1", "t2")}, "`segmenter.channels` has 2 entries, but the encoder has 1"),
        ({"classes": (), "regions": "brats2022"}, "not a region scheme"),
    ],
)
def test_what_is_said_of_a_segmenter_has_to_fit(
    said: dict[str, Any], why: str, source: str, tmp_path: Path
) -> None:
    config = ConvertConfig(encoder=HEADS, segmenter=replace(OTHER, **said))

    try:
        text = quiet(source, out=str(tmp_path / "run"), config=config, dry_run=True).text
    except ConfigError as error:
        text = str(error)

    assert why in text


def test_overlapping_regions_are_a_scheme(source: str, tmp_path: Path) -> None:
    said = replace(OTHER, classes=(), regions="brats2021", channels=("flair",))

    quiet(source, out=str(tmp_path / "run"), config=ConvertConfig(encoder=HEADS, segmenter=said))

    segmenter = load_segmenter(tmp_path / "run")
    assert segmenter.regions is not None
    assert segmenter.regions.names == ("TC", "WT", "ET")
    assert segmenter.channel_names == ("flair",)


def test_patch_channels_and_positions_are_adapted_and_told(tmp_path: Path) -> None:
    theirs = networks.randomised(networks.SelfMedMae((2, 3, 1), 2, 24, 2, 2, (8, 4, 4)))
    save_weights(tmp_path / "w.safetensors", theirs.state_dict(), {})
    asked = EncoderConfig(patch=(4, 8, 4), channels=1, heads=2, positions="sincos_index",
                          learned_grid=(2, 3, 1))  # fmt: skip

    result = quiet(
        str(tmp_path / "w.safetensors"), out=str(tmp_path / "run"),
        config=ConvertConfig(encoder=asked), said={"encoder.patch", "encoder.positions"},
    )  # fmt: skip

    kernel = theirs.encoder.patch_embed.proj.weight.detach().flatten(1)
    expected = resized_kernel(changed_channels(kernel, 2, 1), (8, 4, 4), (4, 8, 4), 1)
    encoder = VolumeViT(encoder_of(tmp_path / "run"))
    start_from(encoder, str(tmp_path / "run"), "last", Silent())
    torch.testing.assert_close(encoder.embedding.projection.weight, expected)
    assert encoder.positions.table is None
    assert "adapted `embedding.projection.weight` was 24 x 256, now 24 x 128" in result.text
    assert "`encoder.patch` 8,4,4 to 4,8,4" in result.text
    assert "adapted `positions.table` was 1 x 6 x 24, left out" in result.text
    assert encoder_of(tmp_path / "run").norm_epsilon == 1e-6


def test_a_decoder_does_not_follow_its_encoder_to_another_patch(
    source: str, tmp_path: Path
) -> None:
    config = ConvertConfig(encoder=replace(HEADS, patch=(8, 8, 8)))

    result = quiet(source, out=str(tmp_path / "run"), config=config)

    assert "its decoder is left out: it belongs to `encoder.patch` (16, 16, 16)" in result.text
    asked = replace(config, segmenter=OTHER)
    with pytest.raises(ConfigError, match=r"none is taken: it belongs to `encoder\.patch`"):
        quiet(source, out=str(tmp_path / "other"), config=asked)
    with pytest.raises(ConfigError, match="a file has no room"):
        quiet(source, out=str(tmp_path / "o.safetensors"), config=asked)


def test_two_dimensional_weights_are_inflated_to_the_patch_that_is_said(tmp_path: Path) -> None:
    theirs = networks.randomised(networks.FacebookMae(24, 3, 24, 2, 2, 8))
    save_weights(tmp_path / "w.safetensors", theirs.state_dict(), {})
    config = ConvertConfig(
        ConversionConfig(layout="facebook-mae", inflate="z"),
        EncoderConfig(heads=2, patch=(4, 4, 4)),
    )

    quiet(str(tmp_path / "w.safetensors"), out=str(tmp_path / "o.safetensors"), config=config)

    weights = load_weights(tmp_path / "o.safetensors")
    kernel = theirs.patch_embed.proj.weight.detach()
    deep = (kernel[..., None].repeat(1, 1, 1, 1, 4) / 4).flatten(1)
    torch.testing.assert_close(
        weights.tensors["encoder.embedding.projection.weight"],
        resized_kernel(deep, (8, 8, 4), (4, 4, 4), 3),
    )
    found = encoder_config(weights.metadata)
    assert (found.patch, found.learned_grid, found.channels) == ((4, 4, 4), (3, 3, 1), 3)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"width": 48}, "`encoder.width` is 48, but `.*` has 24"),
        ({"preset": "small"}, "`encoder.width` is 384, but `.*` has 24"),
        ({"qkv_bias": False}, "`encoder.qkv_bias` is False, but `.*` has True"),
        ({"class_token": True, "mlp_ratio": 2.0}, "`encoder.mlp_ratio` is 2.0, but `.*` has 4.0"),
    ],
)
def test_what_contradicts_the_checkpoint_is_refused(
    fields: dict[str, Any], why: str, tmp_path: Path
) -> None:
    theirs = networks.FacebookMae(16, 1, 24, 2, 2, 8)
    save_weights(tmp_path / "w.safetensors", theirs.state_dict(), {})
    config = ConvertConfig(encoder=EncoderConfig(heads=2, **fields))

    with pytest.raises(ConfigError, match=why):
        quiet(str(tmp_path / "w.safetensors"), out=str(tmp_path / "run"), config=config)

    assert not (tmp_path / "run").exists()


def test_a_missing_tensor_is_refused_by_its_name(source: str, tmp_path: Path) -> None:
    tensors = load_weights(source).tensors
    del tensors["vit.blocks.3.mlp.linear2.bias"]
    save_weights(tmp_path / "less.safetensors", tensors, {})

    with pytest.raises(WeightsError, match="1 of 137 encoder tensors") as error:
        quiet(str(tmp_path / "less.safetensors"), out=str(tmp_path / "run"),
              config=ConvertConfig(encoder=HEADS))  # fmt: skip

    assert "`blocks.3.mlp.narrow.bias` is missing" in str(error.value.remedy)


@pytest.mark.parametrize(
    ("convert_fields", "encoder", "why"),
    [
        ({"layout": "monai-mae"}, HEADS, "no checkpoint of the layout `monai-mae`"),
        ({"layout": "plain", "inflate": "z"}, HEADS, "needs a layout"),
        ({"inflate": "z"}, HEADS, "nothing to inflate"),
        ({"inflate": "z"}, replace(HEADS, patch=(16, 16, 1)), "ends in 1"),
        ({}, replace(HEADS, heads=5), "no multiple"),
        ({}, EncoderConfig(heads=2), "no cube of tokens"),
        (
            {},
            replace(HEADS, channels=1, embedding="per_contrast", contrasts=("a", "b")),
            "contrasts",
        ),
    ],
)
def test_requests_that_cannot_be_met_are_errors_of_one_sentence(
    convert_fields: dict[str, Any], encoder: EncoderConfig, why: str, source: str, tmp_path: Path
) -> None:
    config = ConvertConfig(ConversionConfig(**convert_fields), encoder)

    with pytest.raises(UserError, match=why):
        quiet(source, out=str(tmp_path / "run"), config=config)


def test_plain_takes_the_keys_as_they_are(source: str, tmp_path: Path) -> None:
    config = ConvertConfig(ConversionConfig(layout="plain"))

    quiet(source, out=str(tmp_path / "o.safetensors"), config=config)

    assert "vit.norm.weight" in load_weights(tmp_path / "o.safetensors").tensors


ODD = [(), (0,), (5,), (2, 3), (1, 1, 24), (1, 0, 24), (1, 2, 3, 4, 5, 6)]
KEYS = [
    "encoder.patch_embed.proj.weight", "encoder.pos_embed", "encoder.cls_token",
    "encoder.norm.weight", "encoder.blocks.0.mlp.fc1.weight", "encoder.blocks.1.attn.qkv.weight",
    "decoder.encoder1.layer.conv1.conv.weight", "decoder.out.conv.conv.weight", None,
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_a_tensor_of_an_odd_shape_is_an_error_of_one_sentence_or_leaves_the_decoder_out(
    key: str | None,
) -> None:
    state = networks.SelfMedUnetr(SIZE, 1, 3, 24, 2, 4).state_dict()
    layout = layout_of("selfmedmae", state, source="w")
    config = ConvertConfig(encoder=HEADS)
    for shape in ODD:
        if key is not None and state[key].shape == shape:
            continue
        tensors = dict(state)
        if key is None:  # not there
            tensors.pop(KEYS[ODD.index(shape)])
        else:
            tensors[key] = torch.zeros(shape)
        converted = Converted(tensors, {name: name for name in tensors}, {}, "")
        try:
            taken = by_layout(converted, layout, config, (), "w")
        except UserError as error:
            assert str(error)
        else:
            assert not taken.has_decoder
