"""Patch sizes drawn per step: what is drawn, what a step learns, and what is refused."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig
from mim3d.config.reading import read_config
from mim3d.config.training import OptimConfig, TrainingConfig
from mim3d.config.verbs import PretrainConfig
from mim3d.data.batch import CropBatch, CropBatches
from mim3d.foundation.errors import ConfigError, Interrupted
from mim3d.foundation.randomness import RandomStream, generator
from mim3d.foundation.reporting import Silent
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment
from mim3d.objectives.drawn_patches import ABLE, check_patches, drawn_patch
from mim3d.objectives.masked import Masked
from mim3d.objectives.registry import PRETEXT_TASKS
from mim3d.tokens.grid import Triple
from mim3d.training.loop import fit
from mim3d.training.run import Run
from mim3d.workflows.throughput.syncs import host_syncs

PATCH = (4, 4, 2)
PATCHES = (PATCH, (8, 4, 4), (2, 4, 4))
ENCODER = EncoderConfig(width=24, depth=2, heads=2, patch=PATCH, channels=2)
SMALL = PretextConfig(decoder_width=12, decoder_depth=2, decoder_heads=2)
SIZE = (11, 13, 7)
FORMS: list[tuple[str, dict[str, Any]]] = [
    ("mae", {}),
    ("mae", {"decoder": "cross", "decode_fraction": 0.5}),
    ("mae", {"visible_weight": 0.25, "target": "normalised", "masking": "block"}),
    ("simmim", {}),
    ("simmim", {"air_weight": 0.5, "drop_air": True}),
    ("mae", {"drop_air": True}),
    ("mae", {"masks_per_contrast": True, "contrast_dropout": 0.3}),
]


def task(name: str = "mae", encoder: EncoderConfig = ENCODER, **fields: Any) -> Masked:
    if fields.get("masks_per_contrast"):
        encoder = replace(encoder, embedding="per_contrast", contrasts=("t1", "t2"))
    torch.manual_seed(0)
    made = PRETEXT_TASKS[name](VolumeViT(encoder), replace(SMALL, name=name, **fields))  # type: ignore[arg-type]
    assert isinstance(made, Masked)
    return made


def crops(size: Triple = SIZE, first: int = 0, count: int = 2) -> CropBatch:
    """Crops with the places `first` and following in the batch, about half of them air."""
    voxels = torch.randn(count, 2, *size, generator=torch.Generator().manual_seed(first))
    affine = torch.diag(torch.tensor([0.5, 1.0, 3.0, 1.0], dtype=torch.float64))
    ids = torch.arange(first, first + count)
    air = torch.tensor([[0.5, 1.0]]).repeat(count, 1)
    return CropBatch(voxels, affine.repeat(count, 1, 1), tuple(map(str, ids)), ids, air=air)


def moment(step: int = 3, pictures: bool = False) -> Moment:
    return Moment(step, 10, RandomStream(0, step), wants_pictures=pictures)


def step_of(patch: Triple, patches: tuple[Triple, ...] = PATCHES) -> Moment:
    """The first step in which a size is drawn."""
    return next(now for now in map(moment, range(100)) if drawn_patch(patches, now) == patch)


def loss_and_gradients(
    made: Masked, batch: CropBatch | CropBatches, now: Moment
) -> tuple[Tensor, dict[str, Tensor]]:
    made.zero_grad()
    loss = made(batch, now).loss
    loss.backward()
    found = {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}
    return loss.detach(), found


def test_every_size_is_drawn_equally_often_and_seeds_differ() -> None:
    drawn = [drawn_patch(PATCHES, moment(step)) for step in range(3000)]
    other = [drawn_patch(PATCHES, Moment(i, 10, RandomStream(1, i))) for i in range(3000)]

    # Binomial(3000, 1/3) has a deviation of 26.
    for counts in (Counter(drawn), Counter(other)):
        assert counts.keys() == set(PATCHES)
        assert all(abs(number - 1000) < 4 * 26 for number in counts.values())
    # Independent draws agree in a third of the steps; so do neighbours.
    assert abs(sum(a == b for a, b in zip(drawn, other, strict=True)) - 1000) < 4 * 26
    assert abs(sum(a == b for a, b in pairwise(drawn)) - 1000) < 4 * 26


def test_the_draw_follows_from_seed_and_step_not_from_who_asks() -> None:
    """Processes and micro-batches of a step have other crops, and the same patch."""
    made = task(patches=PATCHES)

    for step in range(8):
        now = moment(step)
        parts = (crops(first=0), crops(first=4), crops((16, 8, 4), first=6, count=1))
        found = {made.question(part, now).cut.crop.grid.patch for part in parts}
        assert found == {drawn_patch(PATCHES, replace(now, steps=999))}


@pytest.mark.parametrize(("name", "fields"), FORMS)
def test_the_stored_patch_as_the_only_one_is_bit_equal_to_none(
    name: str, fields: dict[str, Any]
) -> None:
    plain, drawn = task(name, **fields), task(name, patches=(PATCH,), **fields)
    part = crops()

    for batch in (part, CropBatches((part, crops((16, 8, 4), first=2)))):
        expected, gradients = loss_and_gradients(plain, batch, moment())
        loss, found = loss_and_gradients(drawn, batch, moment())

        assert torch.equal(loss, expected)
        assert found.keys() == gradients.keys()
        for key, gradient in gradients.items():
            assert torch.equal(found[key], gradient), key


def interpolation(old: Triple, new: Triple) -> Tensor:
    """From every voxel of an old patch to those of a new one, by torch's own interpolation."""
    count = old[0] * old[1] * old[2]
    units = torch.eye(count, dtype=torch.float64).reshape(count, 1, *old)
    rows = F.interpolate(units, new, mode="trilinear", align_corners=False)
    return rows.reshape(count, -1).T


