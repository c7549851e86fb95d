"""SMIT: what SimMIM's fields mean in it, what it asks for and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from smit_tasks import ENCODER, SIZE, TEACHER, batch, moment, padded, stirred, task

from mim3d.config.objective import ContrastConfig, PretextConfig
from mim3d.foundation.errors import ConfigError
from mim3d.models.vit import VolumeViT
from mim3d.objectives.simmim import SimMIM
from mim3d.objectives.smit import SMIT
from mim3d.objectives.views import split_views
from mim3d.workflows.plan.trace import trace_step


def test_two_views_have_masks_of_their_own_and_the_first_one_simmims() -> None:
    made, crops = task(), batch(2)
    first, second = split_views(crops, 2)

    split = made.question(crops, moment()).split
    alone = SimMIM(made.encoder).question(first, moment()).split

    assert torch.equal(split.masked[:3], alone.masked)
    assert not torch.equal(split.masked[:3], split.masked[3:])
    assert torch.equal(first.crop_ids, second.crop_ids)


@torch.no_grad()
def test_the_teacher_sees_what_is_masked_and_the_student_does_not() -> None:
    made, crops = stirred(task(teacher={"views": 1})), batch(1)
    question = made.question(crops, moment())
    hidden = made(crops, moment(pictures=True)).pictures["mask"]
    changed = replace(crops, voxels=torch.where(hidden[:, None], 5.0, crops.voxels))
    index = question.index

    before, after = made.states(crops, question), made.states(
        changed, made.question(changed, moment())
    )  # fmt: skip
    told, told_after = made.teacher(crops, index), made.teacher(changed, index)

    assert torch.equal(before.tokens, after.tokens)
    assert (told - told_after).abs().amax(-1).min() > 1e-4


def test_what_stands_in_padding_does_not_matter() -> None:
    made, crops = task(), padded(batch())
    assert crops.valid is not None
    noise = torch.where(crops.valid[:, None], crops.voxels, torch.nan)

    first = made(crops, moment()).loss
    second = made(replace(crops, voxels=noise), moment()).loss

    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", ["whole", "padded"])
@torch.no_grad()
def test_bf16_gives_nearly_the_same_loss_in_float32(kind: str) -> None:
    made = task()
    crops = padded(batch()) if kind == "padded" else batch()

    exact = made(crops, moment()).loss
    with torch.autocast("cpu", torch.bfloat16):
        rough = made(crops, moment()).loss

    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.05)


@pytest.mark.parametrize(("views", "overlap"), [(1, 1.0), (2, 0.4)])
def test_the_feed_is_asked_for_the_views_of_the_config(views: int, overlap: float) -> None:
    config = PretextConfig(
        name="smit",
        contrast=ContrastConfig(min_overlap=0.4),
        teacher=replace(TEACHER, views=views),
    )

    needs = SMIT(VolumeViT(ENCODER), config).needs

    assert (needs.views, needs.min_overlap) == (views, overlap)


@pytest.mark.parametrize(("views", "class_token"), [(1, False), (2, True)])
def test_the_planner_can_trace_a_step(views: int, class_token: bool) -> None:
    encoder = replace(ENCODER, default_spacing_mm=(1.0, 1.0, 1.0), class_token=class_token)

    traced = trace_step(
        lambda: task(encoder, {"views": views}),
        crops=2, channels=2, crop_size=SIZE, precision="bf16", on_gpu=True,
    )  # fmt: skip

    assert traced.forward_flop > 0


def test_a_teacher_that_teaches_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="teaches nothing") as caught:
        task(teacher={"token_weight": 0.0, "global_weight": 0.0})
    assert caught.value.remedy == "use `--objective.name simmim`"


def test_a_part_of_the_masked_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"smit.*predicts every masked token"):
        task(decoder="cross", decode_fraction=0.5)
