"""Masking strategies: what is masked together, what weights do, and what moves no mask."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import torch

from mim3d.foundation.randomness import RandomStream
from mim3d.tokens import strategies
from mim3d.tokens.grid import TokenGrid
from mim3d.tokens.masking import noise, split_tokens
from mim3d.tokens.strategies import STRATEGIES, Strategy, blocks, slabs, tubes, uniform

GRID = TokenGrid.over((24, 40, 16), (4, 4, 4))  # 6 x 10 x 4 tokens
LINE = TokenGrid.over((4, 1, 1), (1, 1, 1))
EVERY = [STRATEGIES[name]((2, 3, 1), "y") for name in STRATEGIES]


def keys(number: int, step: int = 0) -> torch.Tensor:
    return torch.from_numpy(RandomStream(0, step).keys(range(number), "mask"))


def masked(scores: torch.Tensor, number: int) -> torch.Tensor:
    """`b x y z`, 1 where a token is among the highest scores."""
    split = split_tokens(scores, number)
    flat = torch.zeros(scores.shape).scatter(1, split.masked, 1)
    return flat.reshape(len(scores), *GRID.counts)


def weights_by_place(number: int) -> torch.Tensor:
    """Weights that grow along x, then y, then z, `b n`."""
    return (torch.arange(GRID.n, dtype=torch.float32) + 1).expand(number, -1)


def test_uniform_masks_hit_every_token_equally_often() -> None:
    hits = torch.zeros(GRID.n)
    for step in range(10):
        split = split_tokens(uniform(GRID, keys(200, step)), 180)
        hits += torch.bincount(split.masked.flatten(), minlength=GRID.n)

    # 2,000 draws at 0.75: standard deviation 0.0097, 240 tokens
    assert ((hits / 2000) - 0.75).abs().max() < 0.04


def test_weights_make_tokens_masked_more_often() -> None:
    weights = torch.ones(400, 4)
    weights[:, 1] = 3.0
    weights[:, 2] = 0.0
    grid = TokenGrid.over((4, 1, 1), (1, 1, 1))

    split = split_tokens(uniform(grid, keys(400), None, weights), 1)

    share = torch.bincount(split.masked.flatten(), minlength=4) / 400
    # drawn in proportion 1 : 3 : 0 : 1
    assert share[2] == 0
    assert abs(share[1].item() - 0.6) < 0.08
    assert abs(share[0].item() - 0.2) < 0.07


@pytest.mark.parametrize("strategy", EVERY, ids=list(STRATEGIES))
@pytest.mark.parametrize("is_weighted", [False, True])
def test_padding_at_either_end_moves_no_mask(strategy: Strategy, is_weighted: bool) -> None:
    small = TokenGrid.over((4, 5, 3), (1, 1, 1))
    large = TokenGrid.over((7, 6, 5), (1, 1, 1))
    valid = torch.zeros(2, 7, 6, 5, dtype=torch.bool)
    valid[0, 2:6, 1:6, :3] = True
    valid[1, :4, :5, 2:] = True

    weight = noise(keys(2, 5), 60) if is_weighted else None
    around = None
    if weight is not None:
        around = torch.full((2, 210), 7.0)  # that padding weighs anything does not matter
        around[valid.flatten(1)] = weight.flatten()

    alone = strategy(small, keys(2), None, weight)
    padded = strategy(large, keys(2), valid.flatten(1), around)

    padded = padded[valid.flatten(1)].reshape(2, -1)
    if is_weighted:  # ranks among more tokens are other numbers of the same order
        assert torch.equal(padded.argsort(dim=1), alone.argsort(dim=1))
    else:
        assert torch.equal(padded, alone)


def test_block_masks_are_whole_blocks_but_for_one() -> None:
    scores = blocks((2, 2, 2))(GRID, keys(50), None, None)

    split = split_tokens(scores, 150)

    masked = torch.zeros(50, GRID.n).scatter(1, split.masked, 1).reshape(50, *GRID.counts)
    for sample in masked:
        fits = []
        for phase in np.ndindex(2, 2, 2):
            padded = torch.full((8, 12, 6), -1.0)
            x, y, z = phase
            padded[x : x + 6, y : y + 10, z : z + 4] = sample
            cells = padded.unfold(0, 2, 2).unfold(1, 2, 2).unfold(2, 2, 2).reshape(-1, 8)
            mixed = ((cells == 1).any(1) & (cells == 0).any(1)).sum()
            fits.append(int(mixed))
        assert min(fits) <= 1, "in one phase at most one block is masked in part"


def test_block_phases_differ_between_samples() -> None:
    scores = blocks((2, 2, 2))(GRID, keys(40), None, None)

    first_pair = scores.reshape(40, *GRID.counts)[:, :2, 0, 0]
    together = (first_pair[:, 0] - first_pair[:, 1]).abs() < 2.0**-20

    assert 8 < together.sum() < 32, "about half of the phases join the first two tokens"


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_tubes_are_whole_lines_along_their_axis_but_for_one(axis: str) -> None:
    along = "xyz".index(axis)

    grids = masked(tubes(axis)(GRID, keys(50)), 151)

    lengths = grids.sum(dim=along + 1).flatten(1)
    side = GRID.counts[along]
    for sample in lengths:
        full = int((sample == side).sum())
        assert (full, int(sample.sum())) == (151 // side, 151)
        assert int(((sample > 0) & (sample < side)).sum()) == (151 % side > 0)


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_slabs_are_whole_planes_across_their_axis_but_for_one(axis: str) -> None:
    along = "xyz".index(axis)
    others = tuple(i + 1 for i in range(3) if i != along)

    grids = masked(slabs(axis)(GRID, keys(50)), 151)

    areas, plane = grids.sum(dim=others), GRID.n // GRID.counts[along]
    for sample in areas:
        assert int((sample == plane).sum()) == 151 // plane
        assert int(((sample > 0) & (sample < plane)).sum()) == (151 % plane > 0)


@pytest.mark.parametrize("strategy", [tubes("y"), slabs("y"), blocks((2, 3, 1))])
def test_every_unit_has_its_turn_and_samples_differ(strategy: Strategy) -> None:
    grids = masked(strategy(GRID, keys(300)), 60)

    # A quarter of each: 300 draws have a standard deviation of 0.025; slabs come as tens.
    share = grids.mean(dim=0)
    assert share.min() > 0.12
    assert share.max() < 0.38
    assert len({tuple(sample.flatten().tolist()) for sample in grids[:20]}) > 5


def test_a_weighted_draw_follows_the_law_of_sampling_without_replacement() -> None:
    """Against the probability of every ordered pair, written out (Plackett and Luce)."""
    weights, temperature = [1.0, 3.0, 0.0, 2.0], 0.5
    scores = uniform(LINE, keys(6000), None, torch.tensor(weights).expand(6000, -1), temperature)

    drawn = Counter(map(tuple, scores.argsort(dim=1, descending=True)[:, :2].tolist()))

    power = [weight ** (1 / temperature) for weight in weights]
    for first, second in permutations(range(4), 2):
        chance = power[first] / 14 * (power[second] / (14 - power[first]))
        assert abs(drawn[first, second] / 6000 - chance) < 0.02  # 3 standard deviations


@pytest.mark.parametrize("temperature", [1.0, 0.0])
@pytest.mark.parametrize("strategy", [blocks((2, 3, 1)), tubes("x"), slabs("z")])
def test_units_are_weighed_by_the_mean_of_their_tokens(
    strategy: Strategy, temperature: float
) -> None:
    """Weights within a unit may be moved about without moving any mask."""
    own = strategy(GRID, keys(8)).reshape(8, -1)
    weights = (GRID.indices() * torch.tensor([1.0, 3.0, 30.0])).sum(dim=1).expand(8, -1)
    # Tokens of one unit share all digits of its noise and none of another's.
    unit = (own * 2.0**24).floor()
    means = torch.stack([
        torch.stack([row[units == one].mean() for one in units])
        for units, row in zip(unit, weights, strict=True)
    ])  # fmt: skip

    moved = strategy(GRID, keys(8), None, weights, temperature)
    level = strategy(GRID, keys(8), None, means, temperature)

    assert torch.equal(moved.argsort(dim=1)[:, -40:], level.argsort(dim=1)[:, -40:])
    assert not torch.equal(moved.argsort(dim=1), own.argsort(dim=1))


@pytest.mark.parametrize("strategy", EVERY, ids=list(STRATEGIES))
def test_at_temperature_0_the_heaviest_units_come_first_whatever_the_noise(
    strategy: Strategy,
) -> None:
    weights = weights_by_place(20)

    split = split_tokens(strategy(GRID, keys(20), None, weights, 0.0), 60)

    # Unit by unit, so that a sample's lightest masked unit is no lighter than any that is seen.
    own = strategy(GRID, keys(20)).double()
    unit = (own * 2.0**24).floor() if strategy is not uniform else own
    for i in range(20):
        mean = {float(u): float(weights[i][unit[i] == u].mean()) for u in unit[i]}
        hidden = sorted(mean[float(unit[i][token])] for token in split.masked[i])
        seen = sorted(mean[float(unit[i][token])] for token in split.visible[i])
        assert hidden[0] >= seen[-1]


@pytest.mark.parametrize("strategy", EVERY, ids=list(STRATEGIES))
@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_equal_weights_leave_the_choice_to_chance(strategy: Strategy, temperature: float) -> None:
    weights = torch.full((200, GRID.n), 0.25)

    grids = masked(strategy(GRID, keys(200), None, weights, temperature), 120)

    share = grids.mean(dim=0)
    assert share.min() > 0.25
    assert share.max() < 0.75


@pytest.mark.parametrize("strategy", EVERY, ids=list(STRATEGIES))
@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_weights_of_0_or_huge_or_of_one_token_alone_give_finite_scores(
    strategy: Strategy, temperature: float
) -> None:
    for weights in (torch.zeros(2, GRID.n), torch.full((2, GRID.n), 1e30)):
        weights[:, 7] = 1e-30
        scores = strategy(GRID, keys(2), None, weights, temperature)

        assert scores.isfinite().all()
        assert all(len(set(row)) == GRID.n for row in split_tokens(scores, 0).visible.tolist())


def test_the_highest_noise_there_is_makes_no_token_of_weight_0_certain(monkeypatch) -> None:
    highest = 1 - 2.0**-24  # plus half a step of the noise it would round to 1
    monkeypatch.setattr(
        strategies, "noise", lambda keys, counters: torch.full((1, GRID.n), highest)
    )
    weights = torch.ones(1, GRID.n)
    weights[0, 7] = 0

    scores = uniform(GRID, keys(1), None, weights)

    assert scores.isfinite().all()
    assert scores[0].argmin() == 7


@pytest.mark.parametrize("name", ["tube", "slab"])
def test_an_axis_of_one_token_is_no_obstacle(name: str) -> None:
    flat = TokenGrid.over((6, 10, 1), (1, 1, 1))  # a slice

    split = split_tokens(STRATEGIES[name]((2, 2, 2), "z")(flat, keys(3)), 21)

    assert split.masked.shape == (3, 21)
