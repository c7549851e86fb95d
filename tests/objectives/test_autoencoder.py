"""Autoencoders: against a slow loop over voxels, with fixed numbers, and overfitting two crops."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.randomness import RandomStream
from mim3d.models.vit import VolumeViT
from mim3d.objectives.autoencoder import Autoencoder, DenoisingAutoencoder
from mim3d.objectives.base import Moment
from mim3d.objectives.registry import PRETEXT_TASKS
from mim3d.workflows.plan.trace import trace_step

ENCODER = EncoderConfig(width=24, depth=2, heads=2, patch=(4, 4, 2), channels=2)
SIZE = (11, 13, 7)
TASKS: dict[str, type[Autoencoder]] = {
    "autoencoder": Autoencoder,
    "denoising": DenoisingAutoencoder,
}


def task(name: str, encoder: EncoderConfig = ENCODER, **fields: Any) -> Autoencoder:
    torch.manual_seed(0)
    return TASKS[name](VolumeViT(encoder), PretextConfig(name=name, **fields))  # type: ignore[arg-type]


def batch(crops: int = 2, first: int = 0) -> CropBatch:
    source = torch.Generator().manual_seed(1)
    voxels = torch.randn(crops, 2, *SIZE, generator=source) + torch.linspace(-1, 1, 7)
    affine = torch.diag(torch.tensor([0.5, 1.0, 3.0, 1.0], dtype=torch.float64))
    ids = torch.arange(first, first + crops)
    return CropBatch(voxels, affine.repeat(crops, 1, 1), ("case",) * crops, ids)


def padded(crops: CropBatch) -> CropBatch:
    valid = torch.ones(2, *SIZE, dtype=torch.bool)
    valid[0, :5] = False  # a whole layer of tokens, and part of the next
    valid[1, :, 9:, 4:] = False
    return replace(crops, valid=valid)


def moment(step: int = 0, *, pictures: bool = False) -> Moment:
    return Moment(step, 10, RandomStream(0, step), wants_pictures=pictures)


def patches_of(size: tuple[int, int, int], patch: tuple[int, int, int]) -> list[Any]:
    """The box of voxels behind every token, z fastest; the last are cut off by the crop's end."""
    return [
        tuple(slice(p * i, min(p * (i + 1), n)) for i, p, n in zip(at, patch, size, strict=True))
        for at in np.ndindex(*(math.ceil(n / p) for n, p in zip(size, patch, strict=True)))
    ]


def slow_loss(made: Autoencoder, crops: CropBatch, seen: torch.Tensor) -> float:
    """Voxel by voxel, from the encoder's own answer to what it is shown."""
    with torch.no_grad():
        states = made.encoder(seen, crops.spacing_mm, valid=crops.valid)
        answers = made.head(states.tokens).view(len(seen), -1, 2, *made.encoder.patch)
    valid = torch.ones(len(seen), *SIZE).bool() if crops.valid is None else crops.valid
    config, total, weight = made.config, 0.0, 0.0
    for b in range(len(seen)):
        for n, box in enumerate(patches_of(SIZE, made.encoder.patch)):
            truth, inside = crops.voxels[b][(slice(None), *box)], valid[b][box]
            if not inside.any():
                continue
            if config.target == "normalised":
                values = truth[:, inside]
                spread = (values.var(unbiased=False) + 1e-6).sqrt()
                truth = (truth - values.mean()) / spread
            x, y, z = inside.shape
            error = answers[b, n, :, :x, :y, :z] - truth
            error = error.abs() if config.loss == "l1" else error.square()
            each = inside.float()
            if crops.air is not None:
                original = crops.voxels[b][(slice(None), *box)]
                is_air = (original < crops.air[b][:, None, None, None]).all(dim=0)
                each = torch.where(is_air, config.air_weight * each, each)
            total += float((error * each).sum())
            weight += 2 * float(each.sum())
    return total / weight


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize("target", ["raw", "normalised"])
@pytest.mark.parametrize("loss", ["l1", "l2"])
@pytest.mark.parametrize("has_padding", [False, True])
def test_the_loss_equals_a_slow_loop_over_all_voxels(name, target, loss, has_padding):
    made = task(name, target=target, loss=loss, air_weight=0.25)
    crops = replace(batch(), air=torch.tensor([[0.0, 0.5], [-0.5, 1.0]]))
    crops = padded(crops) if has_padding else crops

    found = made(crops, moment())

    seen = made.shown(crops, moment()).voxels
    assert found.loss.item() == pytest.approx(slow_loss(made, crops, seen), rel=1e-4)


