"""BYOL and MoCo v3: their losses from their definitions, and where gradients stop."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from view_crops import batch, made, moment, trained

from mim3d.data.batch import CropBatch

BOTH = ("byol", "mocov3")


def parts(task: Any, crops: CropBatch) -> tuple[Tensor, Tensor]:
    """Predictions and the teacher's projections of both views, made part by part."""
    encoded = task.encoder(crops.voxels, crops.spacing_mm).tokens.mean(dim=1)
    predicted = task.predictor(task.projector(encoded))
    teacher = task.teacher.module
    taught = teacher.projector(teacher.encoder(crops.voxels, crops.spacing_mm).tokens.mean(dim=1))
    return predicted, taught


def moved(name: str, **contrast: Any) -> Any:
    """A task whose teacher is no longer its student."""
    task = made(name, **contrast)
    trained(task, name, steps=3)
    return task


def test_byol_is_the_distance_to_the_other_views_answer() -> None:
    task, crops = moved("byol"), batch("byol")

    loss = task(crops, moment()).loss

    predicted, taught = parts(task, crops)
    expected = 0.0
    for i in range(8):
        answer = taught[(i + 4) % 8]
        expected += 2 - 2 * F.cosine_similarity(predicted[i], answer, dim=0).item()
    assert loss.item() == pytest.approx(expected / 4, rel=1e-4)


def test_with_layer_norm_byol_collapses_and_with_batch_norm_it_lives() -> None:
    spread = {}
    for norm in ("batch", "layer"):
        task = made("byol", projector_norm=norm)
        trained(task, "byol", steps=60)
        logs = task(batch("byol", range(6), step=99, size=(8, 12, 5)), moment(59, 60)).logs
        spread[norm] = float(logs["projector_spread"])

    assert spread["batch"] > 3 * spread["layer"]


def test_mocov3_finds_each_key_among_those_of_the_other_view_in_both_directions() -> None:
    task, crops = moved("mocov3", temperature=0.3), batch("mocov3")

    loss = task(crops, moment()).loss

    predicted, taught = parts(task, crops)
    queries, keys = F.normalize(predicted).tolist(), F.normalize(taught).tolist()
    expected = 0.0
    for ours, theirs in ((0, 4), (4, 0)):
        for i in range(4):
            query = queries[ours + i]
            likeness = [
                sum(a * b for a, b in zip(query, keys[theirs + j], strict=True)) / 0.3
                for j in range(4)
            ]
            below = sum(math.exp(value) for value in likeness)
            # 2 T, as the authors' code has it.
            expected -= 2 * 0.3 * (likeness[i] - math.log(below)) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_mocov3_leaves_the_patch_embedding_as_it_was_drawn() -> None:
    task = made("mocov3")
    before = {key: value.clone() for key, value in task.encoder.state_dict().items()}

    trained(task, "mocov3", steps=2)

    same = {k for k, v in task.encoder.state_dict().items() if torch.equal(v, before[k])}
    assert same == {"embedding.projection.weight", "embedding.projection.bias"}


@pytest.mark.parametrize("name", BOTH)
def test_no_gradient_reaches_what_the_teacher_says(name: str) -> None:
    """The gradient is that of answers which are numbers, not of a second path to the encoder."""
    task, crops = moved(name), batch(name)
    task.zero_grad()

    task(crops, moment()).loss.backward()

    found = task.predictor.layers[0].weight.grad
    predicted, taught = parts(task, crops)
    answers = taught.detach().roll(4, dims=0)
    if name == "byol":
        expected = 2 * (2 - 2 * F.cosine_similarity(predicted, answers).mean())
    else:
        t = task.config.temperature
        unit, keys = F.normalize(predicted), F.normalize(answers)
        expected = sum(
            2 * t * F.cross_entropy(unit[rows] @ keys[rows].T / t, torch.arange(4))
            for rows in (slice(0, 4), slice(4, 8))
        )
    (gradient,) = torch.autograd.grad(expected, task.predictor.layers[0].weight)
    torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in task.teacher.parameters())


@pytest.mark.parametrize("name", [*BOTH, "voco"])
def test_the_teacher_follows_encoder_and_projector_and_has_no_predictor(name: str) -> None:
    """The student alone is moved: beside a teacher moved alike, one that stays behind passed."""
    task = made(name, momentum=0.8)
    before = {key: value.clone() for key, value in task.teacher.module.state_dict().items()}
    with torch.no_grad():
        for parameter in (*task.encoder.parameters(), *task.projector.parameters()):
            parameter.add_(0.5)

    task.after_update(moment(0))

    assert {key.split(".")[0] for key in before} == {"encoder", "projector"}
    for key, value in task.teacher.module.state_dict().items():
        expected = 0.8 * before[key] + 0.2 * task.state_dict()[key]
        torch.testing.assert_close(value, expected)
