"""SMIT in training: what learns, what follows, and whether it lives."""

from __future__ import annotations

import math

import pytest
import torch
from smit_tasks import batch, moment, stirred, task

from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig, TeacherConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.randomness import RandomStream
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment
from mim3d.objectives.smit import SMIT
from mim3d.training.validation import undisturbed


@pytest.mark.parametrize("views", [1, 2])
def test_no_gradient_reaches_the_teacher_and_all_else_learns(views: int) -> None:
    made = task(teacher={"views": views})

    made(batch(views), moment()).loss.backward()

    still = {n for n, p in made.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == {n for n, _ in made.named_parameters() if n.startswith("teacher.")}
    assert not any(p.requires_grad for p in made.teacher.parameters())


def test_without_the_final_norm_only_that_norm_does_not_learn() -> None:
    made = task(final_norm=False)

    made(batch(), moment()).loss.backward()

    still = {n for n, p in made.named_parameters() if p.grad is None or not p.grad.any()}
    expected = {n for n, _ in made.named_parameters() if n.startswith("teacher.")}
    assert still - expected == {"encoder.norm.weight", "encoder.norm.bias"}


def test_teacher_and_both_centres_follow_once_a_step() -> None:
    made, crops = task(teacher={"momentum": 0.8}), batch()
    before = {n: p.clone() for n, p in made.teacher.named_parameters()}
    question = made.question(crops, moment(6))
    told = made.teacher(crops, question.index)
    with torch.no_grad():
        for parameter in [*made.encoder.parameters(), *made.prototypes.parameters()]:
            parameter += 1
    made(crops, moment(6))
    made.after_update(moment(6))

    # Half way through the run a decay of 0.8 has become 1 - 0.2 / 2.
    for name, parameter in made.teacher.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.1, rtol=1e-4, atol=1e-6)
    assert question.weights is not None  # tokens at the far faces lie half in padding
    counts = question.weights.mean(-1, keepdim=True)
    rows = (counts * told[:, :-1]).sum((0, 1)) / counts.sum()
    torch.testing.assert_close(made.token_centre.mean, 0.1 * rows)
    torch.testing.assert_close(made.whole_centre.mean, 0.1 * told[:, -1].mean(0))


def test_a_look_from_outside_leaves_no_trace() -> None:
    made, looked_at = task(), task()
    for each in (made, looked_at):
        each(batch(), moment(0))
    with undisturbed(looked_at, None, seed=0):
        looked_at(batch(crops=2), moment(0))
    for each in (made, looked_at):
        each.after_update(moment(0))

    ours, theirs = looked_at.state_dict(), made.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def train(made: SMIT, crops: CropBatch, steps: range) -> list[float]:
    optimiser = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for step in steps:
        loss = made(crops, moment(step)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        made.after_update(moment(step))
        losses.append(loss.item())
    return losses


def test_a_training_goes_on_from_its_state_bit_for_bit() -> None:
    made, begun, resumed = task(), task(), stirred(task())
    losses = train(made, batch(), range(6))
    train(begun, batch(), range(3))
    resumed.load_state_dict(begun.state_dict())

    assert train(resumed, batch(), range(3, 6)) == losses[3:]
    ours, theirs = resumed.state_dict(), made.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("views", [1, 2])
def test_a_toy_set_is_overfitted_without_collapse(views: int) -> None:
    """Eight patterns: reconstructed, told apart by encoder and head, and agreed upon."""
    torch.manual_seed(0)
    encoder = EncoderConfig(width=48, depth=2, heads=3, patch=(8, 8, 8), channels=1)
    teacher = TeacherConfig(prototypes=32, head_width=48, bottleneck=16, momentum=0.9, views=views)
    config = PretextConfig(name="smit", mask_ratio=0.5, teacher=teacher)
    made = SMIT(VolumeViT(encoder), config)
    axes = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 24)] * 3, indexing="ij"))
    waves = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    first = torch.sin(4 * torch.einsum("b a, a x y z -> b x y z", waves, axes))[:, None]
    voxels = torch.cat([first, 1.1 * first + 0.1][:views])
    affine = torch.eye(4, dtype=torch.float64).repeat(len(voxels), 1, 1)
    crops = CropBatch(voxels, affine, ("c",) * len(voxels), torch.arange(8).repeat(views))
    optimiser = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=2e-3)

    for step in range(100):
        outcome = made(crops, Moment(step, 100, RandomStream(0, 0)))
        optimiser.zero_grad()
        outcome.loss.backward()
        optimiser.step()
        made.after_update(moment(step, 100))

    logs = {name: value.item() for name, value in outcome.logs.items()}
    assert logs["voxel_loss"] < 0.2, logs  # of 0.45 for the mean
    # What is left is the teacher's own doubt.
    assert logs["whole_loss"] - logs["teacher_entropy"] * math.log(32) < 0.2, logs
    assert logs["token_loss"] - logs["token_entropy"] * math.log(32) < 0.4, logs
    assert logs["spread"] > 0.3, logs
    assert logs["projector_spread"] > 0.5, logs
    assert min(logs["rank"], logs["projector_rank"]) > 4, logs
