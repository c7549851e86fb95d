"""The teacher's features against a walk through its blocks by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mim3d.config.encoder import EncoderConfig
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.randomness import RandomStream
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment
from mim3d.objectives.targets.base import Look
from mim3d.objectives.targets.features import Features

MakeLook = Callable[..., Look]

PATCH = (4, 4, 2)


def encoder(**fields: object) -> VolumeViT:
    torch.manual_seed(0)
    config = EncoderConfig(width=24, depth=3, heads=2, patch=PATCH, channels=2, **fields)  # type: ignore[arg-type]
    return VolumeViT(config)


def standard(states: np.ndarray) -> np.ndarray:
    mean = states.mean(axis=-1, keepdims=True)
    return np.asarray((states - mean) / np.sqrt(states.var(axis=-1, keepdims=True) + 1e-5))


@pytest.mark.parametrize(("blocks", "top"), [(2, 2), (None, 1), (3, 3)])
@pytest.mark.parametrize("padded", [False, True])
def test_features_are_the_mean_of_the_top_blocks_normalised(
    make_look: MakeLook, blocks: int | None, top: int, padded: bool
) -> None:
    look, made = make_look(PATCH, padded=padded), encoder(registers=1)
    target = Features(made, blocks, 0.9)

    values = target.of(look).values

    seen: list[Tensor] = []
    for block in made.blocks:
        block.register_forward_hook(lambda _m, _i, out: seen.append(out[0].detach()))
    made(look.batch.voxels, look.batch.spacing_mm, valid=look.batch.valid)
    outputs = [states.double().numpy()[:, -look.cut.crop.grid.n :] for states in seen[-top:]]
    expected = standard(np.mean([standard(states) for states in outputs], axis=0))
    for sample in range(2):
        for asked in range(look.index.shape[1]):
            number = int(look.index[sample, asked])
            if (
                look.cut.crop.token_valid is not None
                and not look.cut.crop.token_valid[sample, number]
            ):
                continue
            found = values[sample, asked].numpy()
            np.testing.assert_allclose(found, expected[sample, number], atol=2e-4)


def test_the_teacher_follows_the_encoder_and_learns_nothing_itself(make_look: MakeLook) -> None:
    made = encoder()
    before = copy.deepcopy(made)
    target = Features(made, None, 0.9)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 1.0

    target.after_update(made, Moment(2, 10, RandomStream(0, 2)))

    momentum = 1 - 0.1 * (math.cos(0.2 * math.pi) + 1) / 2
    old, new = before.norm.weight, made.norm.weight
    teacher = target.teacher.module
    assert isinstance(teacher, VolumeViT)
    torch.testing.assert_close(teacher.norm.weight, momentum * old + (1 - momentum) * new)
    assert not any(parameter.requires_grad for parameter in target.parameters())
    assert not target.of(make_look(PATCH)).values.requires_grad


def test_the_teacher_has_no_dropout(make_look: MakeLook) -> None:
    look = make_look(PATCH)
    target = Features(encoder(drop_path=0.5, attention_dropout=0.5), None, 0.9)
    target.train()

    assert torch.equal(target.of(look).values, target.of(look).values)


def test_a_channel_counts_as_the_tokens_voxels(make_look: MakeLook) -> None:
    look = make_look(PATCH, padded=True)
    assert look.inside is not None
    target = Features(encoder(), None, 0.9)

    weights = target.weigh(look.inside.float(), PATCH)

    assert weights is not None
    assert weights.shape == (*look.index.shape, 1)
    assert weights[1, 5].item() == pytest.approx(look.inside[1, 5].float().mean().item())
    assert target.weigh(None, PATCH) is None


@pytest.mark.parametrize("blocks", [0, 4])
def test_blocks_that_are_not_there_are_refused(blocks: int) -> None:
    with pytest.raises(ConfigError, match="expected 1 to 3"):
        Features(encoder(), blocks, 0.9)


def test_its_answer_is_as_wide_as_the_encoder() -> None:
    assert Features(encoder(), None, 0.9).answer == (24, False)
    assert isinstance(Features(encoder(), None, 0.9), nn.Module)