def test_the_plain_one_sees_the_crop_and_the_other_a_crop_with_noise_of_the_stated_deviation():
    crops = batch(4)
    plain, noisy = task("autoencoder"), task("denoising", corruption=0.3)

    noise = noisy.shown(crops, moment()).voxels - crops.voxels

    assert plain.shown(crops, moment()) is crops
    # 8,008 numbers: four standard errors of the mean and of the deviation
    assert noise.mean().item() == pytest.approx(0, abs=4 * 0.3 / math.sqrt(8008))
    assert noise.std().item() == pytest.approx(0.3, abs=4 * 0.3 / math.sqrt(2 * 8008))
    rows = noise.flatten(1)
    assert torch.corrcoef(rows).fill_diagonal_(0).abs().max() < 0.1
    channels = noise.transpose(0, 1).flatten(1)
    assert torch.corrcoef(channels)[0, 1].abs() < 0.05


def test_noise_follows_from_seed_step_and_crop_and_from_nothing_else():
    made, crops = task("denoising"), batch(3, first=5)
    alone = CropBatch(crops.voxels[1:2], crops.affine[1:2], ("case",), crops.crop_ids[1:2])

    shown = made.shown(crops, moment(3)).voxels

    assert torch.equal(shown[1:2], made.shown(alone, moment(3)).voxels)
    assert torch.equal(shown, made.shown(crops, moment(3)).voxels)
    assert not torch.equal(shown, made.shown(crops, moment(4)).voxels)
    other = Moment(3, 10, RandomStream(1, 3))
    assert not torch.equal(shown, made.shown(crops, other).voxels)


@pytest.mark.parametrize("name", list(TASKS))
def test_what_stands_in_padding_changes_nothing(name):
    made, crops = task(name, target="normalised"), padded(batch())
    assert crops.valid is not None
    junk = crops.voxels.masked_fill(~crops.valid[:, None], float("nan"))

    one, other = (made(c, moment(pictures=True)) for c in (crops, replace(crops, voxels=junk)))

    assert torch.equal(one.loss, other.loss)
    assert one.pictures is not None
    assert other.pictures is not None
    for key, picture in one.pictures.items():
        assert torch.equal(picture, other.pictures[key]), key


@pytest.mark.parametrize("name", list(TASKS))
def test_pictures_show_the_crop_what_was_seen_of_it_and_every_voxel_as_it_was_given_back(name):
    made, crops = task(name, loss="l2"), padded(batch())
    assert crops.valid is not None

    outcome = made(crops, moment(pictures=True))

    pictures, inside = outcome.pictures, crops.valid[:, None]
    assert pictures is not None
    assert torch.equal(pictures["original"], crops.voxels * inside)
    assert torch.equal(pictures["masked"], made.shown(crops, moment()).voxels * inside)
    assert torch.equal(pictures["mask"], crops.valid)
    error = (pictures["reconstructed"] - pictures["original"]).square()
    count = 2 * int(crops.valid.sum())
    assert error.sum().item() / count == pytest.approx(outcome.loss.item(), rel=1e-5)