def of_channels(matrix: Tensor) -> Tensor:
    """The same for each of two channels, c slowest."""
    return torch.block_diag(matrix, matrix)


def made_for(patch: Triple, stored: Masked) -> tuple[Masked, Tensor, Tensor]:
    """The task made for another patch, with what resizes its kernel and its head."""
    kernel = of_channels(torch.linalg.pinv(interpolation(PATCH, patch).T))
    head = of_channels(interpolation(PATCH, patch))
    fields = {f: getattr(stored.config, f) for f in vars(stored.config) if f not in ("name",)}
    made = task(stored.config.name, replace(ENCODER, patch=patch), **{**fields, "patches": ()})
    state = stored.state_dict()
    key = "encoder.embedding.projection.weight"
    state[key] = (state[key].double() @ kernel.T).float()
    (prefix,) = (name[: -len("weight")] for name in state if name.endswith("head.weight"))
    for part in ("weight", "bias"):
        state[prefix + part] = (head @ state[prefix + part].double()).float()
    made.load_state_dict(state, strict=True)
    return made, kernel, head


@pytest.mark.parametrize("patch", PATCHES[1:])
@pytest.mark.parametrize(("name", "fields"), FORMS)
def test_a_step_at_another_patch_is_that_of_the_task_made_for_it(
    name: str, fields: dict[str, Any], patch: Triple
) -> None:
    """Loss and gradients; seen to fail with the targets of the stored patch, and detached."""
    drawn = task(name, patches=PATCHES, **fields)
    torch.nn.init.normal_(drawn.get_parameter(_head(drawn) + "bias"), std=0.3)
    oracle, kernel, head = made_for(patch, drawn)
    part, now = crops(), step_of(patch)

    expected, gradients = loss_and_gradients(oracle, part, now)
    loss, found = loss_and_gradients(drawn, part, now)

    torch.testing.assert_close(loss, expected, atol=0, rtol=2e-5)
    # The chain rule through the resize, written out.
    key = "encoder.embedding.projection.weight"
    gradients[key] = (gradients[key].double() @ kernel).float()
    for name in (_head(drawn) + "weight", _head(drawn) + "bias"):
        gradients[name] = (head.T @ gradients[name].double()).float()
    assert found.keys() == gradients.keys()
    for key, gradient in gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[key], gradient, atol=2e-4 * scale, rtol=1e-3, msg=key)


def _head(made: Masked) -> str:
    return "decoder.head." if made.config.name == "mae" else "head."


@pytest.mark.parametrize("name", ABLE)
def test_several_sizes_of_crops_share_the_patch_of_the_step(name: str) -> None:
    """The loss is that of all crops padded to one size, which every drawn patch divides."""
    made = task(name, patches=PATCHES)
    parts = (crops(), crops((16, 8, 4), first=2), crops((6, 12, 12), first=4))
    voxels = torch.full((6, 2, 16, 16, 12), 99.0)
    valid = torch.zeros(6, 16, 16, 12, dtype=torch.bool)
    for i, part in enumerate(parts):
        x, y, z = part.voxels.shape[2:]
        voxels[2 * i : 2 * i + 2, :, :x, :y, :z] = part.voxels
        valid[2 * i : 2 * i + 2, :x, :y, :z] = True
    padded = CropBatch(
        voxels, torch.cat([part.affine for part in parts]), ("",) * 6, torch.arange(6), valid=valid
    )

    for patch in PATCHES:
        expected = made(padded, step_of(patch)).loss
        loss = made(CropBatches(parts), step_of(patch)).loss
        torch.testing.assert_close(loss, expected, atol=0, rtol=2e-5)


