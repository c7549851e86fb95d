"""Invariant 3: the loss looks only where it should.

With the prediction held fixed, the target is changed voxel by voxel. Tried with these breaks, each
of which fails here: the target cut into patches with x and z exchanged; the valid
map not multiplied into the weights; the index of visible tokens used for the target.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.randomness import RandomStream
from mim3d.models.hidden_states import HiddenStates
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment
from mim3d.objectives.mae import MaskedAutoencoder
from mim3d.objectives.masked import Masked
from mim3d.objectives.questions import Question
from mim3d.objectives.simmim import SimMIM

SIZE = (11, 13, 7)
MOMENT = Moment(0, 1, RandomStream(0, 0), wants_pictures=True)
ENCODER = EncoderConfig(width=24, depth=1, heads=2, patch=(4, 4, 2), channels=2)
CASES = [
    (name, target, weight)
    for name in ("mae", "simmim")
    for target in ("raw", "normalised")
    for weight in (0.0, 0.5)
]


class Held:
    """Stands in for a task's prediction: the same numbers at every token, whatever it is asked."""

    def __init__(self, tokens: int, width: int) -> None:
        generator = torch.Generator().manual_seed(5)
        self.values = torch.randn(2, tokens, width, generator=generator).requires_grad_()

    def __call__(self, states: HiddenStates, question: Question) -> Tensor:
        index = question.index[..., None].expand(-1, -1, self.values.shape[-1])
        return self.values.gather(1, index)


def setting(name: str, target: str, weight: float) -> tuple[Masked, CropBatch]:
    torch.manual_seed(0)
    config = PretextConfig(
        name=name, target=target, visible_weight=weight,  # type: ignore[arg-type]
        decoder_width=12, decoder_depth=1, decoder_heads=2,
    )  # fmt: skip
    task = (MaskedAutoencoder if name == "mae" else SimMIM)(VolumeViT(ENCODER), config)
    voxels = torch.randn(2, 2, *SIZE, generator=torch.Generator().manual_seed(1))
    valid = torch.ones(2, *SIZE, dtype=torch.bool)
    valid[0, 6:] = False
    valid[1, :, :3, 5:] = False
    affine = torch.diag(torch.tensor([0.5, 1.0, 3.0, 1.0], dtype=torch.float64)).repeat(2, 1, 1)
    return task, CropBatch(voxels, affine, ("a", "b"), torch.arange(2), valid=valid)


def measured(task: Masked, held: Held, batch: CropBatch) -> tuple[Tensor, Tensor]:
    task.read = held  # type: ignore[assignment, method-assign]
    loss = task(batch, MOMENT).loss
    (gradient,) = torch.autograd.grad(loss, held.values)
    return loss, gradient


@pytest.mark.parametrize(("name", "target", "weight"), CASES)
def test_targets_at_padding_change_neither_loss_nor_gradient(
    name: str, target: str, weight: float
) -> None:
    task, batch = setting(name, target, weight)
    held = Held(48, 64)
    assert batch.valid is not None

    before = measured(task, held, batch)
    padding = ~batch.valid[:, None].expand_as(batch.voxels)
    after = measured(task, held, replace(batch, voxels=batch.voxels.masked_fill(padding, 1e4)))

    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize(("name", "target", "weight"), CASES)
@pytest.mark.parametrize("marked", [True, False])
def test_predictions_at_padding_get_no_gradient(
    name: str, target: str, weight: float, marked: bool
) -> None:
    task, batch = setting(name, target, weight)
    held = Held(48, 64)
    if not marked:  # what is left is the padding up to whole patches
        batch = replace(batch, valid=None)
    valid = torch.ones(2, *SIZE, dtype=torch.bool) if batch.valid is None else batch.valid

    _, gradient = measured(task, held, batch)

    boxes = gradient.reshape(2, 3, 4, 4, 2, 4, 4, 2).permute(0, 4, 1, 5, 2, 6, 3, 7)
    at_voxels = boxes.reshape(2, 2, 12, 16, 8)
    inside = torch.zeros(2, 12, 16, 8, dtype=torch.bool)
    inside[:, :11, :13, :7] = valid
    assert (at_voxels[~inside[:, None].expand_as(at_voxels)] == 0).all()
    assert (at_voxels[inside[:, None].expand_as(at_voxels)] != 0).any()


@pytest.mark.parametrize(("name", "target", "weight"), CASES)
def test_targets_at_visible_tokens_count_only_with_a_weight(
    name: str, target: str, weight: float
) -> None:
    task, batch = setting(name, target, weight)
    held = Held(48, 64)

    before = measured(task, held, batch)
    visible = _tokens(task, batch, masked=False)
    after = measured(task, held, replace(batch, voxels=_shaken(batch.voxels, visible)))

    unchanged = all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert unchanged == (weight == 0)


@pytest.mark.parametrize(("name", "target", "weight"), CASES)
def test_the_target_at_every_masked_token_changes_loss_and_gradient(
    name: str, target: str, weight: float
) -> None:
    task, batch = setting(name, target, weight)
    held = Held(48, 64)
    assert batch.valid is not None

    loss, gradient = measured(task, held, batch)
    masked = _tokens(task, batch, masked=True)
    boxes = [(i, x, y, z) for i in range(2) for x in (0, 4, 8) for y in (0, 4, 8, 12)
             for z in (0, 2, 4, 6)]  # fmt: skip
    tried = 0
    for i, x, y, z in boxes:
        box = torch.zeros_like(masked)
        box[i, x : x + 4, y : y + 4, z : z + 2] = True
        if not (box & masked & batch.valid).any():
            continue
        shaken = replace(batch, voxels=_shaken(batch.voxels, box))
        other_loss, other_gradient = measured(task, held, shaken)
        assert other_loss != loss
        assert not torch.equal(other_gradient, gradient)
        tried += 1
    assert tried > 40


def _tokens(task: Masked, batch: CropBatch, masked: bool) -> Tensor:
    """Valid voxels of masked or of visible tokens, `b x y z`."""
    pictures = task(batch, MOMENT).pictures
    assert pictures is not None
    assert batch.valid is not None
    return pictures["mask"] if masked else ~pictures["mask"] & batch.valid


def _shaken(voxels: Tensor, where: Tensor) -> Tensor:
    """Voxels with noise where asked; more than a shift, which a normalised target forgets."""
    noise = torch.randn(voxels.shape, generator=torch.Generator().manual_seed(7))
    return torch.where(where[:, None], voxels + noise, voxels)
