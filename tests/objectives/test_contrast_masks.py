"""Masks by contrast: exact counts, nothing leaks, and the loss counts what it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig
from mim3d.config.task import DecoderConfig, SegmentationConfig
from mim3d.data.batch import CropBatch, CropBatches
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.randomness import RandomStream
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment
from mim3d.objectives.contrast_masks import check_contrasts, left_out
from mim3d.objectives.mae import MaskedAutoencoder
from mim3d.objectives.masked import Masked
from mim3d.objectives.questions import Question
from mim3d.objectives.registry import PRETEXT_TASKS
from mim3d.objectives.segmentation import Segmentation
from mim3d.objectives.simmim import SimMIM
from mim3d.tokens.contrasts import ContrastEmbedding
from mim3d.tokens.masking import count
from mim3d.tokens.patches import patchify

NAMES = ("T1", "T2", "FLAIR")
SIZE, PATCH, TOKENS, VOXELS = (11, 13, 7), (4, 4, 2), 48, 32
ENCODER = EncoderConfig(
    width=24, depth=2, heads=2, patch=PATCH, embedding="per_contrast", contrasts=NAMES
)
SMALL = PretextConfig(decoder_width=12, decoder_depth=1, decoder_heads=2)
TASKS: dict[str, type[MaskedAutoencoder] | type[SimMIM]] = {
    "mae": MaskedAutoencoder,
    "simmim": SimMIM,
}
HOW: dict[str, dict[str, Any]] = {
    "shared": {},
    "dropout": {"contrast_dropout": 0.6},
    "each": {"masks_per_contrast": True},
    "both": {"contrast_dropout": 0.4, "masks_per_contrast": True},
}


def task(name: str, encoder: EncoderConfig = ENCODER, **fields: object) -> Masked:
    torch.manual_seed(0)
    config = replace(SMALL, name=name, **fields)  # type: ignore[arg-type]
    return TASKS[name](VolumeViT(encoder), config)


def batch(crops: int = 3, channels: int = 3, size: tuple[int, int, int] = SIZE) -> CropBatch:
    voxels = torch.randn(crops, channels, *size, generator=torch.Generator().manual_seed(1))
    affine = torch.diag(torch.tensor([0.5, 1.0, 3.0, 1.0], dtype=torch.float64))
    ids = tuple(f"case_{i}" for i in range(crops))
    return CropBatch(voxels, affine.repeat(crops, 1, 1), ids, torch.arange(crops))


def padded() -> CropBatch:
    valid = torch.ones(3, *SIZE, dtype=torch.bool)
    valid[0, :5] = False
    valid[1, :, 9:, 4:] = False
    return replace(batch(), valid=valid)


def moment(step: int = 0, pictures: bool = False) -> Moment:
    return Moment(step, 10, RandomStream(0, step), wants_pictures=pictures)


def asked(made: Masked, crops: CropBatch, step: int = 0) -> Question:
    return made.question(made._placed(crops), moment(step))


def slow_loss(made: Masked, crops: CropBatch, question: Question, predicted: Tensor) -> float:
    """Voxel by voxel over the masked contrasts of tokens, and by weight over those that show."""
    pairs = question.pairs
    assert pairs is not None
    truth = patchify(question.cut.crop.voxels, PATCH)
    valid = torch.ones(truth.shape, dtype=torch.bool)
    if question.cut.crop.valid is not None:
        valid = patchify(question.cut.crop.valid[:, None], PATCH).repeat(1, 1, 3)
    total = weight = 0.0
    for i in range(len(truth)):
        for place, token in enumerate(question.index[i].tolist()):
            if question.real is not None and not question.real[i, place]:
                continue
            for c in range(3):
                own = slice(c * VOXELS, (c + 1) * VOXELS)
                each = 1.0 if pairs.masked[i, token, c] else 0.0
                each += made.config.visible_weight if pairs.shown[i, token, c] else 0.0
                inside = valid[i, token, own]
                error = (predicted[i, place, own] - truth[i, token, own]).square()[inside]
                total += each * float(error.sum())
                weight += each * float(inside.sum())
    return total / weight


@pytest.mark.parametrize("how", list(HOW))
@pytest.mark.parametrize("is_padded", [False, True])
def test_counts_are_exact_for_every_contrast(how: str, is_padded: bool) -> None:
    made = task("mae", mask_ratio=0.7, **HOW[how])
    crops = padded() if is_padded else batch()

    question = asked(made, crops)

    pairs, token_valid = question.pairs, question.cut.crop.token_valid
    assert pairs is not None
    whole = token_valid if token_valid is not None else torch.ones(3, TOKENS, dtype=torch.bool)
    assert not (pairs.shown & pairs.masked).any()
    assert torch.equal(pairs.shown | pairs.masked, whole[..., None].expand(-1, -1, 3))
    for i in range(3):
        n = int(whole[i].sum())
        for c in range(3):
            masked = int(pairs.masked[i, :, c].sum())
            allowed = {count(0.7, n)} | ({n} if made.config.contrast_dropout else set())
            assert masked in allowed
        assert pairs.shown[i].any()
    wholly = (pairs.masked.sum(1) == whole.sum(1, keepdim=True)).sum()
    assert bool(wholly) == (made.config.contrast_dropout > 0)


def test_masks_of_each_contrast_differ_and_shared_ones_do_not() -> None:
    each, shared = (asked(task("mae", **HOW[how]), batch()).pairs for how in ("each", "shared"))

    assert each is not None
    assert shared is not None
    assert not torch.equal(each.masked[..., 0], each.masked[..., 1])
    assert torch.equal(shared.masked[..., 0], shared.masked[..., 1])


@pytest.mark.parametrize("how", list(HOW))
def test_hidden_from_the_encoder_is_a_token_that_shows_no_contrast(how: str) -> None:
    question = asked(task("mae", mask_ratio=0.6, **HOW[how]), padded())

    pairs = question.pairs
    assert pairs is not None
    for i in range(3):
        split = question.split
        real = slice(None) if split.visible_valid is None else split.visible_valid[i]
        assert split.visible[i][real].tolist() == pairs.shown[i].any(-1).nonzero()[:, 0].tolist()
        hidden = pairs.masked[i].any(-1) & ~pairs.shown[i].any(-1)
        real = slice(None) if split.masked_valid is None else split.masked_valid[i]
        assert split.masked[i][real].tolist() == hidden.nonzero()[:, 0].tolist()


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize("how", list(HOW))
def test_what_is_masked_changes_nothing_that_the_encoder_gives(name: str, how: str) -> None:
    """Bit for bit; fails where a masked contrast keeps a place in the mean of its token."""
    made = task(name, mask_ratio=0.5, **HOW[how]).eval()
    crops = made._placed(batch())
    question = made.question(crops, moment())
    assert question.pairs is not None
    masked = question.pairs.masked.repeat_interleave(VOXELS, dim=-1)

    def seen(patches: Tensor) -> Tensor:
        changed = replace(question, cut=question.cut._replace(patches=patches))
        return made.states(crops, changed).tokens

    before = seen(question.cut.patches)

    assert torch.equal(seen(torch.where(masked, torch.nan, question.cut.patches)), before)
    assert not torch.equal(seen(torch.where(masked, question.cut.patches, 3.0)), before)


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize("how", list(HOW))
@pytest.mark.parametrize("visible_weight", [0.0, 0.25])
def test_the_loss_equals_a_loop_over_masked_contrasts_of_tokens(
    name: str, how: str, visible_weight: float
) -> None:
    made = task(name, visible_weight=visible_weight, mask_ratio=0.6, **HOW[how]).eval()
    crops = padded()
    question = asked(made, crops)
    predicted = made.predict(made._placed(crops), question).detach()

    outcome = made(crops, moment())

    expected = slow_loss(made, crops, question, predicted)
    assert outcome.loss.item() == pytest.approx(expected, rel=1e-4)
    pairs = question.pairs
    assert pairs is not None
    share = pairs.masked.sum() / (pairs.masked | pairs.shown).sum()
    assert outcome.logs["masked_share"].item() == pytest.approx(float(share))


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize("how", list(HOW))
@pytest.mark.parametrize("target", ["raw", "normalised"])
def test_a_contrast_that_is_not_there_counts_nowhere(name: str, how: str, target: str) -> None:
    made = task(name, target=target, **HOW[how])
    present = torch.tensor([[True, False, True], [False, True, False], [True, True, True]])
    crops = replace(batch(), present=present)
    other = torch.where(present[:, :, None, None, None], crops.voxels, torch.nan)

    losses = [
        made(replace(crops, voxels=voxels), moment()).loss for voxels in (crops.voxels, other)
    ]
    losses[1].backward()

    assert torch.equal(losses[0], losses[1])
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in made.parameters())


def test_a_store_of_some_contrasts_has_the_loss_of_the_others_missing() -> None:
    made = task("mae", **HOW["both"], air_weight=0.5)
    air = torch.tensor([[0.0, 0.3, -0.5]]).expand(3, -1)
    crops = replace(batch(), air=air)
    present = torch.tensor([[True, False, True]]).expand(3, -1)
    missing = made(replace(crops, present=present), moment()).loss

    made.encoder.carry(["FLAIR", "T1"])
    some = made(replace(crops, voxels=crops.voxels[:, [2, 0]], air=air[:, [2, 0]]), moment()).loss

    assert torch.equal(some, missing)


def test_one_contrast_learns_as_one_channel() -> None:
    single = replace(ENCODER, contrasts=("T1",))
    ours, joint = task("mae", single), task("mae", replace(single, embedding="joint", contrasts=()))
    state = {k: v for k, v in ours.state_dict().items() if not k.endswith("contrast_tokens")}
    embedding = ours.encoder.embedding
    assert isinstance(embedding, ContrastEmbedding)
    state["encoder.embedding.projection.bias"] = embedding.contrast_tokens[0]
    joint.load_state_dict(state)

    losses = [made(batch(channels=1), moment()).loss for made in (ours, joint)]

    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize("drop_air", [False, True])
def test_crops_of_several_sizes_have_the_mean_of_each_alone(name: str, drop_air: bool) -> None:
    made = task(name, drop_air=drop_air, **HOW["both"]).eval()
    air = torch.full((2, 3), -1.0)
    parts = [replace(batch(2, 3, size), air=air) for size in (SIZE, (8, 4, 10))]
    questions = [asked(made, part) for part in parts]

    together = made(CropBatches(tuple(parts)), moment()).loss
    alone = torch.stack([made(part, moment()).loss for part in parts])

    weights = torch.stack([question.weight for question in questions])
    torch.testing.assert_close(together, (alone * weights).sum() / weights.sum())


@pytest.mark.parametrize("name", list(TASKS))
def test_patches_drawn_per_step_are_those_of_contrasts_too(name: str) -> None:
    made = task(name, **HOW["both"], patches=((8, 4, 2),)).train()
    crops = batch()

    question = made.question(made._placed(crops), moment())
    made(crops, moment()).loss.backward()

    pairs, embedding = question.pairs, made.encoder.embedding
    assert isinstance(embedding, ContrastEmbedding)
    kernel = embedding.projection.weight
    assert pairs is not None
    assert pairs.shown.shape == (3, 2 * 4 * 4, 3)
    assert kernel.grad is not None
    assert all(part.abs().sum() > 0 for part in kernel.grad.chunk(3, dim=1))


def test_pictures_show_each_contrast_as_it_was_masked() -> None:
    made = task("mae", **HOW["each"], mask_ratio=0.5)

    pictures = made(batch(), moment(pictures=True)).pictures

    assert pictures is not None
    hidden = pictures["masked"] != pictures["original"]
    assert torch.equal(hidden[:, 0], pictures["mask"])
    assert not torch.equal(hidden[:, 0], hidden[:, 1])
    kept = pictures["reconstructed"] == pictures["original"]
    assert bool((kept | hidden).all())


def test_masks_follow_from_the_seed_and_step_alone() -> None:
    made = task("mae", **HOW["both"])
    crops = batch()

    first, again, later = (asked(made, crops, step).pairs for step in (0, 0, 1))
    part = replace(
        crops, voxels=crops.voxels[1:], affine=crops.affine[1:], case_ids=crops.case_ids[1:],
        crop_ids=crops.crop_ids[1:],
    )  # fmt: skip

    assert first is not None
    assert again is not None
    assert later is not None
    assert torch.equal(first.shown, again.shown)
    assert not torch.equal(first.shown, later.shown)
    alone = asked(made, part).pairs
    assert alone is not None
    assert torch.equal(alone.shown, first.shown[1:])


def test_each_contrast_is_left_out_as_often_as_said_and_one_always_stays() -> None:
    chance = torch.rand(40_000, 3, generator=torch.Generator().manual_seed(0))
    present = torch.ones(40_000, 3, dtype=torch.bool)

    gone = left_out(present, chance, 0.5)

    assert int(gone.sum(1).max()) == 2
    # Each by itself with 1/2, less the third of (1/2)^3 in which all three would go: 0.4583.
    torch.testing.assert_close(
        gone.float().mean(0), torch.full((3,), 0.5 - 0.125 / 3), atol=0.01, rtol=0
    )
    only = torch.tensor([[False, True, False]]).expand(40_000, -1)
    assert not left_out(only, chance, 0.99).any()
    assert not left_out(present, chance, 0.0).any()


@pytest.mark.parametrize(
    ("name", "encoder", "fields", "said"),
    [
        ("mae", replace(ENCODER, embedding="joint", contrasts=(), channels=3),
         {"masks_per_contrast": True}, "`objective.masks_per_contrast` needs"),
        ("simclr", ENCODER, {"contrast_dropout": 0.5}, "`objective.contrast_dropout` needs"),
        ("smit", ENCODER, {}, "`objective.name smit` predicts all channels"),
        ("autoencoder", ENCODER, {}, "`objective.name autoencoder` predicts all channels"),
        ("mae", ENCODER, {"contrast_dropout": 1.0}, "expected 0 to below 1"),
        ("mae", ENCODER, {"contrast_dropout": 0.5, "decoder": "cross", "decode_fraction": 0.5},
         "every token with a masked contrast"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(
    name: str, encoder: EncoderConfig, fields: dict[str, object], said: str
) -> None:
    config = replace(SMALL, name=name, **fields)  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match=said):
        check_contrasts(VolumeViT(encoder), config)


@pytest.mark.parametrize("name", ["simclr", "vicreg", "byol", "mocov3", "dino", "voco"])
def test_tasks_that_compare_views_take_some_contrasts_by_name(name: str) -> None:
    torch.manual_seed(0)
    made = PRETEXT_TASKS[name](VolumeViT(ENCODER), replace(SMALL, name=name))  # type: ignore[arg-type]

    assert getattr(made.encoder, "contrasts", None) == NAMES


def segmentation(dropout: float) -> Segmentation:
    torch.manual_seed(0)
    network = UNETR(VolumeViT(ENCODER), 3, DecoderConfig(feature_size=4))
    return Segmentation(network, SegmentationConfig(contrast_dropout=dropout), 3)


def labelled() -> CropBatch:
    labels = torch.randint(0, 3, (3, *SIZE), generator=torch.Generator().manual_seed(5))
    return replace(batch(), labels=labels)


def test_fine_tuning_leaves_contrasts_out_in_training_alone() -> None:
    made, whole, crops = segmentation(0.7), segmentation(0.0), labelled()

    made.eval()
    whole.eval()
    assert torch.equal(made(crops, moment()).loss, whole(crops, moment()).loss)
    made.train()
    whole.train()
    some = made._with_some_contrasts(crops, moment())

    assert some.present is not None
    assert 0 < int(some.present.sum()) < 9
    assert torch.equal(made(crops, moment()).loss, whole(some, moment()).loss)
    assert not torch.equal(made(crops, moment()).loss, whole(crops, moment()).loss)


def test_fine_tuning_refuses_dropout_of_contrasts_without_contrasts() -> None:
    joint = replace(ENCODER, embedding="joint", contrasts=(), channels=3)
    network = UNETR(VolumeViT(joint), 3, DecoderConfig(feature_size=4))

    with pytest.raises(ConfigError, match="needs an encoder with a map for each contrast"):
        Segmentation(network, SegmentationConfig(contrast_dropout=0.5), 3)
