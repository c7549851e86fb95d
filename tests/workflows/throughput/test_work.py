"""FLOP of steps, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig
from mim3d.config.task import DecoderConfig, SegmentationConfig
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.objectives.mae import MaskedAutoencoder
from mim3d.objectives.segmentation import Segmentation
from mim3d.workflows.throughput.inputs import batches
from mim3d.workflows.throughput.work import Work, forward_flop, step_flop

CPU = torch.device("cpu")
SIDE, EDGE = 64, 16
TOKENS, VISIBLE = 64, 16
WIDTH, DEPTH = 192, 3


def encoder():
    return VolumeViT(EncoderConfig(preset="tiny", depth=DEPTH, patch=(EDGE, EDGE, EDGE)))


def blocks(tokens, width, depth):
    """qkv, out and a fourfold MLP: 12 d² products a token; scores and sums: 2 n d a token."""
    return depth * 2 * (12 * tokens * width**2 + 2 * tokens**2 * width)


def by_hand_encoder():
    """Forward of the embedding of visible tokens, and of the blocks."""
    return 2 * VISIBLE * EDGE**3 * WIDTH, blocks(VISIBLE, WIDTH, DEPTH)


def test_a_cross_decoded_step_is_three_forwards_without_one_of_the_embedding():
    config = PretextConfig(
        decoder="cross", decode_fraction=0.25, decoder_width=96, decoder_depth=2, decoder_heads=3
    )
    task = MaskedAutoencoder(encoder(), config)
    asked, w = 12, 96  # a quarter of the 48 masked tokens
    # Queries, out and MLP of the tokens asked for; keys and values of the visible ones.
    decoder = 2 * (
        2 * asked * (1 + 1 + 8) * w**2 + 2 * VISIBLE * 2 * w**2 + 2 * 2 * asked * VISIBLE * w
    )
    ends = 2 * VISIBLE * WIDTH * w + 2 * asked * w * EDGE**3
    embedding, encoded = by_hand_encoder()

    found = step_flop(task, batches(3, CPU, side=SIDE, rotated=1)[0])

    assert found == 3 * (3 * (embedding + encoded + decoder + ends) - embedding)


def test_a_full_decoder_costs_more_than_a_quarter_by_cross_attention():
    batch = batches(1, CPU, side=SIDE, rotated=1)[0]
    cross = PretextConfig(decoder="cross", decode_fraction=0.25)

    full, light = (step_flop(MaskedAutoencoder(encoder(), config), batch)
                   for config in (PretextConfig(), cross))  # fmt: skip

    # All 64 tokens pass the decoder's blocks of width 384, the last one for the masked alone.
    assert full - light > 3 * blocks(TOKENS, 384, 2)


def test_the_segmenters_step_is_three_times_its_network():
    network = UNETR(encoder(), 5, DecoderConfig("half"))
    task = Segmentation(network, SegmentationConfig(), 5)
    batch = batches(2, CPU, side=32, classes=5, rotated=1)[0]
    embedding = 2 * 8 * EDGE**3 * WIDTH

    forward = forward_flop(network, batch.voxels[:1])

    assert forward > embedding + blocks(8, WIDTH, DEPTH)
    assert step_flop(task, batch) == 2 * (3 * forward - embedding)


def test_behind_a_convolutional_stem_only_its_first_map_has_a_cheaper_backward_pass():
    torch.manual_seed(0)
    stem = VolumeViT(replace(encoder().config, stem="convolutional"))
    task = Segmentation(UNETR(stem, 5, DecoderConfig("half")), SegmentationConfig(), 5)
    batch = batches(1, CPU, side=32, classes=5, rotated=1)[0]
    first = 2 * 8 * 16 * 16**3  # boxes of 8 voxels to 16 channels, at half resolution

    forward = forward_flop(task.network, batch.voxels)

    assert step_flop(task, batch) == 3 * forward - first


def test_a_convolution_is_two_flop_a_weight_and_voxel():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv3d(2, 5, 3, padding=1)

        def forward(self, voxels, spacing_mm):
            return self.conv(voxels)

    found = forward_flop(Network(), torch.zeros(1, 2, 11, 13, 7))

    assert found == 2 * (2 * 5 * 27) * (11 * 13 * 7)


def test_counting_leaves_the_weights_where_they_are():
    task = MaskedAutoencoder(encoder())

    step_flop(task, batches(1, CPU, side=SIDE, rotated=1)[0])

    assert {p.device.type for p in task.parameters()} == {"cpu"}
    assert all(p.grad is None for p in task.parameters())


@pytest.mark.parametrize(("limit", "seconds"), [("bf16", 4.0), ("copy", 0.5)])
def test_work_over_its_ceiling_is_a_time(limit, seconds):
    class Ceilings:
        def rate(self, word):
            return {"bf16": 2.0, "copy": 16.0}[word]

    assert Work(8.0, limit).seconds(Ceilings()) == seconds
