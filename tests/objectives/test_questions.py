"""What a step of masked image modelling asks, and what each of it counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from masked_tasks import SIZE, TASKS, batch, moment, split_of, task

from mim3d.data.batch import CropBatch
from mim3d.objectives.questions import ask
from mim3d.tokens.patches import cut_crop


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
