"""Shape x guide x schedule: exact counts, what the guide picks, and what is drawn for a step."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import GuideConfig, PretextConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.randomness import RandomStream
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment
from mim3d.objectives.mae import MaskedAutoencoder
from mim3d.objectives.masked import Masked
from mim3d.objectives.masks import Masks, check_masks, ratio_at
from mim3d.objectives.registry import PRETEXT_TASKS
from mim3d.objectives.simmim import SimMIM
from mim3d.tokens.masking import TokenSplit
from mim3d.tokens.patches import pad_to_patches

ENCODER = EncoderConfig(width=24, depth=2, heads=2, patch=(4, 4, 2), channels=2)
SMALL = PretextConfig(decoder_width=12, decoder_depth=1, decoder_heads=2)
SIZE = (11, 13, 7)  # 3 x 4 x 4 tokens
SHAPES = ["uniform", "block", "tube", "slab"]
TASKS: dict[str, type[MaskedAutoencoder] | type[SimMIM]] = {
    "mae": MaskedAutoencoder,
    "simmim": SimMIM,
}


def masks(**fields: object) -> Masks:
    return Masks(VolumeViT(ENCODER), replace(SMALL, **fields))  # type: ignore[arg-type]


def task(name: str, **fields: object) -> Masked:
    torch.manual_seed(0)
    return TASKS[name](VolumeViT(ENCODER), replace(SMALL, name=name, **fields))  # type: ignore[arg-type]


def batch(crops: int = 2, *, padded: bool = False) -> CropBatch:
    """Crops whose upper half along x is body, with a label at two voxels in one corner.

    What stands in padding, 0, would be body too.
    """
    draw = torch.Generator().manual_seed(1)
    voxels = torch.randn(crops, 2, *SIZE, generator=draw) * 0.1 - 5.0
    voxels[:, :, 6:] += 10.0
    labels = torch.zeros(crops, *SIZE, dtype=torch.long)
    labels[:, 10, 12, 5:7] = 2
    valid = None
    if padded:
        valid = torch.ones(crops, *SIZE, dtype=torch.bool)
        valid[-1, :, 6:] = False
    affine = torch.diag(torch.tensor([0.5, 1.0, 3.0, 1.0], dtype=torch.float64))
    ids = tuple(f"case_{i}" for i in range(crops))
    return CropBatch(voxels, affine.repeat(crops, 1, 1), ids, torch.arange(crops), labels=labels,
                     valid=valid, air=torch.full((crops, 2), -2.0))  # fmt: skip


def moment(step: int = 0, steps: int = 10) -> Moment:
    return Moment(step, steps, RandomStream(0, step))


def drawn(made: Masks, crops: CropBatch, now: Moment) -> TokenSplit:
    crop = pad_to_patches(crops.voxels, crops.valid, ENCODER.patch)
    return made.masking(crops, crop, now).split(now.keys(crops, "mask"))


def parts(split: TokenSplit, sample: int) -> list[list[int]]:
    """The visible, masked and dropped tokens of a sample."""
    each = [
        (split.visible, split.visible_valid),
        (split.masked, split.masked_valid),
        (split.dropped, split.dropped_valid),
    ]
    return [
        index[sample].tolist() if real is None else index[sample][real[sample]].tolist()
        for index, real in each
    ]


def half_up(ratio: str, n: int) -> int:
    return int(Fraction(ratio) * n + Fraction(1, 2))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("by", ["none", "body", "map"])
@pytest.mark.parametrize("padded", [False, True])
def test_counts_are_exact_for_every_shape_and_guide(shape: str, by: str, padded: bool) -> None:
    guide = GuideConfig(by=by, share=(0.3, 0.3))  # type: ignore[arg-type]
    made = masks(masking=shape, mask_ratio=0.45, drop_ratio=0.3, guide=guide)
    crops = batch(3, padded=padded)

    split = drawn(made, crops, moment(4))

    for sample in range(3):
        there = 24 if padded and sample == 2 else 48
        visible, masked, dropped = parts(split, sample)
        assert sorted(visible + masked + dropped) == list(range(48))
        assert len(masked) == half_up("0.45", there)
        assert len(dropped) == half_up("0.3", there) + 48 - there
        assert len(visible) == there - half_up("0.45", there) - half_up("0.3", there)


def test_msmaes_196_tokens_are_split_as_published() -> None:
    made = Masks(VolumeViT(replace(ENCODER, patch=(2, 2, 2))),
                 replace(SMALL, mask_ratio=0.45, drop_ratio=0.3))  # fmt: skip
    crops = batch()
    crop = pad_to_patches(torch.zeros(2, 2, 28, 28, 2), None, (2, 2, 2))

    split = made.masking(crops, crop, moment()).split(moment().keys(crops, "mask"))

    assert (split.masked.shape[1], split.dropped.shape[1], split.visible.shape[1]) == (88, 59, 49)


@pytest.mark.parametrize("name", list(TASKS))
def test_what_stands_in_dropped_tokens_changes_nothing(name: str) -> None:
    made = task(name, mask_ratio=0.45, drop_ratio=0.3)
    crops = batch()
    split = drawn(made.masks, crops, moment())
    gone = torch.zeros(2, 48).scatter(1, split.dropped, 1).reshape(2, 3, 4, 4).bool()
    voxels = gone.repeat_interleave(4, 1).repeat_interleave(4, 2).repeat_interleave(2, 3)
    voxels = voxels[:, :11, :13, :7]
    other = replace(crops, voxels=torch.where(voxels[:, None], 1e3, crops.voxels))

    first, second = made(crops, moment()), made(other, moment())

    assert first.loss.item() == second.loss.item()
    assert split.dropped.shape == (2, 14)


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize("padded", [False, True])
def test_dropping_leaves_the_loss_of_the_same_question_about_smaller_sequences(
    name: str, padded: bool
) -> None:
    """Every crop by itself, its tokens gathered by hand, gives the same predictions."""
    made = task(name, mask_ratio=0.45, drop_ratio=0.3).eval()
    crops = batch(3, padded=padded)
    question = made.question(crops, moment())

    together = made.predict(crops, question)

    for i in range(3):
        alone = replace(
            crops, voxels=crops.voxels[i : i + 1], affine=crops.affine[i : i + 1],
            case_ids=crops.case_ids[i : i + 1], crop_ids=crops.crop_ids[i : i + 1],
            valid=None if crops.valid is None else crops.valid[i : i + 1],
            labels=None, air=None,
        )  # fmt: skip
        asked = made.question(alone, moment())
        real = slice(None) if question.real is None else question.real[i]
        torch.testing.assert_close(together[i][real], made.predict(alone, asked)[0])


def test_one_shape_is_drawn_for_a_step_and_all_have_their_turn() -> None:
    mixed = masks(masking=tuple(SHAPES), mask_ratio=0.5)
    alone = [masks(masking=shape, mask_ratio=0.5) for shape in SHAPES]
    crops = batch()

    hits = [0, 0, 0, 0]
    for step in range(60):
        split = drawn(mixed, crops, moment(step)).masked
        each = [torch.equal(split, drawn(one, crops, moment(step)).masked) for one in alone]
        assert sum(each) == 1
        hits[each.index(True)] += 1
        # Another micro-batch of the step, in whatever process, has the same shape.
        later = replace(crops, crop_ids=torch.tensor([5, 9]))
        other = drawn(mixed, later, moment(step)).masked
        assert torch.equal(other, drawn(alone[each.index(True)], later, moment(step)).masked)
    assert min(hits) > 5  # 15 +- 3.4 each


def test_a_ratio_is_drawn_evenly_between_two_and_rests_in_the_middle_outside_of_training() -> None:
    made = masks(mask_ratio=(0.25, 0.75))
    crops = batch()

    counts = [drawn(made, crops, moment(step)).masked.shape[1] for step in range(300)]

    assert min(counts) in (12, 13)
    assert max(counts) in (35, 36)
    assert abs(sum(counts) / 300 - 24) < 1.5  # 7 / sqrt(300) is 0.4
    made.eval()
    assert {drawn(made, crops, moment(step)).masked.shape[1] for step in range(5)} == {24}


def test_a_ratio_moves_in_a_straight_line_to_its_end_at_the_last_step() -> None:
    config = replace(SMALL, mask_ratio=0.25, mask_ratio_end=0.75)
    made, crops = masks(mask_ratio=0.25, mask_ratio_end=0.75), batch()

    assert [ratio_at(config, moment(step, 5)) for step in range(5)] == [
        0.25,
        0.375,
        0.5,
        0.625,
        0.75,
    ]
    counts = [drawn(made, crops, moment(step, 5)).masked.shape[1] for step in range(5)]
    assert counts == [12, 18, 24, 30, 36]
    made.eval()
    assert drawn(made, crops, moment(4, 5)).masked.shape[1] == 12


def has_body() -> Tensor:
    """Tokens with any voxel that is not air, written out: x from 6 on."""
    return (torch.arange(3) * 4 + 3 >= 6)[:, None, None].expand(3, 4, 4).flatten()


@pytest.mark.parametrize("polarity", ["high", "low"])
def test_at_temperature_0_body_or_air_is_masked_first(polarity: str) -> None:
    guide = GuideConfig(by="body", polarity=polarity, temperature=0.0)  # type: ignore[arg-type]
    crops = batch()

    split = drawn(masks(mask_ratio=0.25, guide=guide), crops, moment())

    body = has_body()[split.masked]
    assert body.all() if polarity == "high" else not body.any()
    # Of equal weights each step takes others.
    later = drawn(masks(mask_ratio=0.25, guide=guide), crops, moment(1))
    assert not torch.equal(split.masked, later.masked)


def test_the_label_map_draws_masks_to_foreground_by_its_share_of_a_token() -> None:
    guide = GuideConfig(by="map", temperature=0.0)
    crops = batch()

    split = drawn(masks(mask_ratio=0.25, guide=guide), crops, moment())

    # The voxels 10, 12, 5 and 10, 12, 6 lie in the tokens 2, 3, 2 and 2, 3, 3.
    assert (split.masked == 46).any(dim=1).all()
    assert (split.masked == 47).any(dim=1).all()


def test_padding_is_neither_body_nor_weighs_in_a_tokens_share() -> None:
    made = masks(mask_ratio=0.25, guide=GuideConfig(by="body"))
    crops = batch(2, padded=True)
    crop = pad_to_patches(crops.voxels, crops.valid, ENCODER.patch)
    assert made.guide is not None

    weights = made.guide.weights(crops, crop, moment()).reshape(2, 3, 4, 4)

    # Along x tokens hold voxels 0-3, 4-7, 8-10, of which 0, 2 and 3 are body.
    torch.testing.assert_close(weights[0, :, 0, 0], torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(weights[0, :, 3, 3], torch.tensor([0.0, 0.5, 1.0]))
    # Of the padded crop y ends at 6, within the second token.
    torch.testing.assert_close(weights[1, :, 1, 0], torch.tensor([0.0, 0.5, 1.0]))
    assert not weights[1, :, 2:].any()


def test_the_guide_picks_its_share_and_the_rest_is_drawn_evenly() -> None:
    guide = GuideConfig(by="body", share=(0.25, 0.25), temperature=0.0, polarity="low")
    made, crops = masks(mask_ratio=0.5, guide=guide), batch(2)
    body, hits, steps = has_body(), torch.zeros(48), 400

    for step in range(steps):
        split = drawn(made, crops, moment(step, steps))
        hits += torch.bincount(split.masked.flatten(), minlength=48)

    # Of 24 masked 6 are picked among the 16 tokens of air, then 18 drawn of the other 42.
    share = hits / (2 * steps)
    assert abs(share[body].mean().item() - 18 / 42) < 0.01
    assert abs(share[~body].mean().item() - (6 / 16 + 10 / 16 * 18 / 42)) < 0.02
    assert (share[body] - 18 / 42).abs().max() < 0.08


def test_padding_takes_none_of_the_guides_picks() -> None:
    """Of a crop half of padding, whose tokens are no body: 12 masked, 3 of them picked."""
    guide = GuideConfig(by="body", share=(0.25, 0.25), temperature=0.0, polarity="low")
    made, crops = masks(mask_ratio=0.5, guide=guide), batch(2, padded=True)
    body, hits, steps = has_body(), torch.zeros(48), 400

    for step in range(steps):
        _, masked, _ = parts(drawn(made, crops, moment(step, steps)), 1)
        hits += torch.bincount(torch.tensor(masked), minlength=48)

    there = torch.arange(48) % 16 < 8  # the lower half along y
    share = hits / steps
    assert not hits[~there].any()
    assert abs(share[body & there].mean().item() - 9 / 21) < 0.015
    assert abs(share[~body & there].mean().item() - (3 / 8 + 5 / 8 * 9 / 21)) < 0.03


def test_one_token_stays_visible_where_ratios_are_rounded_up_together() -> None:
    """0.6 of 48 is 29, 0.39 of 48 is 19; a run must not stop where that ratio is drawn."""
    made, crops = masks(mask_ratio=0.6, drop_ratio=0.39), batch()

    visible, masked, dropped = parts(drawn(made, crops, moment()), 0)

    assert (len(visible), len(masked), len(dropped)) == (1, 29, 18)


def test_the_share_grows_in_a_straight_line_behind_the_warm_up() -> None:
    guide = GuideConfig(by="body", share=(0.0, 0.5), warmup=0.2, temperature=0.0)
    made, crops = masks(mask_ratio=0.25, guide=guide), batch()
    plain = masks(mask_ratio=0.25)
    crop = pad_to_patches(crops.voxels, None, ENCODER.patch)

    shares = []
    for step in range(12):
        guidance = made.masking(crops, crop, moment(step, 12)).guidance
        shares.append(0.0 if guidance is None else guidance.share)

    # 0.2 of 12 steps is 2.4: steps 0 to 2 are unguided, and the last of 12 is step 11.
    expected = [0.0] * 3 + [0.5 * (step - 2.4) / (11 - 2.4) for step in range(3, 12)]
    assert shares == pytest.approx(expected)
    for step in (0, 2):
        now = moment(step, 12)
        assert torch.equal(drawn(made, crops, now).masked, drawn(plain, crops, now).masked)


def test_outside_of_training_masks_are_unguided_and_of_the_first_shape() -> None:
    guided = masks(masking=("slab", "uniform"), guide=GuideConfig(by="body")).eval()
    plain = masks(masking="slab")
    crops = batch()

    for step in range(6):
        now = moment(step)
        assert torch.equal(drawn(guided, crops, now).masked, drawn(plain, crops, now).masked)


def test_what_leaves_follows_the_guide_as_in_msmae() -> None:
    guide = GuideConfig(by="body", temperature=0.0)
    made = masks(mask_ratio=0.45, drop_ratio=0.2, guide=guide)

    split = drawn(made, batch(), moment())

    # 32 tokens have body: 22 are masked, 10 dropped, and only air is seen.
    assert has_body()[split.masked].all()
    assert has_body()[split.dropped].all()
    assert not has_body()[split.visible].any()


@pytest.mark.parametrize("name", ["mae", "simmim", "smit"])
@pytest.mark.parametrize("by", ["body", "map"])
def test_every_masked_task_learns_under_a_guide(name: str, by: str) -> None:
    config = replace(SMALL, name=name, guide=GuideConfig(by=by))  # type: ignore[arg-type]
    made = PRETEXT_TASKS[name](VolumeViT(ENCODER), config)

    outcome = made(batch(), moment())
    outcome.loss.backward()

    assert outcome.loss.isfinite()
    assert made.needs.labels == (by == "map")


def test_what_a_guide_needs_and_does_not_get_is_a_sentence() -> None:
    body, labelled = (masks(guide=GuideConfig(by=by)) for by in ("body", "map"))  # type: ignore[arg-type]

    with pytest.raises(UserError, match="does not know what is air"):
        drawn(body, replace(batch(), air=None), moment())
    with pytest.raises(UserError, match="needs crops with label maps"):
        drawn(labelled, replace(batch(), labels=None), moment())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_ratio": 1.2}, "a mask ratio lies between 0 and 1"),
        ({"mask_ratio": (0.5, -0.1)}, "a mask ratio lies between 0 and 1"),
        ({"mask_ratio_end": 1.5}, "a mask ratio lies between 0 and 1"),
        ({"mask_ratio": (0.5, 1.0)}, "reaches 1, which leaves no token visible"),
        ({"mask_ratio_end": 1.0}, "reaches 1, which leaves no token visible"),
        ({"drop_ratio": -0.1}, "a mask ratio lies between 0 and 1"),
        ({"mask_ratio": (0.2, 0.5), "mask_ratio_end": 0.9}, "has two numbers beside"),
        ({"mask_ratio": (0.2, 0.8), "drop_ratio": 0.2}, "leave no token visible"),
        ({"mask_ratio": 0.2, "mask_ratio_end": 0.7, "drop_ratio": 0.3}, "leave no token visible"),
        ({"drop_ratio": 0.1, "name": "smit"}, "is not for `objective.name smit`"),
        ({"drop_ratio": 0.1, "masks_per_contrast": True}, "`objective.masks_per_contrast`"),
        ({"masking": ()}, "is not one of uniform, block, tube, slab"),
        ({"masking": ("uniform", "cube")}, "`objective.masking cube` is not one of"),
        ({"guide": GuideConfig(share=(0.0, 1.5))}, "`objective.guide.share`"),
        ({"guide": GuideConfig(temperature=-1.0)}, "`objective.guide.temperature`"),
        ({"guide": GuideConfig(warmup=1.0)}, "`objective.guide.warmup`"),
        ({"guide": GuideConfig(by="body"), "name": "denoising"}, "`objective.name denoising`"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_masks(replace(SMALL, **fields))  # type: ignore[arg-type]
