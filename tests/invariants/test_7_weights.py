"""Invariant 7: weights are transferred whole or not at all.

Tried with these breaks, each of which fails here: `strict=False` in place of the comparison; a
comparison that does not look at shapes; one that stops at the first misfit; loading before
comparing.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mim3d.config.encoder import EncoderConfig
from mim3d.foundation.errors import ExitCode, WeightsError
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.models.weights import encoder_metadata, load_weights, save_weights, transfer_encoder

SMALL = EncoderConfig(width=24, depth=2, heads=2, patch=(4, 4, 2), class_token=True)


def encoder(seed: int, **fields: object) -> VolumeViT:
    torch.manual_seed(seed)
    return VolumeViT(replace(SMALL, **fields))  # type: ignore[arg-type]


def state(seed: int = 1, **fields: object) -> dict[str, Tensor]:
    network = encoder(seed, **fields)
    tensors = {f"encoder.{key}": value for key, value in network.state_dict().items()}
    return {**tensors, "decoder.head.weight": torch.zeros(3, 3)}


def test_after_a_transfer_through_a_file_every_encoder_tensor_equals_the_checkpoints(
    tmp_path: Path,
) -> None:
    saved = state()
    save_weights(tmp_path / "w.safetensors", saved, encoder_metadata(SMALL))
    network = UNETR(encoder(2), 3)

    report = transfer_encoder(network.encoder, load_weights(tmp_path / "w.safetensors").tensors)

    own = network.encoder.state_dict()
    assert set(report.loaded) == set(own)
    for key, value in own.items():
        assert torch.equal(value, saved[f"encoder.{key}"]), key
    assert report.left == ("decoder.head.weight",)


def _renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace("encoder.", "vit."): value for key, value in tensors.items()}


def _without_bias(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if "qkv.bias" not in key}


def _with_more(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "encoder.blocks.2.norm1.weight": torch.ones(24)}


def _nan(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    broken = tensors["encoder.norm.weight"].clone()
    broken[3] = math.nan
    return {**tensors, "encoder.norm.weight": broken}


@pytest.mark.parametrize(
    ("tensors", "keys"),
    [
        (_without_bias(state()), ["blocks.0.attention.qkv.bias` is missing, expected 72",
                                  "blocks.1.attention.qkv.bias` is missing, expected 72"]),
        (_with_more(state()), ["blocks.2.norm1.weight` is 24, not expected"]),
        (state(patch=(4, 4, 4)), ["embedding.projection.weight` is 24 x 64, expected 24 x 32"]),
        (state(class_token=False), ["class_token` is missing, expected 1 x 24"]),
        (_nan(state()), ["norm.weight` holds NaN"]),
        (_renamed(state()), ["norm.weight` is missing", "vit.norm.weight` is 24, not expected"]),
        ({}, ["norm.weight` is missing", "embedding.projection.weight` is missing"]),
    ],
    ids=["dropped bias", "more", "other shape", "no class token", "nan", "renamed", "empty"],
)  # fmt: skip
def test_a_mismatch_is_an_error_that_lists_every_key_and_changes_nothing(
    tensors: dict[str, Tensor], keys: list[str]
) -> None:
    network = encoder(2)
    before = {key: value.clone() for key, value in network.state_dict().items()}

    with pytest.raises(WeightsError, match=r"encoder tensors of `runs/x` do not fit") as error:
        transfer_encoder(network, tensors, source="runs/x")

    assert error.value.remedy is not None
    for key in keys:
        assert key in error.value.remedy
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert error.value.exit_code == ExitCode.INPUT
