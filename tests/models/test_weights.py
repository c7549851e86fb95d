"""Files of weights, sound and damaged, and the report of a transfer."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mim3d.config.encoder import EncoderConfig
from mim3d.foundation.errors import WeightsError
from mim3d.models.vit import VolumeViT
from mim3d.models.weights import (
    check_header,
    encoder_config,
    encoder_metadata,
    load_weights,
    save_weights,
    transfer_encoder,
)

SMALL = EncoderConfig(width=24, depth=2, heads=2, patch=(4, 4, 2), channels=2)


def encoder(**fields: object) -> VolumeViT:
    return VolumeViT(replace(SMALL, **fields))  # type: ignore[arg-type]


def as_run(network: VolumeViT) -> dict[str, Tensor]:
    """Tensors as a pre-training run writes them."""
    state = {f"encoder.{key}": value for key, value in network.state_dict().items()}
    return {**state, "mask_token": torch.zeros(24), "head.weight": torch.zeros(64, 24)}


def written(folder: Path, header: object, numbers: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file with any header."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + numbers)
    return path


def test_tensors_metadata_and_config_come_back(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    tensors = {"encoder.a": torch.randn(3, 2), "b": torch.arange(4), "c": torch.ones(2).bfloat16()}

    save_weights(path, tensors, encoder_metadata(SMALL) | {"task": "mae"})
    weights = load_weights(path)

    assert weights.tensors.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert torch.equal(weights.tensors[key], tensor)
        assert weights.tensors[key].dtype == tensor.dtype
    assert weights.metadata["task"] == "mae"
    assert encoder_config(weights.metadata) == SMALL


def test_a_transfer_says_what_it_took_and_what_it_left() -> None:
    source, target = encoder(), encoder()

    report = transfer_encoder(target, as_run(source), source="runs/mae")

    assert set(report.loaded) == set(target.state_dict())
    assert report.left == ("head.weight", "mask_token")
    assert report.source == "runs/mae"


def test_an_encoders_own_state_is_taken_too() -> None:
    source, target = encoder(), encoder()

    transfer_encoder(target, source.state_dict())

    assert torch.equal(target.norm.weight, source.norm.weight)


def test_weights_of_another_preset_name_it() -> None:
    source = VolumeViT(EncoderConfig(preset="tiny"))
    target = VolumeViT(EncoderConfig(preset="small"))

    with pytest.raises(WeightsError) as error:
        transfer_encoder(target, source.state_dict(), source="runs/mae_tiny")

    wanted = len(target.state_dict())
    text = str(error.value)
    assert text.startswith(
        f"{wanted} of {wanted} encoder tensors of `runs/mae_tiny` do not fit `encoder.preset small`"
    )
    assert error.value.remedy is not None
    first = error.value.remedy.splitlines()[0]
    assert first == (
        "first: `embedding.projection.weight` is 192 x 4096, expected 384 x 4096; "
        "use `--encoder.preset tiny`"
    )


def test_a_sound_header_is_accepted(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}

    check_header(written(tmp_path, {"a": entry, "b": empty}, bytes(8)))


@pytest.mark.parametrize(
    ("header", "numbers", "why"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, 7, "7 bytes of numbers"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, 9, "9 bytes of numbers"),
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, 8, "its shape needs 12"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, 12, "begins at byte 4"),
        ({"a": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}}, 8, "unknown type `X9`"),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, 8, "no sound shape"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}, 8, "no sound shape"),
        ({"a": {"dtype": [], "shape": [2], "data_offsets": [0, 8]}}, 8, "unknown type"),
        ({"a": 3}, 0, "no sound shape"),
        ({"__metadata__": {"a": 3}}, 0, "metadata"),
        ([1, 2], 0, "no table"),
        (b"{", 0, "no JSON"),
        (b"\xff\xfe{}", 0, "no JSON"),
    ],
)
def test_a_damaged_header_is_refused_with_the_reason(
    header: object, numbers: int, why: str, tmp_path: Path
) -> None:
    path = written(tmp_path, header, bytes(numbers))

    with pytest.raises(WeightsError, match=why):
        load_weights(path)


@pytest.mark.parametrize("content", [b"", b"abc", struct.pack("<Q", 10**12) + b"{}"])
def test_a_file_shorter_than_its_header_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)

    with pytest.raises(WeightsError, match="do not hold the header"):
        load_weights(path)


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}

    with pytest.raises(WeightsError, match="begins at byte 0, expected 8"):
        check_header(written(tmp_path, {"a": entry, "b": entry}, bytes(8)))


def test_missing_weights_are_an_error_that_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"gone\.safetensors.*No such file"):
        load_weights(tmp_path / "gone.safetensors")


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        ({}, "does not say which encoder"),
        ({"encoder": "{"}, "does not say which encoder"),
        ({"encoder": '{"wdith": 3}'}, "another version: its encoder has `wdith`"),
    ],
)
def test_a_header_without_a_readable_encoder_is_an_error(
    metadata: dict[str, str], why: str
) -> None:
    with pytest.raises(WeightsError, match=why):
        encoder_config(metadata)