@pytest.mark.parametrize("name", ABLE)
def test_outside_of_training_the_patch_is_the_encoders(name: str) -> None:
    plain, drawn = task(name).eval(), task(name, patches=PATCHES[1:]).eval()

    for step in range(4):
        expected, found = (made(crops(), moment(step, pictures=True)) for made in (plain, drawn))
        assert torch.equal(found.loss, expected.loss)
        assert found.logs.keys() == expected.logs.keys()
        assert found.pictures is not None
        assert expected.pictures is not None
        assert torch.equal(found.pictures["mask"], expected.pictures["mask"])


def test_the_log_tells_the_loss_of_each_size_and_pictures_are_of_the_drawn_one() -> None:
    made = task("mae", patches=PATCHES, decoder="cross", decode_fraction=0.5)

    for patch, name in zip(PATCHES, ("loss_4x4x2", "loss_8x4x4", "loss_2x4x4"), strict=True):
        outcome = made(crops(), replace(step_of(patch), wants_pictures=True))

        assert [key for key in outcome.logs if key.startswith("loss_")] == [name]
        assert torch.equal(outcome.logs[name], outcome.loss.detach())
        assert outcome.pictures is not None
        mask = outcome.pictures["mask"]
        assert mask.shape == (2, *SIZE)
        corner = mask[:, : patch[0], : patch[1], : patch[2]].flatten(1)
        assert bool((corner.all(dim=1) | ~corner.any(dim=1)).all())


def test_no_option_leaves_the_log_as_it_was() -> None:
    assert not [key for key in task()(crops(), moment()).logs if key.startswith("loss_")]


@pytest.mark.parametrize("name", ABLE)
def test_one_encoder_learns_at_every_size(name: str) -> None:
    """200 steps of smooth crops: at each size the loss falls below half of the mean predictor's."""
    made = task(name, patches=PATCHES)
    optimiser = torch.optim.AdamW(made.parameters(), lr=3e-3)
    axes = torch.meshgrid(*(torch.linspace(-2, 2, side) for side in (8, 8, 8)), indexing="ij")
    wave = torch.stack([(axes[0] + axes[1]).sin(), (axes[1] - 2 * axes[2]).cos()])
    part = replace(crops((8, 8, 8), count=4), voxels=wave.expand(4, -1, -1, -1, -1).clone())
    last: dict[Triple, float] = {}
    for step in range(200):
        now = Moment(step, 200, RandomStream(0, step))
        outcome = made(part, now)
        optimiser.zero_grad()
        outcome.loss.backward()
        optimiser.step()
        share = outcome.logs["loss"] / outcome.logs["mean_predictor"]
        last[drawn_patch(PATCHES, now)] = share.item()

    assert last.keys() == set(PATCHES)
    assert max(last.values()) < 0.5, last


class PatchFeed:
    """Steps of random crops, each by its step and place."""

    batch_size = 4

    def batches(
        self, start: int, stop: int, *, rank: int = 0, world: int = 1, accumulation: int = 1
    ) -> Iterator[tuple[int, list[CropBatch]]]:
        """This process's share of every step."""
        del rank, world
        size = self.batch_size // accumulation
        for step in range(start, stop):
            parts = []
            for first in range(0, self.batch_size, size):
                draw = generator(step, first, "crops").normal(size=(size, 2, *SIZE))
                part = crops(first=first, count=size)
                parts.append(replace(part, voxels=torch.from_numpy(draw).float()))
            yield step, parts


