"""MAE and SimMIM: against a slow loop, overfitting one crop, and what both log and show."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from masked_tasks import ENCODER, SIZE, TASKS, batch, moment, task

from mim3d.config.encoder import EncoderConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.objectives.base import Outcome
from mim3d.objectives.mae import MaskedAutoencoder
from mim3d.objectives.masked import Masked


def slow_loss(made: Masked, crops: CropBatch, outcome: Outcome) -> float:
    """The loss voxel by voxel, from the pictures alone."""
    pictures = outcome.pictures
    assert pictures is not None
    config, (px, py, pz) = made.config, made.encoder.patch
    total = weight = 0.0
    masked = pictures["mask"]
    b, c, x, y, z = crops.voxels.shape
    for i in range(b):
        for start_x in range(0, x, px):
            for start_y in range(0, y, py):
                for start_z in range(0, z, pz):
                    at = (slice(start_x, start_x + px), slice(start_y, start_y + py),
                          slice(start_z, start_z + pz))  # fmt: skip
                    truth = pictures["original"][i][(slice(None), *at)]
                    guess = pictures["reconstructed"][i][(slice(None), *at)]
                    inside = torch.ones(truth.shape[1:], dtype=torch.bool)
                    if crops.valid is not None:
                        inside = crops.valid[i][at]
                    if not (masked[i][at] & inside).any():
                        continue
                    if config.target == "normalised":
                        spread = truth[:, inside].var(unbiased=False).add(1e-6).sqrt()
                        truth, guess = truth / spread, guess / spread
                    error = (truth - guess).abs() if config.loss == "l1" else (truth - guess) ** 2
                    each = inside.float().expand(c, *inside.shape).clone()
                    if crops.air is not None:
                        original = pictures["original"][i][(slice(None), *at)]
                        is_air = (original < crops.air[i][:, None, None, None]).all(dim=0)
                        each[:, is_air] *= config.air_weight
                    total += float((error * each).sum())
                    weight += float(each.sum())
    return total / weight


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize("target", ["raw", "normalised"])
@pytest.mark.parametrize("loss", ["l1", "l2"])
@pytest.mark.parametrize("padded", [False, True])
def test_the_loss_equals_a_slow_loop_over_voxels(
    name: str, target: str, loss: str, padded: bool
) -> None:
    made = task(name, target=target, loss=loss, air_weight=0.25)
    crops = replace(batch(), air=torch.tensor([[0.0, 0.5], [-0.5, 1.0]]))
    if padded:
        valid = torch.ones(2, *SIZE, dtype=torch.bool)
        valid[0, :3] = False
        valid[1, :, 9:, 4:] = False
        crops = replace(crops, valid=valid)

    outcome = made(crops, moment(pictures=True))

    assert outcome.loss.item() == pytest.approx(slow_loss(made, crops, outcome), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "decoding"),
    [
        ("mae", {}),
        ("mae", {"decoder": "cross", "decode_fraction": 0.25}),
        ("simmim", {}),
    ],
)
@pytest.mark.parametrize("patch", [(8, 8, 8), (8, 8, 4)])
def test_one_crop_is_overfitted_within_200_steps(
    name: str, decoding: dict[str, object], patch: tuple[int, int, int]
) -> None:
    encoder = EncoderConfig(width=96, depth=2, heads=3, patch=patch, channels=1)
    made = task(name, encoder, decoder_width=96, decoder_depth=2, decoder_heads=3, **decoding)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, 24)] * 3, indexing="ij")
    volume = torch.sin(3 * axes[0] + axes[1]) + axes[2] * axes[1] + (axes[0] > 0.3)
    crops = replace(batch((24, 24, 24), 1, 1), voxels=volume[None, None])
    optimiser = torch.optim.AdamW(made.parameters(), lr=2e-3)

    losses = []
    for _ in range(200):
        loss = made(crops, moment()).loss
        losses.append(loss.item())
        if loss.item() < losses[0] / 10:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    assert losses[-1] < losses[0] / 10


@pytest.mark.parametrize(
    ("name", "decoder"), [("mae", "full"), ("mae", "cross"), ("simmim", "full")]
)
@pytest.mark.parametrize(
    "positions", ["learned", "sincos_index", "sincos_mm", "rotary_mm", "rotary_index"]
)
@pytest.mark.parametrize("final_norm", [True, False])
def test_every_parameter_learns_except_a_norm_that_is_left_out(
    name: str, decoder: str, positions: str, final_norm: bool
) -> None:
    config = replace(
        ENCODER, positions=positions, learned_grid=(3, 4, 4), class_token=True, registers=1
    )
    made = task(name, config, final_norm=final_norm, decoder=decoder)

    made(batch(), moment()).loss.backward()

    still = {n for n, p in made.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == (set() if final_norm else {"encoder.norm.weight", "encoder.norm.bias"})
    assert made.encoder.norm.weight.requires_grad == final_norm


@pytest.mark.parametrize("name", list(TASKS))
def test_masks_depend_on_seed_step_and_crop_alone(name: str) -> None:
    made, crops = task(name), batch(crops=3)
    only_last = CropBatch(
        crops.voxels[2:], crops.affine[2:], crops.case_ids[2:], crops.crop_ids[2:]
    )

    masks = made(crops, moment(4, pictures=True)).pictures["mask"]
    again = made(only_last, moment(4, pictures=True)).pictures["mask"]
    later = made(crops, moment(5, pictures=True)).pictures["mask"]

    assert torch.equal(again[0], masks[2])
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(later, masks)


@pytest.mark.parametrize("name", list(TASKS))
def test_logs_hold_the_loss_the_mean_predictor_and_the_masked_share(name: str) -> None:
    made, crops = task(name, mask_ratio=0.6), batch()

    outcome = made(crops, moment(pictures=True))

    assert outcome.pictures is not None
    mask = outcome.pictures["mask"][:, None].expand(-1, 2, -1, -1, -1)
    hidden = crops.voxels[mask]
    spread = (hidden - hidden.mean()).square().mean()
    assert outcome.logs["loss"] == outcome.loss
    torch.testing.assert_close(outcome.logs["mean_predictor"], spread)
    assert outcome.logs["masked_share"].item() == pytest.approx(29 / 48)  # 28.8 rounds to 29
    assert not any(value.requires_grad for value in outcome.logs.values())


@pytest.mark.parametrize("name", list(TASKS))
def test_the_loss_of_shapes_is_logged_where_voxels_are_the_target(name: str) -> None:
    raw, normalised = (
        task(name, target=target)(batch(), moment()).logs for target in ("raw", "normalised")
    )

    assert {"shape_loss", "patch_mean_predictor"} <= raw.keys()
    assert raw["shape_loss"] < raw["loss"]
    assert not {"shape_loss", "patch_mean_predictor"} & normalised.keys()


def test_pictures_show_what_was_masked_and_what_was_predicted() -> None:
    made, crops = task("mae", target="normalised"), batch()

    pictures = made(crops, moment(pictures=True)).pictures

    assert pictures is not None
    assert made(crops, moment()).pictures is None
    mask = pictures["mask"][:, None]
    assert torch.equal(pictures["original"], crops.voxels)
    assert torch.equal(pictures["masked"], crops.voxels * ~mask)
    assert torch.equal(pictures["reconstructed"] * ~mask, crops.voxels * ~mask)
    assert (pictures["reconstructed"] != crops.voxels)[mask.expand_as(crops.voxels)].all()
    torch.testing.assert_close(pictures["spacing_mm"][0], torch.tensor([0.5, 1.0, 3.0]))
    # masks are whole patches
    whole = torch.nn.functional.max_pool3d(mask.float(), (4, 4, 2), ceil_mode=True)
    grown = whole.repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(2, 4)
    assert torch.equal(grown[..., :11, :13, :7], mask.float())


def test_a_perfect_normalised_prediction_is_shown_as_the_original(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, crops = task("simmim", target="normalised"), batch()
    monkeypatch.setattr(made, "read", lambda _states, question: question.target.values)

    outcome = made(crops, moment(pictures=True))

    assert outcome.loss == 0
    assert outcome.pictures is not None
    torch.testing.assert_close(outcome.pictures["reconstructed"], crops.voxels, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", list(TASKS))
def test_crops_that_are_nearly_all_padding_stop_nothing(name: str) -> None:
    valid = torch.zeros(2, *SIZE, dtype=torch.bool)
    valid[0, :2, :2, :1] = True
    made, crops = task(name), replace(batch(), valid=valid)

    outcome = made(crops, moment(pictures=True))
    outcome.loss.backward()

    assert outcome.loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters())


def test_block_masking_is_taken_from_the_config() -> None:
    crops = batch((16, 16, 8))
    made = task("simmim", masking="block", mask_unit=(2, 2, 2), mask_ratio=0.5)

    mask = made(crops, moment(pictures=True)).pictures["mask"]

    tokens = mask[0, ::4, ::4, ::2].float()
    both = (tokens[1:] == tokens[:-1]).float().mean()
    single = task("simmim", mask_ratio=0.5)(crops, moment(pictures=True)).pictures["mask"]
    singles = single[0, ::4, ::4, ::2].float()
    assert both > (singles[1:] == singles[:-1]).float().mean()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"mask_ratio": 1.5}, "between 0 and 1"),
        ({"masking": "cube"}, "uniform, block"),
        ({"decoder": "cross", "decode_fraction": 0.0}, "above 0 to 1"),
        ({"decode_fraction": 0.5}, "decoder full"),
    ],
)
def test_a_bad_config_is_refused_before_the_first_step(fields: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        task("mae", **fields)


def test_a_crop_that_leaves_nothing_visible_is_an_error() -> None:
    with pytest.raises(UserError, match="none visible"):
        task("mae")(batch((4, 4, 2)), moment())


@pytest.mark.parametrize("name", list(TASKS))
def test_bf16_autocast_gives_nearly_the_same_loss(name: str) -> None:
    made, crops = task(name), batch()

    with torch.autocast("cpu", torch.bfloat16):
        outcome = made(crops, moment())
    outcome.loss.backward()

    assert outcome.loss.dtype == torch.float32
    assert outcome.loss.item() == pytest.approx(made(crops, moment()).loss.item(), rel=0.02)


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize("how", ["xavier", "normal"])
def test_the_heads_are_drawn_as_the_encoders_config_says(name: str, how: str) -> None:
    made = task(name, replace(ENCODER, initialisation=how))  # type: ignore[arg-type]

    head = made.decoder.head if isinstance(made, MaskedAutoencoder) else made.head
    assert isinstance(head, torch.nn.Linear)
    deviation = 0.02 if how == "normal" else (2 / (head.in_features + head.out_features)) ** 0.5
    assert head.weight.std().item() == pytest.approx(deviation, rel=0.1)
    assert (head.bias == 0).all()


@pytest.mark.parametrize(("rounding", "masked"), [("half_up", 29), ("ceil", 29), ("floor", 28)])
def test_counts_are_rounded_as_the_config_says(rounding: str, masked: int) -> None:
    # 0.6 of 48 tokens is 28.8; of 24 valid ones, 14.4
    made = task("mae", mask_ratio=0.6, rounding=rounding)
    valid = torch.ones(2, *SIZE, dtype=torch.bool)
    valid[:, :, 8:] = False

    whole = made(batch(), moment()).logs["masked_share"].item()
    half = made(replace(batch(), valid=valid), moment()).logs["masked_share"].item()

    assert whole == pytest.approx(masked / 48)
    assert half == pytest.approx((15 if rounding == "ceil" else 14) / 24)


def test_blocks_have_the_configs_unit() -> None:
    made = task("simmim", masking="block", mask_unit=(1, 1, 4), mask_ratio=0.5)

    mask = made(batch((24, 24, 32)), moment(pictures=True)).pictures["mask"]

    tokens = mask[:, ::4, ::4, ::2].float()  # b 6 6 16
    along_z = (tokens[..., 1:] == tokens[..., :-1]).float().mean()
    along_x = (tokens[:, 1:] == tokens[:, :-1]).float().mean()
    # runs of four: neighbours along z agree in 3 of 4 places and by chance; along x by chance alone
    assert along_z > 0.8
    assert 0.35 < along_x < 0.65
