"""Masked modelling of crops of several sizes, and of crops whose air takes no part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig
from mim3d.data.batch import CropBatch, CropBatches
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.randomness import RandomStream
from mim3d.models.encoder_input import Replacement
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment
from mim3d.objectives.masked import Masked
from mim3d.objectives.questions import Question
from mim3d.objectives.registry import PRETEXT_TASKS
from mim3d.objectives.simmim import SimMIM
from mim3d.tokens.masking import TokenSplit
from mim3d.tokens.patches import cut_crop

PATCH = (4, 4, 2)
SIZES = ((11, 13, 7), (16, 8, 4), (6, 12, 12))
AROUND = (16, 16, 12)
"""Whole patches that hold each of the sizes."""
SMALL = PretextConfig(decoder_width=12, decoder_depth=2, decoder_heads=2)


def task(name: str, prefix: bool = False, **fields: object) -> Masked:
    torch.manual_seed(0)
    encoder = EncoderConfig(
        width=24,
        depth=2,
        heads=2,
        patch=PATCH,
        channels=2,
        class_token=prefix,
        registers=int(prefix),
    )
    made = PRETEXT_TASKS[name](
        VolumeViT(encoder),
        replace(SMALL, name=name, **fields),  # type: ignore[arg-type]
    )
    assert isinstance(made, Masked)
    return made


def moment(pictures: bool = False) -> Moment:
    return Moment(3, 10, RandomStream(0, 3), wants_pictures=pictures)


def crops(size: Sequence[int], first: int, count: int = 2) -> CropBatch:
    """Crops with the places `first` and following in the batch, of a spacing of their own."""
    source = torch.Generator().manual_seed(first)
    voxels = torch.randn(count, 2, *size, generator=source)
    affine = torch.diag(torch.tensor([0.5 + first, 1.0, 3.0, 1.0], dtype=torch.float64))
    ids = torch.arange(first, first + count)
    return CropBatch(voxels, affine.repeat(count, 1, 1), tuple(map(str, ids.tolist())), ids)


def several() -> CropBatches:
    return CropBatches(tuple(crops(size, 2 * i) for i, size in enumerate(SIZES)))


def padded(batches: CropBatches) -> CropBatch:
    """The same crops in one batch, each in the corner of what is no volume."""
    parts = batches.parts
    count = sum(len(part.case_ids) for part in parts)
    voxels = torch.full((count, 2, *AROUND), 99.0)
    valid = torch.zeros(count, *AROUND, dtype=torch.bool)
    place = 0
    for part in parts:
        x, y, z = part.voxels.shape[2:]
        here = slice(place, place + len(part.case_ids))
        voxels[here, :, :x, :y, :z] = part.voxels
        valid[here, :x, :y, :z] = True
        place = here.stop
    affine = torch.cat([part.affine for part in parts])
    return CropBatch(voxels, affine, batches.case_ids, batches.crop_ids, valid=valid)


def loss_and_gradients(
    made: Masked, batch: CropBatch | CropBatches
) -> tuple[Tensor, dict[str, Tensor]]:
    made.zero_grad()
    loss = made(batch, moment()).loss
    loss.backward()
    found = {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}
    return loss.detach(), found


@pytest.mark.parametrize("name", ["mae", "simmim"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"target": "normalised", "masking": "block"}, {"visible_weight": 0.25, "prefix": True}],
)
def test_crops_of_several_sizes_give_the_loss_of_all_padded_to_one(
    name: str, fields: dict[str, object]
) -> None:
    """Seen to fail with losses of the sizes averaged alike."""
    made, batches = task(name, **fields), several()  # type: ignore[arg-type]

    truth, expected = loss_and_gradients(made, padded(batches))
    loss, gradients = loss_and_gradients(made, batches)

    torch.testing.assert_close(loss, truth, atol=0, rtol=2e-5)
    assert gradients.keys() == expected.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[key], atol=2e-6, rtol=1e-3, msg=key)


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_one_size_in_a_pack_is_that_batch(name: str) -> None:
    made, part = task(name), several().parts[0]

    alone, packed = (
        made(part, moment(pictures=True)),
        made(CropBatches((part,)), moment(pictures=True)),
    )

    torch.testing.assert_close(packed.loss, alone.loss, atol=0, rtol=1e-5)
    assert packed.logs.keys() == alone.logs.keys()
    for key, value in packed.logs.items():
        torch.testing.assert_close(value, alone.logs[key], atol=1e-6, rtol=1e-5)
    assert packed.pictures is not None
    assert alone.pictures is not None
    assert torch.equal(packed.pictures["mask"], alone.pictures["mask"])


def test_pictures_of_several_sizes_are_of_the_first() -> None:
    outcome = task("mae")(several(), moment(pictures=True))

    assert outcome.pictures is not None
    assert outcome.pictures["original"].shape[2:] == SIZES[0]


def test_only_tasks_that_can_ask_for_several_sizes() -> None:
    able = {name for name in PRETEXT_TASKS if name != "voco" and _needs(name)}

    assert able == {"mae", "simmim"}


def _needs(name: str) -> bool:
    encoder = VolumeViT(EncoderConfig(width=24, depth=1, heads=2, patch=PATCH))
    return PRETEXT_TASKS[name](encoder, replace(SMALL, name=name)).needs.several_sizes  # type: ignore[arg-type]


def with_air(part: CropBatch) -> CropBatch:
    """A box of body amid air, of another place and size in every crop."""
    voxels = torch.full_like(part.voxels, -3.0)
    for i in range(len(voxels)):
        box = (i, slice(None), slice(2 + i, 9), slice(0, 5 + 4 * i), slice(1, 6 - 3 * i))
        voxels[box] = part.voxels[box].abs()
        voxels[i, 1, -1, -1, -1] = 0.5  # body in one channel alone
    return replace(part, voxels=voxels, air=torch.tensor([[-1.0, -2.0]] * len(voxels)))


def slow_tokens_with_body(part: CropBatch) -> list[set[int]]:
    """Of every crop the tokens with a voxel that is valid and in some channel no air."""
    found: list[set[int]] = []
    assert part.air is not None
    sides = [-(-side // edge) for side, edge in zip(part.voxels.shape[2:], PATCH, strict=True)]
    for i, crop in enumerate(part.voxels):
        tokens = set()
        for place in torch.ones(crop.shape[1:]).nonzero().tolist():
            values = crop[(slice(None), *place)]
            is_valid = part.valid is None or bool(part.valid[(i, *place)])
            if is_valid and bool((values >= part.air[i]).any()):
                x, y, z = (at // edge for at, edge in zip(place, PATCH, strict=True))
                tokens.add((x * sides[1] + y) * sides[2] + z)
        found.append(tokens)
    return found


def members(index: Tensor, real: Tensor | None, sample: int) -> list[int]:
    row = index[sample] if real is None else index[sample][real[sample]]
    tokens: list[int] = row.tolist()
    return tokens


@pytest.mark.parametrize("name", ["mae", "simmim"])
@pytest.mark.parametrize("has_padding", [False, True])
def test_tokens_of_nothing_but_air_are_dropped_and_the_rest_is_counted(
    name: str, has_padding: bool
) -> None:
    """Seen to fail with any voxel for all, any channel for all, and padding taken for body."""
    made, part = task(name, drop_air=True, mask_ratio=0.6), with_air(crops(SIZES[0], 0))
    if has_padding:
        valid = torch.ones(2, *SIZES[0], dtype=torch.bool)
        valid[0, :5] = False
        part = replace(part, valid=valid)

    split = made.question(part, moment()).split

    for i, body in enumerate(slow_tokens_with_body(part)):
        masked = members(split.masked, split.masked_valid, i)
        visible = members(split.visible, split.visible_valid, i)
        dropped = members(split.dropped, split.dropped_valid, i)
        assert 2 < len(body) < 40
        assert sorted(masked + visible) == sorted(body)
        assert sorted(masked + visible + dropped) == list(range(3 * 4 * 4))
        assert len(masked) == int(Fraction("0.6") * len(body) + Fraction(1, 2))


def densely(made: Masked, part: CropBatch, asked: Question) -> Tensor:
    """What is predicted for one crop, encoded by itself; SimMIM's tokens in the grid's order."""
    if not isinstance(made, SimMIM):
        states = made.encoder(part.voxels, part.spacing_mm, split=asked.split)
        return made.read(states, asked)
    masked = asked.split.masked[0]
    every = torch.cat([asked.split.visible[0], masked]).sort().values
    split = TokenSplit(every[None], masked[None, :0], masked[None, :0])
    hidden = torch.isin(every, masked)
    replaced = Replacement(hidden[None], made.mask_token)
    states = made.encoder(part.voxels, part.spacing_mm, split=split, replaced=replaced)
    predicted: Tensor = made.head(states.tokens[:, hidden])
    return predicted


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_with_air_dropped_the_loss_is_that_of_the_same_question_asked_densely(name: str) -> None:
    made, part = task(name, drop_air=True), with_air(crops(SIZES[0], 0))
    question = made.question(part, moment())

    loss = made(part, moment()).loss

    # One crop after the other, with nothing filled up: each alone has one number of tokens.
    total, weight = torch.zeros(()), 0
    for i in range(2):
        alone = replace(
            part, voxels=part.voxels[i : i + 1], affine=part.affine[i : i + 1],
            case_ids=part.case_ids[i : i + 1], crop_ids=part.crop_ids[i : i + 1],
            air=part.air[i : i + 1] if part.air is not None else None,
        )  # fmt: skip
        asked = made.question(alone, moment())
        assert members(asked.split.masked, asked.split.masked_valid, 0) == members(
            question.split.masked, question.split.masked_valid, i
        )
        predicted = densely(made, alone, asked)
        # Of voxels beyond the crop, which fill the last patches, none counts.
        inside = torch.ones(1, 2, *SIZES[0])
        weights = cut_crop(inside, None, PATCH).patches[0][asked.index[0]]
        total = total + ((predicted - asked.target.values).square() * weights).sum()
        weight += int(weights.sum())
    torch.testing.assert_close(loss, total / weight, atol=0, rtol=1e-5)


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_what_stands_in_dropped_air_changes_neither_loss_nor_gradient(name: str) -> None:
    made, part = task(name, drop_air=True), with_air(crops(SIZES[0], 0))
    grid = cut_crop(part.voxels, None, PATCH).crop.grid
    other = part.voxels.clone()
    body = slow_tokens_with_body(part)
    for i in range(2):
        for token in set(range(grid.n)) - body[i]:
            x, y, z = (
                int(at) * edge for at, edge in zip(grid.indices()[token], PATCH, strict=True)
            )
            other[i, :, x : x + 4, y : y + 4, z : z + 2] = -50.0

    before, gradients = loss_and_gradients(made, part)
    after, others = loss_and_gradients(made, replace(part, voxels=other))

    assert torch.equal(after, before)
    for key, gradient in gradients.items():
        assert torch.equal(others[key], gradient), key


def test_air_dropped_from_several_sizes_gives_the_loss_of_all_padded_to_one() -> None:
    made = task("mae", drop_air=True, mask_ratio=0.5)
    batches = CropBatches(tuple(with_air(part) for part in several().parts))
    one = replace(padded(batches), air=torch.tensor([[-1.0, -2.0]] * 6))

    truth, expected = loss_and_gradients(made, one)
    loss, gradients = loss_and_gradients(made, batches)

    torch.testing.assert_close(loss, truth, atol=0, rtol=2e-5)
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[key], atol=2e-6, rtol=1e-3, msg=key)


def test_a_crop_of_air_alone_keeps_its_tokens() -> None:
    part = with_air(crops(SIZES[0], 0))
    part.voxels[1] = -3.0

    split = task("mae", drop_air=True).question(part, moment()).split

    kept = members(split.masked, split.masked_valid, 1) + members(
        split.visible, split.visible_valid, 1
    )
    assert sorted(kept) == list(range(48))


def test_air_that_is_not_known_cannot_be_dropped() -> None:
    with pytest.raises(UserError, match="drop_air"):
        task("mae", drop_air=True)(several().parts[0], moment())


@pytest.mark.parametrize("name", ["smit", "autoencoder", "denoising"])
def test_tasks_that_drop_no_air_refuse_the_option(name: str) -> None:
    with pytest.raises(ConfigError, match="drop_air"):
        task(name, drop_air=True)


def test_several_sizes_know_their_crops_and_move_together() -> None:
    batches = several()

    assert batches.case_ids == ("0", "1", "2", "3", "4", "5")
    assert batches.crop_ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert [part.voxels.device.type for part in batches.to("meta").parts] == ["meta"] * 3
