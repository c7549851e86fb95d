"""A UNETR through windows of any size, in bf16, and with its encoder blinded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from segmented_bodies import (
    volume_of,
)
from torch import nn

from mim3d.config.encoder import EncoderConfig
from mim3d.config.inference import InferenceConfig
from mim3d.config.task import DecoderConfig
from mim3d.foundation.errors import UserError
from mim3d.inference.blinding import blind
from mim3d.inference.predict import predict_probabilities, predict_volume
from mim3d.inference.segmenter import Segmenter
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT


def tiny_unetr(**encoder: object) -> UNETR:
    torch.manual_seed(3)
    config = EncoderConfig(preset="tiny", width=96, depth=4, heads=3, patch=(8, 8, 4), **encoder)
    return UNETR(VolumeViT(config), 3, DecoderConfig(feature_size=4)).eval()


def test_a_unetr_predicts_a_volume_smaller_than_its_window(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).standard_normal((11, 13, 7)).astype(np.float32)
    volume = volume_of(tmp_path, voxels, (1.0, 1.2, 2.5))
    network = tiny_unetr()

    labels = predict_volume(network, volume, InferenceConfig(window=(16, 16, 8)))

    assert labels.voxels.shape == (1, 11, 13, 7)
    assert labels.voxels.max() <= 2
    padded = np.zeros((1, 1, 16, 16, 8), np.float32)
    padded[0, :, 2:13, 1:14, :7] = volume.voxels
    valid = np.zeros((1, 16, 16, 8), bool)
    valid[0, 2:13, 1:14, :7] = True
    with torch.no_grad():
        logits = network(torch.from_numpy(padded), (1.0, 1.2, 2.5), torch.from_numpy(valid))
    expected = logits[0, :, 2:13, 1:14, :7].argmax(0)
    assert np.array_equal(labels.voxels[0], expected.numpy())


def test_bf16_labels_are_nearly_those_of_fp32(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).standard_normal((20, 17, 9)).astype(np.float32)
    volume = volume_of(tmp_path, voxels, (1.0, 1.2, 2.5))
    network = tiny_unetr()

    exact, fast = (
        predict_probabilities(Segmenter(network, (16, 16, 8), precision=precision), volume)
        for precision in ("fp32", "bf16")
    )

    # Three significant digits of bf16 through 4 blocks and a decoder.
    assert np.abs(exact.voxels - fast.voxels).max() < 0.05
    assert not np.array_equal(exact.voxels, fast.voxels)


def test_a_blind_encoder_hands_on_zeros_and_sees_again_afterwards(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).standard_normal((16, 16, 8)).astype(np.float32)
    volume = volume_of(tmp_path, voxels, (1.0, 1.2, 2.5))
    light = replace(DecoderConfig(), name="light", feature_size=4)
    network = UNETR(tiny_unetr().encoder, 3, light).eval()
    config = InferenceConfig(window=(16, 16, 8))
    before = predict_probabilities(network, volume, config).voxels

    with blind(network):
        blinded = predict_probabilities(network, volume, config).voxels
        inverted = predict_probabilities(network, volume.with_voxels(-volume.voxels), config).voxels

    # The light decoder has no path from the image: blind, it says the same of any image.
    assert np.array_equal(blinded, inverted)
    assert not np.array_equal(blinded, before)
    assert np.array_equal(predict_probabilities(network, volume, config).voxels, before)


def test_blinding_asks_for_an_encoder() -> None:
    with pytest.raises(UserError, match="no `encoder`"), blind(nn.Linear(2, 2)):
        pass


@pytest.mark.parametrize("decoder", ["unetr", "light"])
@pytest.mark.parametrize("positions", ["sincos_mm", "rotary_mm"])
def test_a_window_may_be_larger_than_the_crops_of_training(
    decoder: str, positions: str, tmp_path: Path
) -> None:
    random = np.random.default_rng(0).standard_normal((35, 30, 17)).astype(np.float32)
    volume = volume_of(tmp_path, random, (1.0, 1.2, 2.5))
    encoder = tiny_unetr(positions=positions).encoder
    network = UNETR(encoder, 3, replace(DecoderConfig(), name=decoder, feature_size=4)).eval()
    trained = Segmenter(network, (16, 16, 8))
    larger = InferenceConfig(window=(40, 32, 20))

    found = predict_probabilities(trained, volume, larger).voxels

    padded = np.zeros((1, 1, 40, 32, 20), np.float32)
    padded[0, :, 2:37, 1:31, 1:18] = volume.voxels
    valid = np.zeros((1, 40, 32, 20), bool)
    valid[0, 2:37, 1:31, 1:18] = True
    with torch.no_grad():
        logits = network(torch.from_numpy(padded), (1.0, 1.2, 2.5), torch.from_numpy(valid))
    expected = logits.softmax(1)[0, :, 2:37, 1:31, 1:18].numpy()
    assert np.allclose(found, expected, atol=1e-5)
    assert predict_volume(trained, volume, InferenceConfig(window=(24, 24, 16))).voxels.max() <= 2
