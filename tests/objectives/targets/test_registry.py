"""Every target in a step: what it costs nothing to, what it learns from, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor

from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig, TargetsConfig
from mim3d.data.batch import CropBatch, CropBatches
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.randomness import RandomStream
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment
from mim3d.objectives.masked import Masked
from mim3d.objectives.registry import PRETEXT_TASKS
from mim3d.objectives.targets import TARGETS, make_target

ENCODER = EncoderConfig(width=24, depth=2, heads=2, patch=(4, 4, 2), channels=2)
PREPARED = TargetsConfig(prepared_hu=(-1000.0, 1000.0))
SMALL = PretextConfig(decoder_width=12, decoder_depth=1, decoder_heads=2, targets=PREPARED)
SIZE = (11, 13, 7)
BY_VOXEL = ("raw", "normalised", "normalised_per_channel", "gradient", "windows")
WITHOUT_PICTURE = ("gradient", "hog", "teacher")


def task(name: str, target: str, encoder: EncoderConfig = ENCODER, **fields: Any) -> Masked:
    torch.manual_seed(0)
    config = replace(SMALL, name=name, target=target, **fields)
    made = PRETEXT_TASKS[name](VolumeViT(encoder), config)
    assert isinstance(made, Masked)
    return made


def batch(size: tuple[int, int, int] = SIZE) -> CropBatch:
    voxels = torch.rand(2, 2, *size, generator=torch.Generator().manual_seed(1))
    affine = torch.diag(torch.tensor([0.5, 1.0, 3.0, 1.0], dtype=torch.float64))
    return CropBatch(voxels, affine.repeat(2, 1, 1), ("a", "b"), torch.arange(2))


def moment(pictures: bool = False) -> Moment:
    return Moment(0, 10, RandomStream(0, 0), wants_pictures=pictures)


def test_the_config_knows_every_target() -> None:
    words = get_args(get_type_hints(PretextConfig)["target"])

    assert set(words) == set(TARGETS)


@pytest.mark.parametrize("name", ["mae", "simmim", "smit", "autoencoder"])
@pytest.mark.parametrize("target", list(TARGETS))
def test_every_target_teaches_every_part_of_the_network(name: str, target: str) -> None:
    if target == "teacher" and name not in ("mae", "simmim"):
        with pytest.raises(ConfigError, match="objective.target teacher"):
            task(name, target)
        return
    made, crops = task(name, target), batch()
    if name == "smit":
        crops = replace(
            crops,
            voxels=crops.voxels.repeat(2, 1, 1, 1, 1),
            affine=crops.affine.repeat(2, 1, 1),
            case_ids=crops.case_ids * 2,
            crop_ids=crops.crop_ids.repeat(2),
        )

    outcome = made(crops, moment())
    outcome.loss.backward()

    assert outcome.loss.isfinite()
    assert outcome.logs["mean_predictor"] > 0
    missing = [key for key, p in made.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


@pytest.mark.parametrize("name", ["mae", "simmim"])
@pytest.mark.parametrize("target", list(TARGETS))
def test_padding_and_what_stands_in_it_change_nothing(name: str, target: str) -> None:
    made, alone = task(name, target).eval(), batch((8, 12, 6))
    valid = torch.zeros(2, 12, 16, 8, dtype=torch.bool)
    valid[:, :8, :12, :6] = True
    losses = []
    for garbage in (0.0, 7.0):
        voxels = torch.full((2, 2, 12, 16, 8), garbage)
        voxels[:, :, :8, :12, :6] = alone.voxels
        losses.append(made(replace(alone, voxels=voxels, valid=valid), moment()).loss.item())

    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx(made(alone, moment()).loss.item(), rel=1e-4)


@pytest.mark.parametrize("target", list(TARGETS))
def test_crops_of_two_sizes_are_the_mean_of_both_by_weight(target: str) -> None:
    made = task("mae", target).eval()
    first, second = batch((8, 12, 6)), batch()

    together = made(CropBatches((first, second)), moment()).loss

    alone = [made(part, moment()).loss for part in (first, second)]
    weights = [made.question(part, moment()).weight for part in (first, second)]
    expected = sum(a * w for a, w in zip(alone, weights, strict=True)) / sum(weights)
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("target", list(TARGETS))
def test_the_loss_is_that_of_the_masked_tokens_by_weight(target: str) -> None:
    made, crops = task("simmim", target, loss="l1", air_weight=0.5), batch()
    crops = replace(crops, air=torch.tensor([[0.2, 0.2], [0.5, 0.5]]))

    question = made.question(crops, moment())
    predicted = made.predict(crops, question).detach()
    loss = made.judged(predicted, question, crops, moment()).loss

    assert question.weights is not None
    weights = question.weights.expand_as(predicted)
    total = counted = 0.0
    for i, j in ((i, j) for i in range(2) for j in range(question.index.shape[1])):
        error = (predicted[i, j] - question.target.values[i, j]).abs()
        total += float((error * weights[i, j]).sum())
        counted += float(weights[i, j].sum())
    assert loss.item() == pytest.approx(total / counted, rel=1e-4)


@pytest.mark.parametrize("target", list(TARGETS))
def test_pictures_come_in_voxels_where_there_is_a_way(target: str) -> None:
    made, crops = task("mae", target), batch()

    pictures = made(crops, moment(pictures=True)).pictures

    assert pictures is not None
    assert ("reconstructed" in pictures) == (target not in WITHOUT_PICTURE)
    if "reconstructed" in pictures:
        seen = ~pictures["mask"][:, None].expand_as(crops.voxels)
        assert torch.equal(pictures["reconstructed"][seen], crops.voxels[seen])
        assert pictures["reconstructed"].shape == crops.voxels.shape


@pytest.mark.parametrize("target", list(TARGETS))
def test_only_a_teacher_is_stored_beside_the_network(target: str) -> None:
    stored = {key for key in task("mae", target).state_dict() if key.startswith("target.")}

    assert all(key.startswith("target.teacher.module.") for key in stored)
    assert bool(stored) == (target == "teacher")
    assert not any(key.startswith("target.") for key in task("mae", target).weights())


def test_the_teacher_of_a_task_follows_its_encoder() -> None:
    made = task("mae", "teacher", teacher=replace(SMALL.teacher, momentum=0.5))
    with torch.no_grad():
        made.encoder.norm.bias += 1.0

    made.after_update(moment())

    bias = made.state_dict()["target.teacher.module.norm.bias"]
    torch.testing.assert_close(bias, torch.full_like(bias, 0.5))


def test_a_teacher_sees_what_is_masked_and_the_student_does_not() -> None:
    made, crops = task("mae", "teacher").eval(), batch()
    question = made.question(crops, moment())
    pictures = made(crops, moment(pictures=True)).pictures
    assert pictures is not None
    hidden = pictures["mask"][:, None]
    changed = replace(crops, voxels=torch.where(hidden, crops.voxels + 1, crops.voxels))

    again = made.question(changed, moment())

    assert not torch.allclose(again.target.values, question.target.values)
    given = made.predict(crops, question)
    assert torch.equal(made.predict(changed, again), given)


@pytest.mark.parametrize("target", list(TARGETS))
def test_patches_drawn_per_step_go_with_targets_of_voxels_and_features(target: str) -> None:
    fields = {"patches": ((4, 4, 4), (2, 4, 2))}
    if target not in (*BY_VOXEL, "teacher"):
        with pytest.raises(ConfigError, match="objective.patches"):
            task("mae", target, **fields)
        return
    made = task("mae", target, **fields)

    losses: list[Tensor] = [
        made(batch(), Moment(step, 10, RandomStream(0, step))).loss for step in range(4)
    ]

    assert all(loss.isfinite() for loss in losses)


@pytest.mark.parametrize("target", list(TARGETS))
@pytest.mark.parametrize("fields", [{"drop_air": True}, {"visible_weight": 0.25}])
def test_air_may_be_dropped_and_the_visible_may_count(
    target: str, fields: dict[str, object]
) -> None:
    crops = batch()
    crops.voxels[0, :, :6] = 0.0
    crops = replace(crops, air=torch.full((2, 2), 0.01))

    for name in ("mae", "simmim"):
        assert task(name, target, **fields)(crops, moment()).loss.isfinite()


@pytest.mark.parametrize("target", list(TARGETS))
def test_contrasts_that_are_not_there_count_nothing(target: str) -> None:
    encoder = replace(ENCODER, embedding="per_contrast", contrasts=("t1", "t2"))
    made = task("mae", target, encoder).eval()
    present = torch.tensor([[True, True], [True, False]])
    losses = []
    for garbage in (0.0, 5.0):
        crops = replace(batch(), present=present)
        crops.voxels[1, 1] = garbage
        losses.append(made(crops, moment()).loss.item())

    assert losses[0] == losses[1]


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(ConfigError, match="raw, normalised, normalised_per_channel, multiscale"):
        make_target(VolumeViT(ENCODER), replace(SMALL, target="pixels"))  # type: ignore[arg-type]
