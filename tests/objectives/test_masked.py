"""MAE and SimMIM: against MONAI's MAE, against a slow loop, and overfitting one crop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from monai.networks.nets import MaskedAutoEncoderViT
from torch import Tensor

from mim3d.config.sections import EncoderConfig, PretextConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.randomness import RandomStream
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment, Outcome
from mim3d.objectives.levels import mean_predictor, patch_mean_predictor, shape_loss
from mim3d.objectives.masked import Masked, MaskedAutoencoder, SimMIM
from mim3d.objectives.masks import Masking
from mim3d.objectives.questions import ask
from mim3d.tokens.masking import TokenSplit, is_masked, split_tokens
from mim3d.tokens.patches import cut_crop, pad_to_patches, patchify

ENCODER = EncoderConfig(width=24, depth=2, heads=2, patch=(4, 4, 2), channels=2)
SMALL = PretextConfig(decoder_width=12, decoder_depth=1, decoder_heads=2)
SIZE = (11, 13, 7)
TASKS: dict[str, type[MaskedAutoencoder] | type[SimMIM]] = {
    "mae": MaskedAutoencoder,
    "simmim": SimMIM,
}


def task(name: str, encoder: EncoderConfig = ENCODER, **fields: object) -> Masked:
    torch.manual_seed(0)
    config = replace(SMALL, name=name, **fields)  # type: ignore[arg-type]
    return TASKS[name](VolumeViT(encoder), config)


def batch(size: tuple[int, int, int] = SIZE, crops: int = 2, channels: int = 2) -> CropBatch:
    voxels = torch.randn(crops, channels, *size, generator=torch.Generator().manual_seed(1))
    affine = torch.diag(torch.tensor([0.5, 1.0, 3.0, 1.0], dtype=torch.float64))
    ids = tuple(f"case_{i}" for i in range(crops))
    return CropBatch(voxels, affine.repeat(crops, 1, 1), ids, torch.arange(crops))


def moment(step: int = 0, pictures: bool = False) -> Moment:
    return Moment(step, 10, RandomStream(0, step), wants_pictures=pictures)


def split_of(made: Masked, crops: CropBatch) -> TokenSplit:
    """The partition at the first step."""
    crop = pad_to_patches(crops.voxels, crops.valid, made.encoder.patch)
    return made.masks.masking(crops, crop, moment()).split(moment().keys(crops, "mask"))


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


def monais(encoder: VolumeViT, size: tuple[int, int, int]) -> MaskedAutoEncoderViT:
    """MONAI's MAE of the same shape, its decoder 12 wide with one block."""
    return MaskedAutoEncoderViT(
        2, size, encoder.patch, hidden_size=24, mlp_dim=96, num_layers=2, num_heads=2,
        decoder_hidden_size=12, decoder_mlp_dim=48, decoder_num_layers=1, decoder_num_heads=2,
        pos_embed_type="learnable", decoder_pos_embed_type="learnable",
    )  # fmt: skip


def copied(theirs: MaskedAutoEncoderViT) -> dict[str, Tensor]:
    """MONAI's weights under our names."""
    names = {
        "patch_embedding.patch_embeddings": "encoder.embedding.projection",
        "patch_embedding.position_embeddings": "encoder.positions.table",
        "cls_token": "encoder.class_token",
        "decoder_embed": "decoder.embed",
        "mask_tokens": "decoder.mask_token",
        "decoder_pos_embedding": "decoder.positions.table",
        "decoder_pred": "decoder.head",
        "decoder_blocks.1": "decoder.norm",
        "decoder_blocks": "decoder.blocks",
        "blocks.2": "encoder.norm",
        "blocks": "encoder.blocks",
    }
    state = {}
    for key, value in theirs.state_dict().items():
        if "norm_cross_attn" in key:
            continue
        old = next(old for old in names if key.startswith(old))
        key = names[old] + key.removeprefix(old)
        for before, after in [
            ("mlp.linear1", "mlp.widen"), ("mlp.linear2", "mlp.narrow"),
            ("attn.out_proj", "attention.out"), ("attn.", "attention."),
        ]:  # fmt: skip
            key = key.replace(before, after)
        state[key] = value
    state["encoder.embedding.projection.weight"] = theirs.patch_embedding.patch_embeddings.weight
    for key in ("encoder.embedding.projection.weight", "encoder.class_token"):
        state[key] = state[key].flatten(1) if "weight" in key else state[key][0]
    state["decoder.mask_token"] = state["decoder.mask_token"].flatten()
    return state


