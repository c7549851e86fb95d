"""Masks follow attention and errors that training has seen at a place of a volume."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from placed_crops import ENCODER, GRIDS, SIZE, SMALL, batch, moment
from safetensors.torch import load_file
from torch import Tensor

from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import GuideConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.models.looks import received
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment
from mim3d.objectives.learnt_guide import AttentionGuide, LossGuide
from mim3d.objectives.masked import Masked
from mim3d.objectives.registry import PRETEXT_TASKS
from mim3d.tokens.masking import is_masked
from mim3d.tokens.patches import cut_crop
from tests.objectives import learnt_guide_program
from tests.reliability.ranks import finished


def task(
    name: str = "mae",
    encoder: EncoderConfig = ENCODER,
    guide: GuideConfig | None = None,
    **fields: Any,
) -> Masked:
    torch.manual_seed(0)
    config = replace(SMALL, name=name, guide=guide or GuideConfig(by="loss"), **fields)
    made: Any = PRETEXT_TASKS[name](VolumeViT(encoder), config)
    made.remember(GRIDS)
    return made


def half_air(crops: CropBatch) -> CropBatch:
    """With nothing but air in the first half of crop 0 along y."""
    voxels = crops.voxels.clone()
    voxels[0, :, :, : SIZE[1] // 2] = -9
    return replace(crops, voxels=voxels, air=torch.full((len(voxels), 2), -8.0))


def learnt(made: Masked, crops: CropBatch, at: Moment) -> Tensor:
    guide = made.masks.guide
    assert guide is not None
    cut = cut_crop(crops.voxels, crops.valid, made.encoder.patch)
    return guide.weights(crops, cut.crop, at)


# Attention


@pytest.mark.parametrize(
    ("name", "drop"),
    [("mae", 0.0), ("mae", 0.25), ("simmim", 0.0), ("simmim", 0.25), ("smit", 0.0)],
)
@pytest.mark.parametrize("queries", [None, "class_token", "patches"])
def test_maps_get_the_attention_of_the_last_block_by_a_slow_loop(
    name: str, queries: Any, drop: float
) -> None:
    encoder = replace(ENCODER, class_token=True, registers=2, depth=2)
    guide = GuideConfig(by="attention", queries=queries, warmup=0.5)
    made = task(name, encoder, guide, mask_ratio=0.5, drop_ratio=drop)
    crops, now = batch(), moment()

    made(crops, now)
    made.after_update(now)
    found = learnt(made, crops, now)

    question = made.question(crops, now)
    states = made.eval().states(crops, made.train().question(crops, now), wants_attention=True)
    (attention,) = states.attention
    for b in range(2):
        visible = question.split.visible[b].tolist()
        # Place of each visible token in the sequence, behind class token and two registers.
        place = [3 + (token if name != "mae" and not drop else i)
                 for i, token in enumerate(visible)]  # fmt: skip
        asking = [0] if queries != "patches" else list(range(3, attention.shape[-1]))
        got = [
            np.mean([attention[b, h, q, k].item() for h in range(2) for q in asking]) for k in place
        ]
        got = np.array(got) / np.mean(got)
        np.testing.assert_allclose(found[b, visible], got, rtol=2e-4)
        others = sorted(set(range(found.shape[1])) - set(visible))
        np.testing.assert_allclose(found[b, others], np.mean(got), rtol=2e-4)  # the mean, 1


def test_attention_of_padding_is_not_noted_and_padding_does_not_ask() -> None:
    made = task(guide=GuideConfig(by="attention"))
    crops = batch()
    valid = torch.ones(2, *SIZE, dtype=torch.bool)
    valid[0, :, 8:] = False
    crops = replace(crops, valid=valid)
    now = moment()

    made(crops, now)
    made.after_update(now)

    guide: Any = made.masks.guide
    values, known = guide.maps.map_of("case_0")
    split = made.question(crops, now).split
    assert split.visible_valid is not None  # the padded crop shows fewer tokens
    assert known.sum() == split.visible_valid[0].sum()
    torch.testing.assert_close(values[known].mean(), torch.tensor(1.0))
    # The crop begins at cell 1; its cells 3 and 4 along y are padding.
    assert not known[:, 3:5].any()


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_where_air_is_dropped_attention_is_noted_of_the_visible_body_alone(name: str) -> None:
    made = task(name, guide=GuideConfig(by="attention"), drop_air=True, mask_ratio=0.5)
    crops, now = half_air(batch()), moment()

    made(crops, now)
    made.after_update(now)

    guide: Any = made.masks.guide
    split = made.question(crops, now).split
    states = made.states(crops, made.question(crops, now), wants_attention=True)
    (attention,) = states.attention
    found = learnt(made, crops, now)
    # 3 x 4 x 3 tokens; of crop 0 the first two rows along y are air, and so half of all.
    body = [token for token in range(36) if token % 12 >= 6]
    real = split.visible[0] if split.visible_valid is None else (
        split.visible[0][split.visible_valid[0]]
    )  # fmt: skip
    assert set(real.tolist()) < set(body)
    _, known = guide.maps.map_of("case_0")
    assert known.sum() == len(real) == 9
    assert states.token_valid is not None
    asking = states.token_valid[0]
    assert asking.sum() == (len(real) if name == "mae" else len(body))
    got = attention[0][:, asking, : len(real)].mean(dim=(0, 1))
    torch.testing.assert_close(found[0, real], got / got.mean(), rtol=2e-4, atol=0)


def test_a_class_token_asks_by_default_and_a_network_without_one_refuses_to_be_asked() -> None:
    encoder = VolumeViT(replace(ENCODER, class_token=True))
    states = encoder(batch().voxels, (1.0, 1.0, 1.0), attention_maps=(2,))

    torch.testing.assert_close(received(states, None), received(states, "class_token"))
    assert not torch.equal(received(states, None), received(states, "patches"))
    with pytest.raises(ConfigError, match="queries class_token` needs an encoder that has one"):
        task(guide=GuideConfig(by="attention", queries="class_token"))


# Errors


@pytest.mark.parametrize("name", ["mae", "simmim", "smit"])
@pytest.mark.parametrize("target", ["raw", "normalised"])
def test_maps_get_the_error_of_each_masked_token_in_the_targets_normalisation(
    name: str, target: Any
) -> None:
    made = task(name, target=target, visible_weight=0.2)
    crops, now = batch(), moment()
    valid = torch.ones(2, *SIZE, dtype=torch.bool)
    valid[1, 9:] = False  # within a token
    crops = replace(crops, valid=valid)
    question = made.question(crops, now)

    outcome = made(crops, replace(now, wants_pictures=True))
    made.after_update(now)
    found = learnt(made, crops, now)

    assert outcome.pictures is not None
    shown, truth = outcome.pictures["reconstructed"], outcome.pictures["original"]
    hidden = is_masked(question.split, question.cut.crop.grid.n)
    errors = torch.zeros(hidden.shape)
    for b in range(2):
        for t, (i, j, k) in enumerate(np.ndindex(*question.cut.crop.grid.counts)):
            box = (slice(4 * i, 4 * i + 4), slice(4 * j, 4 * j + 4), slice(2 * k, 2 * k + 2))
            inside = valid[b][box]
            patch, guess = (one[b][(slice(None), *box)][:, inside] for one in (truth, shown))
            error = (guess - patch).square().mean()
            if target == "normalised":
                error = error / (patch.var(unbiased=False) + 1e-6)
            errors[b, t] = error
    relative = errors / errors[hidden].mean()  # over the step
    torch.testing.assert_close(found[hidden], relative[hidden], rtol=1e-4, atol=1e-4)


def test_errors_of_a_place_lead_the_next_masks_there_however_its_crop_lies() -> None:
    made = task(
        guide=GuideConfig(by="loss", temperature=0.0), mask_ratio=1 / 8
    )  # 24 cells of 4 x 4 x 2 voxels in a crop of 3 x 4 x 3 cells
    guide: Any = made.masks.guide
    hot = torch.zeros(guide.maps.counts_of("case_0"))
    hot[3, 3, 2] = 5.0
    for case_id in GRIDS:
        guide.maps.fill(case_id, hot + 0.1)
    crops = batch(start=(4, 4, 2), crops=2)  # cells 1-3, 1-4, 1-3
    mirrored = crops.affine.clone()
    mirrored[:, :3, 0] *= -1
    mirrored[:, :3, 3] += crops.affine[:, :3, 0] * (SIZE[0] - 1)

    for affine, x in ((crops.affine, 2), (mirrored, 0)):
        question = made.question(replace(crops, affine=affine), moment())
        hidden = is_masked(question.split, 36).reshape(2, 3, 4, 3)
        assert hidden[:, x, 2, 1].all()


def test_the_teacher_is_asked_instead_of_the_network_and_follows_it() -> None:
    made = task(guide=GuideConfig(by="loss", source="teacher"))
    guide: Any = made.masks.guide
    crops, now = batch(), moment()
    with torch.no_grad():  # the network becomes bad, its teacher stays as it was
        for parameter in made.decoder.parameters():
            parameter.mul_(30.0)
    reference = task(guide=GuideConfig(by="loss"))

    made(crops, now)
    guide.maps.update()
    reference(crops, now)
    reference.masks.guide.maps.update()  # type: ignore[union-attr]

    torch.testing.assert_close(learnt(made, crops, now), learnt(reference, crops, now))
    before = guide.teacher.module.decoder.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    made.after_update(moment(5))
    share = 1 - (1 - 0.01 * (np.cos(np.pi / 2) + 1) / 2)
    for name, tensor in guide.teacher.module.decoder.state_dict().items():
        student = made.decoder.state_dict()[name]
        torch.testing.assert_close(tensor, before[name].lerp(student, share))
    assert not any(name.startswith("masks.") for name in made.weights())
    assert not any(p.requires_grad for p in guide.parameters())


# Both


@pytest.mark.parametrize("by", ["attention", "loss"])
def test_places_where_nothing_is_known_weigh_the_mean_and_none_weighs_nothing(by: Any) -> None:
    made = task(guide=GuideConfig(by=by))
    crops, now = batch(), moment()

    torch.testing.assert_close(learnt(made, crops, now), torch.ones(2, 36))
    guide: Any = made.masks.guide
    values = torch.zeros(guide.maps.counts_of("case_0"))
    values[2] = 3.0
    guide.maps.fill("case_0", values)
    found = learnt(made, crops, now).reshape(2, 3, 4, 3)

    assert found[1].eq(1).all()
    assert found[0, 1].eq(3).all()
    torch.testing.assert_close(found[0, [0, 2]], torch.full((2, 4, 3), 1e-4))  # mean is 1


@pytest.mark.parametrize("by", ["attention", "loss"])
def test_only_every_so_many_steps_tell_something(by: Any) -> None:
    made = task(guide=GuideConfig(by=by, every=3, momentum=0.0))
    guide: Any = made.masks.guide
    seen = []
    for step in range(5):
        now = moment(step)
        made(batch(), now)
        made.after_update(now)
        seen.append(guide.maps.sums.clone())

    changed = [not torch.equal(a, b) for a, b in itertools.pairwise(seen)]
    assert changed == [False, False, True, False]


@pytest.mark.parametrize("drops", [{}, {"drop_air": True}, {"drop_ratio": 0.25}])
@pytest.mark.parametrize("name", ["mae", "simmim"])
@pytest.mark.parametrize("by", ["attention", "loss"])
def test_losses_and_gradients_are_those_without_a_guide_while_it_only_watches(
    by: Any, name: str, drops: Any
) -> None:
    crops, now = half_air(batch()), moment()
    watching = task(name, guide=GuideConfig(by=by, warmup=0.5), mask_ratio=0.5, **drops)
    plain = task(name, guide=GuideConfig(), mask_ratio=0.5, **drops)

    ours, theirs = (one(crops, now).loss for one in (watching, plain))

    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)  # plain attention, not fused
    for one in (ours, theirs):
        one.backward()
    for name, parameter in plain.named_parameters():
        other = watching.get_parameter(name).grad
        torch.testing.assert_close(other, parameter.grad, rtol=1e-3, atol=1e-6)


def test_outside_of_training_masks_do_not_know_the_guide_and_nothing_is_noted() -> None:
    made, plain = task().eval(), task(guide=GuideConfig()).eval()
    guide: Any = made.masks.guide
    for case_id in GRIDS:
        guide.maps.fill(case_id, torch.rand(guide.maps.counts_of(case_id)))
    crops, now = batch(), moment()
    before = guide.maps.sums.clone()

    assert torch.equal(made(crops, now).loss, plain(crops, now).loss)
    made.after_update(now)

    assert torch.equal(guide.maps.sums, before)


def test_maps_survive_in_the_tasks_state() -> None:
    made, other = task(), task()
    for step in range(3):
        now = moment(step)
        made(batch(seed=step), now)
        made.after_update(now)

    other.load_state_dict(made.state_dict())

    torch.testing.assert_close(
        learnt(other, batch(), moment(3)), learnt(made, batch(), moment(3)), rtol=0, atol=0
    )


def test_a_task_that_was_not_told_of_the_cases_says_so() -> None:
    config = replace(SMALL, guide=GuideConfig(by="loss"))
    made = PRETEXT_TASKS["mae"](VolumeViT(ENCODER), config)

    with pytest.raises(UserError, match="was not told which cases there are"):
        made(batch(), moment())


@pytest.mark.parametrize(
    ("name", "guide", "fields", "why"),
    [
        ("smit", GuideConfig(by="loss", source="teacher"), {}, "is not for `smit`"),
        ("mae", GuideConfig(by="attention", source="teacher"), {}, "loss` alone"),
        ("mae", GuideConfig(by="loss", momentum=1.0), {}, "has `momentum` 1.0"),
        ("mae", GuideConfig(by="loss", every=0), {}, "`every` 0"),
        ("mae", GuideConfig(by="loss", refresh_epochs=-1.0), {}, "`refresh_epochs` -1.0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    name: str, guide: GuideConfig, fields: Any, why: str
) -> None:
    config = replace(SMALL, name=name, guide=guide, **fields)  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match=why):
        PRETEXT_TASKS[name](VolumeViT(ENCODER), config)


def test_guides_are_of_the_classes_their_words_say() -> None:
    assert isinstance(task(guide=GuideConfig(by="attention")).masks.guide, AttentionGuide)
    assert isinstance(task(guide=GuideConfig(by="loss")).masks.guide, LossGuide)
    # Crops of several sizes are packed, and packed attention leaves no weights behind.
    assert not task(guide=GuideConfig(by="attention")).needs.several_sizes
    assert task(guide=GuideConfig(by="loss")).needs.several_sizes


@pytest.mark.parametrize("by", ["attention", "loss"])
def test_two_processes_learn_the_same_maps_and_weights_as_one(tmp_path: Path, by: str) -> None:
    for world in (1, 2):
        finished(partial(learnt_guide_program.main, task, tmp_path / str(world), by), world)

    alone = load_file(tmp_path / "1" / "rank_0.safetensors")
    first, second = (load_file(tmp_path / "2" / f"rank_{rank}.safetensors") for rank in (0, 1))
    assert alone["masks.guide.maps.evidence"].max() > 0.3
    for name, tensor in alone.items():
        if "maps" in name:
            assert torch.equal(first[name], second[name])
        # Losses of half a batch are rounded in another order.
        torch.testing.assert_close(first[name], tensor, rtol=2e-3, atol=1e-4)
