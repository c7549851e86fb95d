"""The block's parts, each against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mim3d.models.blocks import Block, DropPath, LayerScale, Mlp, initialise


def test_a_block_is_two_residual_branches_behind_norms() -> None:
    torch.manual_seed(0)
    block = Block(12, 3, mlp_ratio=2.0, layer_scale=0.1)
    x = torch.randn(2, 5, 12)

    result = block(x).tokens

    first = x + 0.1 * block.attention(block.norm1(x)).tokens
    assert torch.allclose(result, first + 0.1 * block.mlp(block.norm2(first)), atol=1e-6)
    assert block.mlp.widen.out_features == 24


def test_the_mlp_uses_the_exact_gelu() -> None:
    mlp = Mlp(1, 1)
    nn.init.ones_(mlp.widen.weight)
    nn.init.zeros_(mlp.widen.bias)
    nn.init.ones_(mlp.narrow.weight)
    nn.init.zeros_(mlp.narrow.bias)

    value = mlp(torch.tensor([[[0.7]]])).item()

    assert abs(value - 0.7 * 0.5 * (1 + math.erf(0.7 / math.sqrt(2)))) < 1e-6


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)

    kept = drop(torch.ones(4000, 3, 2))

    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (kept == kept[:, :1, :1]).all()
    assert abs(kept.mean().item() - 1) < 0.04  # standard error 0.009


def test_drop_path_rests_in_eval() -> None:
    x = torch.randn(3, 2, 2)

    assert DropPath(0.9).eval()(x) is x


def test_layer_scale_starts_at_its_initial_value() -> None:
    assert torch.equal(LayerScale(3, 0.5)(torch.ones(1, 2, 3)), torch.full((1, 2, 3), 0.5))


def test_xavier_draws_within_its_bound_and_normal_around_its_deviation() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(300, 100)

    initialise(layer, "xavier")
    bound = math.sqrt(6 / 400)
    assert bound * 0.99 < layer.weight.abs().max().item() <= bound
    assert (layer.bias == 0).all()

    initialise(layer, "normal")
    assert abs(layer.weight.std().item() - 0.02) < 0.001