def test_loss_and_gradients_equal_monais_mae(monkeypatch: pytest.MonkeyPatch) -> None:
    size = (12, 16, 8)
    config = replace(
        ENCODER, positions="learned", learned_grid=(3, 4, 4), class_token=True, qkv_bias=False
    )
    ours = task("mae", config)
    theirs = monais(ours.encoder, size)
    ours.load_state_dict(copied(theirs), strict=True)
    crops = batch(size)
    split = split_tokens(torch.rand(2, 48, generator=torch.Generator().manual_seed(3)), 36)
    monkeypatch.setattr(Masking, "split", lambda *_: split)
    mask = is_masked(split, 48)
    seen = split.visible[:, torch.randperm(12, generator=torch.Generator().manual_seed(4))]

    def choose(x: Tensor, masking_ratio: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
        return x.gather(1, seen[..., None].expand(-1, -1, 24)), seen, mask.int()

    monkeypatch.setattr(theirs, "_masking", choose)
    predicted, _ = theirs(crops.voxels)
    error = (predicted - patchify(crops.voxels, ours.encoder.patch)).square().mean(-1)
    expected = (error * mask).sum() / mask.sum()
    outcome = ours(crops, moment())
    outcome.loss.backward()
    expected.backward()

    torch.testing.assert_close(outcome.loss, expected, rtol=1e-5, atol=0)
    for mine, other in [
        (ours.encoder.blocks[0].attention.qkv, theirs.blocks[0].attn.qkv),
        (ours.encoder.embedding.projection, theirs.patch_embedding.patch_embeddings),
        (ours.decoder.blocks[0].mlp.widen, theirs.decoder_blocks[0].mlp.linear1),
    ]:
        one, two = mine.weight.grad, other.weight.grad.flatten(1)
        assert (one - two).norm() < 1e-4 * two.norm()


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


@pytest.mark.parametrize("kind", ["l1", "l2", "smooth_l1"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_of_shapes_is_that_with_each_patchs_mean_told(kind: str, weighted: bool) -> None:
    drawn = torch.Generator().manual_seed(4)
    predicted, truth = (torch.randn(2, 3, 5, generator=drawn) for _ in range(2))
    weights = torch.rand(2, 3, 5, generator=drawn) if weighted else None
    error = {
        "l1": abs, "l2": lambda e: e * e,
        "smooth_l1": lambda e: e * e / 2 if abs(e) < 1 else abs(e) - 0.5,
    }[kind]  # fmt: skip

    found = shape_loss(predicted, truth, weights, kind)

    total = count = 0.0
    for b in range(2):
        for q in range(3):
            each = [1.0] * 5 if weights is None else weights[b, q].tolist()
            given, asked = predicted[b, q].tolist(), truth[b, q].tolist()
            shift = sum(w * (t - p) for w, t, p in zip(each, asked, given, strict=True)) / sum(each)
            for w, t, p in zip(each, asked, given, strict=True):
                total += w * error(p + shift - t)
                count += w
    assert found.item() == pytest.approx(total / count, rel=1e-5)


def test_flat_answers_have_the_loss_of_patch_means_and_a_shape_alone_is_below_it() -> None:
    truth = torch.arange(24.0).reshape(1, 4, 6).square()
    flat = torch.tensor([3.0, -1.0, 7.0, 0.0]).reshape(1, 4, 1).expand(1, 4, 6)
    level = patch_mean_predictor(truth, None, "l2")

    torch.testing.assert_close(shape_loss(flat, truth, None, "l2"), level)
    assert shape_loss(truth - 1000, truth, None, "l2") < 1e-3 * level


@pytest.mark.parametrize("name", list(TASKS))
def test_the_loss_of_shapes_is_logged_where_voxels_are_the_target(name: str) -> None:
    raw, normalised = (
        task(name, target=target)(batch(), moment()).logs for target in ("raw", "normalised")
    )

    assert {"shape_loss", "patch_mean_predictor"} <= raw.keys()
    assert raw["shape_loss"] < raw["loss"]
    assert not {"shape_loss", "patch_mean_predictor"} & normalised.keys()


def test_the_mean_predictor_goes_by_weight() -> None:
    truth = torch.tensor([[[0.0, 4.0]]])
    weights = torch.tensor([[[3.0, 1.0]]])

    # the mean is 1: (3 * 1 + 1 * 9) / 4
    assert mean_predictor(truth, weights, "l2").item() == 3.0


@pytest.mark.parametrize("name", list(TASKS))
def test_visible_tokens_count_with_their_weight(name: str) -> None:
    crops = batch((12, 16, 8))
    masked_only, both = task(name), task(name, visible_weight=0.25)

    outcome = both(crops, moment(pictures=True))

    torch.manual_seed(0)
    expected = masked_only(crops, moment())
    # The prediction at visible tokens is known from the same network: all weights are equal.
    split = split_of(both, crops)
    cut = cut_crop(crops.voxels, None, both.encoder.patch)
    question = ask(both.config, both.target, crops, cut, split, split.hidden)
    error = (both.predict(crops, question) - question.target.values).square().mean(-1)
    visible, masked = error[:, :12], error[:, 12:]
    torch.testing.assert_close(masked.mean(), expected.loss)
    combined = (masked.sum() + 0.25 * visible.sum()) / (masked.numel() + 0.25 * visible.numel())
    torch.testing.assert_close(outcome.loss, combined)


def ragged(crops: CropBatch) -> CropBatch:
    valid = torch.ones(2, *SIZE, dtype=torch.bool)
    valid[1, 4:] = False
    return replace(crops, valid=valid)


@pytest.mark.parametrize("padded", [False, True])
def test_a_part_of_the_masked_tokens_is_asked_for_and_the_loss_is_theirs(padded: bool) -> None:
    crops = ragged(batch()) if padded else batch()
    every = task("mae", decoder="cross")
    part = task("mae", decoder="cross", decode_fraction=0.25)
    part.load_state_dict(every.state_dict())
    split = split_of(part, crops)

    asked = part._asked(split, crops, moment())

    masked = [n // 4 * 3 for n in ([48, 16] if padded else [48, 48])]
    real = torch.ones_like(asked.index) if asked.real is None else asked.real
    assert real.sum(1).tolist() == [round(n / 4) for n in masked]
    for sample in range(2):
        mine = asked.index[sample][real[sample].bool()].tolist()
        assert len(set(mine)) == len(mine)
        assert set(mine) <= set(split.masked[sample].tolist())
    # A mask token minds no other, so the loss is the mean over the chosen ones of every token's.
    cut = cut_crop(crops.voxels, crops.valid, part.encoder.patch)
    question = ask(every.config, every.target, crops, cut, split, split.hidden)
    error = (every.predict(crops, question) - question.target.values).square()
    weights = torch.ones_like(error) if question.weights is None else question.weights
    chosen = torch.zeros(2, 48)
    for sample in range(2):
        chosen[sample, asked.index[sample][real[sample].bool()]] = 1
    counted = weights * chosen.gather(1, split.masked)[..., None]
    expected = (error * counted).sum() / counted.expand_as(error).sum()
    torch.testing.assert_close(part(crops, moment()).loss, expected)


def test_each_step_asks_for_other_tokens_and_all_get_their_turn() -> None:
    made, crops = task("mae", decoder="cross", decode_fraction=0.25), batch((12, 16, 8))
    split = split_of(made, crops)

    times = torch.zeros(2, 48)
    for step in range(200):
        asked = made._asked(split, crops, moment(step)).index
        times.scatter_add_(1, asked, torch.ones(asked.shape))

    # 200 draws of 9 of 36: 50 +- 6 each
    hit = times.gather(1, split.masked)
    assert times.sum() == hit.sum()
    assert hit.min() > 25
    assert hit.max() < 75


def test_the_picture_of_a_partly_decoded_crop_shows_every_masked_token() -> None:
    every = task("mae", decoder="cross")
    part = task("mae", decoder="cross", decode_fraction=0.25)
    part.load_state_dict(every.state_dict())

    shown = part(batch(), moment(pictures=True))

    whole = every(batch(), moment(pictures=True)).pictures
    assert shown.pictures is not None
    assert whole is not None
    torch.testing.assert_close(shown.pictures["reconstructed"], whole["reconstructed"])
    torch.testing.assert_close(shown.loss, part(batch(), moment()).loss)


@pytest.mark.parametrize("name", list(TASKS))
def test_air_counts_with_its_weight_where_all_channels_are_below(name: str) -> None:
    crops = replace(batch(), air=torch.full((2, 2), 1e9))

    everything_is_air = task(name, air_weight=0.0)(crops, moment())
    ordinary = task(name)(crops, moment())
    one_channel_above = replace(crops, air=torch.tensor([[1e9, -1e9]] * 2))

    assert everything_is_air.loss == 0
    assert task(name, air_weight=0.0)(one_channel_above, moment()).loss == ordinary.loss


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