def train(folder: Path, stop_at: int | None = None) -> dict[str, Tensor]:
    made = task("mae", patches=PATCHES)

    def stop(module: Any, given: Any) -> None:
        if given[1].step == stop_at:
            signal.raise_signal(signal.SIGTERM)

    made.register_forward_pre_hook(stop)
    training = TrainingConfig(
        steps=7, batch_size=4, accumulation=2, checkpoint_every=3, log_every=3, pictures_every=0,
        precision="fp32", device="cpu", threads=1,
    )  # fmt: skip
    with Run.create_or_continue(folder, {}) as run:
        fit(
            made, PatchFeed(), OptimConfig(lr=1e-3, ema=0.9), training, run, reporter=Silent()  # type: ignore[arg-type]
        )  # fmt: skip
    last = folder / "checkpoints" / "last"
    return load_file(last / "state.safetensors") | load_file(last / "weights.safetensors")


@pytest.mark.parametrize("stop_at", [1, 4])
def test_a_resumed_run_ends_with_the_same_bits(stop_at: int, tmp_path: Path) -> None:
    expected = train(tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", stop_at)

    found = train(tmp_path / "cut")

    assert len({drawn_patch(PATCHES, moment(step)) for step in range(7)}) == 3
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    weights = found["encoder.embedding.projection.weight"]
    assert weights.shape == (24, 2 * 4 * 4 * 2)


@pytest.mark.parametrize("name", ABLE)
def test_a_step_at_another_patch_waits_for_no_device(name: str) -> None:
    """Seen to fail with matrices that were copied without `non_blocking`."""
    with torch.device("meta"):
        made = task(name, patches=PATCHES[1:2])
        part = crops((16, 16, 8))
    part = replace(part, crop_ids=torch.arange(2))

    assert host_syncs(lambda: made(part, moment()).loss.backward()) == []


def test_sizes_are_read_from_a_file_and_from_the_line(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("objective:\n  patches: [[4, 4, 4], [8, 8, 2]]\n")

    written = read_config(file, PretrainConfig).objective.patches
    typed = read_config(None, PretrainConfig, {"objective.patches": "[[4,4,4],[8,8,2]]"})

    assert written == typed.objective.patches == ((4, 4, 4), (8, 8, 2))


@pytest.mark.parametrize("name", [name for name in PRETEXT_TASKS if name not in ABLE])
def test_other_tasks_refuse_sizes_to_draw(name: str) -> None:
    with pytest.raises(ConfigError, match=f"`objective.patches` is not for .*{name}") as caught:
        check_patches(PretextConfig(name=name, patches=PATCHES), ENCODER)  # type: ignore[arg-type]

    assert caught.value.remedy is not None
    assert "mae" in caught.value.remedy


@pytest.mark.parametrize("name", ["smit", "autoencoder", "denoising"])
def test_tasks_of_the_same_family_refuse_them_as_they_are_made(name: str) -> None:
    with pytest.raises(ConfigError, match=r"objective\.patches"):
        PRETEXT_TASKS[name](VolumeViT(ENCODER), PretextConfig(name=name, patches=PATCHES))  # type: ignore[arg-type]


def test_a_convolutional_stem_has_one_size() -> None:
    with pytest.raises(ConfigError, match=r"encoder\.stem convolutional"):
        task(encoder=replace(ENCODER, stem="convolutional", stem_width=4), patches=PATCHES)


@pytest.mark.parametrize("patch", [(0, 4, 4), (4, -1, 4)])
def test_a_side_below_one_is_refused(patch: Triple) -> None:
    with pytest.raises(ConfigError, match="a side below 1"):
        task(patches=(PATCH, patch))


@pytest.mark.parametrize(
    ("patch", "ratio", "visible_weight", "is_refused"),
    [
        ((16, 16, 8), 0.75, 0.0, True),  # 1 token, masked
        ((8, 16, 8), 0.75, 0.0, True),  # 2 tokens: 1.5 rounds to 2
        ((8, 8, 8), 0.75, 0.0, False),  # 4 tokens
        ((8, 8, 8), 0.1, 0.0, True),  # 0.4 of 4 tokens: none asked
        ((8, 8, 8), 0.1, 0.5, False),  # the visible ones are asked too
    ],
)
def test_a_size_that_leaves_too_few_tokens_of_a_crop_is_refused_before_the_first_step(
    patch: Triple, ratio: float, visible_weight: float, is_refused: bool
) -> None:
    objective = PretextConfig(
        patches=(PATCH, patch), mask_ratio=ratio, visible_weight=visible_weight
    )
    sizes = [(32, 32, 16), (16, 16, 8)]

    if not is_refused:
        check_patches(objective, ENCODER, sizes)
        return
    with pytest.raises(ConfigError, match=" x ".join(map(str, patch))) as caught:
        check_patches(objective, ENCODER, sizes)
    assert "16 x 16 x 8" in str(caught.value)