@pytest.mark.parametrize(("name", "loss"), [("autoencoder", 2.01697), ("denoising", 2.00807)])
def test_losses_on_fixed_inputs_are_what_they_were(name, loss):
    made = task(name)

    outcome = made(batch(), moment())

    assert outcome.loss.item() == pytest.approx(loss, abs=1e-4)
    assert set(outcome.logs) == {"loss", "mean_predictor", "rank", "spread", "cosine"}
    mean = batch().voxels.var(unbiased=False).item()
    assert outcome.logs["mean_predictor"].item() == pytest.approx(mean, rel=1e-5)
    shown = made.shown(batch(), moment())
    with torch.no_grad():
        tokens = made.encoder(shown.voxels, shown.spacing_mm, valid=shown.valid).tokens
    one, two = tokens.mean(dim=1).double().numpy()
    cosine = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
    assert outcome.logs["cosine"].item() == pytest.approx(cosine, abs=1e-5)
    p = np.linalg.svd(np.stack([one, two]), compute_uv=False)
    p = p / p.sum() + 1e-7
    assert outcome.logs["rank"].item() == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)


@pytest.mark.parametrize("name", list(TASKS))
def test_two_crops_are_learnt_by_heart(name):
    made, crops = task(name, corruption=0.2), batch()
    optimiser = torch.optim.AdamW(made.parameters(), lr=3e-3)
    losses = []

    for step in range(150):
        outcome = made(crops, moment(step))
        optimiser.zero_grad()
        outcome.loss.backward()
        optimiser.step()
        losses.append(outcome.loss.item())

    # A token has 24 numbers for 64 voxels, so that it cannot be 0.
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    assert np.mean(losses[-5:]) < 0.6 * outcome.logs["mean_predictor"].item()
    assert outcome.logs["rank"].item() > 1.2  # of two crops: no collapse


def test_every_trained_parameter_gets_a_gradient_with_and_without_the_final_norm():
    for name in TASKS:
        for final_norm in (True, False):
            made = task(name, final_norm=final_norm)

            made(batch(), moment()).loss.backward()

            for key, parameter in made.named_parameters():
                assert (parameter.grad is not None) == parameter.requires_grad, key
            assert made.encoder.norm.weight.requires_grad == final_norm


@pytest.mark.parametrize("name", list(TASKS))
def test_fields_about_masks_take_no_part(name):
    usual = task(name)(batch(), moment(pictures=True))
    other = task(
        name, mask_ratio=0.3, masking="block", visible_weight=0.5, decoder="cross",
        decode_fraction=0.25,
    )  # fmt: skip

    found = other(batch(), moment(pictures=True))
    assert torch.equal(found.loss, usual.loss)
    assert found.pictures is not None
    assert usual.pictures is not None
    assert torch.equal(found.pictures["reconstructed"], usual.pictures["reconstructed"])


@pytest.mark.parametrize("name", list(TASKS))
def test_under_bf16_the_loss_is_float32_and_near(name):
    made = task(name)
    expected = made(batch(), moment()).loss

    with torch.autocast("cpu", torch.bfloat16):
        found = made(batch(), moment()).loss

    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=0.02)


@pytest.mark.parametrize("name", list(TASKS))
def test_the_planner_traces_a_step_and_counts_all_tokens(name):
    config = PretextConfig(name=name)  # type: ignore[arg-type]
    encoder = replace(ENCODER, default_spacing_mm=(1.0, 1.0, 1.0))

    trace = trace_step(
        lambda: PRETEXT_TASKS[name](VolumeViT(encoder), config),
        crops=3, channels=2, crop_size=SIZE, precision="bf16", on_gpu=True,
    )  # fmt: skip

    # 48 tokens of 64 voxels and width 24, two blocks: both maps of patches, then the encoder's.
    n, w, p = 3 * 4 * 4, 24, 64
    assert trace.forward_flop == 3 * (4 * n * w * p + 2 * (24 * n * w**2 + 4 * n**2 * w))


def test_the_state_holds_encoder_and_head_and_only_the_encoder_is_handed_on():
    made = task("denoising")

    assert {key.split(".")[0] for key in made.state_dict()} == {"encoder", "head"}
    assert {key.split(".")[0] for key in made.weights()} == {"encoder"}


@pytest.mark.parametrize("corruption", [0.0, -1.0, float("nan")])
def test_noise_that_is_none_is_refused(corruption):
    with pytest.raises(ConfigError, match="`objective.corruption` is .*, expected more than 0"):
        task("denoising", corruption=corruption)
