"""Groups of parameters, their rates, and the schedule."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mim3d.config.training import OptimConfig
from mim3d.training.optim import (
    build_optimiser,
    encoder_depth,
    is_decayed,
    rate_factor,
    schedule,
    set_frozen,
    set_rates,
    trainable,
)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(5, 3)
        self.class_token = nn.Parameter(torch.zeros(1, 1, 3))
        self.registers = nn.Parameter(torch.zeros(1, 2, 3))
        self.positions = nn.Embedding(4, 3)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.norm = nn.LayerNorm(3)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.decoder = nn.Linear(3, 2)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 3))
        self.teacher = nn.Linear(3, 3).requires_grad_(False)


def test_layer_decay_falls_from_the_last_block_to_the_embedding() -> None:
    config = OptimConfig(layer_decay=0.5, encoder_lr=0.1)
    factors = {
        name: rate_factor(name, 3, config)
        for name in (
            "decoder.weight",
            "encoder.norm.weight",
            "encoder.blocks.2.linear.weight",
            "encoder.blocks.0.norm.bias",
            "encoder.embedding.weight",
            "encoder.class_token",
        )
    }

    # Levels 4 (all behind the blocks), 3, 1, 0, of 4: 0.5^0, 0.5^1, 0.5^3, 0.5^4.
    assert factors == pytest.approx(
        {
            "decoder.weight": 1.0,
            "encoder.norm.weight": 0.1,
            "encoder.blocks.2.linear.weight": 0.05,
            "encoder.blocks.0.norm.bias": 0.0125,
            "encoder.embedding.weight": 0.00625,
            "encoder.class_token": 0.00625,
        }
    )


def test_depth_is_counted_from_the_names() -> None:
    assert encoder_depth(dict(Net().named_parameters())) == 3
    assert encoder_depth(["decoder.blocks.7.weight", "encoder.embedding.weight"]) == 0


def test_biases_norms_positions_and_tokens_are_not_decayed() -> None:
    decayed = {name for name, p in Net().named_parameters() if is_decayed(name, p)}

    assert decayed == {
        "encoder.embedding.weight",
        *(f"encoder.blocks.{i}.linear.weight" for i in range(3)),
        "decoder.weight",
        "teacher.weight",
    }


def test_every_trainable_parameter_is_in_one_group_with_its_factor_and_decay() -> None:
    net = Net()
    config = OptimConfig(layer_decay=0.5, weight_decay=0.07)
    parameters = trainable(net)

    optimiser = build_optimiser(parameters, config)

    found = {
        id(p): (g["rate_factor"], g["weight_decay"])
        for g in optimiser.param_groups
        for p in g["params"]
    }
    assert sum(len(g["params"]) for g in optimiser.param_groups) == len(found) == len(parameters)
    assert found == {
        id(p): (rate_factor(name, 3, config), 0.07 if is_decayed(name, p) else 0.0)
        for name, p in parameters.items()
    }
    assert not any(name.startswith("teacher") for name in parameters)


def test_an_update_is_adamw_with_the_groups_rate() -> None:
    net = Net()
    config = OptimConfig(lr=0.1, layer_decay=0.5, weight_decay=0.2, betas=(0.8, 0.9))
    parameters = trainable(net)
    before = net.encoder.blocks[1].linear.weight.detach().clone()
    gradient = torch.arange(9.0).view(3, 3) - 4
    net.encoder.blocks[1].linear.weight.grad = gradient
    optimiser = build_optimiser(parameters, config)

    set_rates(optimiser, 0.03)
    optimiser.step()

    # Level 2 of 4: 0.03 x 0.25. The first AdamW step: decay, then the sign of the gradient.
    rate = 0.03 * 0.25
    expected = before * (1 - rate * 0.2) - rate * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(net.encoder.blocks[1].linear.weight.detach(), expected)


def test_schedule_warms_up_and_falls_along_a_cosine() -> None:
    config = OptimConfig(warmup_steps=4, final_lr=0.1)

    factors = [schedule(step, 12, config) for step in range(12)]

    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)]
    assert factors[4:] == pytest.approx(expected)
    assert schedule(12, 12, config) == pytest.approx(0.1)


def test_schedule_can_stay_constant_and_survives_short_runs() -> None:
    assert schedule(9, 10, OptimConfig(schedule="constant")) == 1.0
    assert schedule(2, 3, OptimConfig(warmup_steps=10)) == pytest.approx(0.3)
    assert schedule(3, 3, OptimConfig(warmup_steps=3)) == 1.0


def test_frozen_encoder_takes_no_gradient_and_comes_back() -> None:
    net = Net()
    parameters = trainable(net)

    set_frozen(parameters, frozen=True)
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    set_frozen(parameters, frozen=False)

    assert frozen == {n for n, _ in net.named_parameters() if n.startswith(("encoder", "teacher"))}
    assert {n for n, p in net.named_parameters() if not p.requires_grad} == {
        "teacher.weight",
        "teacher.bias",
    }
