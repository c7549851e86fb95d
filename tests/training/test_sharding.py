"""What is cut and what is not; the cutting itself is tested with two processes."""

from __future__ import annotations

import torch

from mim3d.config.encoder import EncoderConfig
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.objectives.mae import MaskedAutoencoder
from mim3d.training.sharding import encoder_blocks, is_sharded, spread, whole, whole_tensor


def test_the_encoders_blocks_are_gathered_one_by_one() -> None:
    with torch.device("meta"):
        encoder = VolumeViT(EncoderConfig(width=24, depth=4, heads=2))
        tasks = MaskedAutoencoder(encoder), UNETR(encoder, 3)

    for task in tasks:
        assert encoder_blocks(task) == list(encoder.blocks)
    assert encoder_blocks(torch.nn.Linear(2, 3)) == []


def test_whole_tensors_pass_as_they_are() -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7)}

    kept = whole(tensors, keeps=True)

    assert kept["a"] is tensors["a"]
    assert whole(tensors, keeps=False) == {}
    assert spread(tensors, {"a": torch.zeros(2, 3)})["a"] is tensors["a"]
    assert whole_tensor(tensors["b"]) is tensors["b"]
    assert not is_sharded(tensors["a"])
