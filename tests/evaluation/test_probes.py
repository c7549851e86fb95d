"""Probes against normal equations, brute force and counted voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mim3d.evaluation import probes
from mim3d.evaluation.probes import (
    STRENGTHS,
    ProbedTokens,
    RidgeFit,
    chosen_strength,
    constant_share,
    explained,
    neighbour_dice,
    picked_above,
    position_features,
    ridge_probe,
    rms,
    share_dice,
    thresholds,
    voxel_features,
)
from mim3d.foundation.errors import ShapeError

WIDTH, CELLS, CLASSES = 7, 3, 4


def tokens(count: int = 120, *, seed: int = 0, noise: float = 0.3) -> ProbedTokens:
    """Tokens of six subjects whose shares are a noisy linear function of two features."""
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(count, WIDTH, generator=random) * torch.arange(1, WIDTH + 1) + 5
    law = torch.randn(WIDTH, CELLS * CLASSES, generator=torch.Generator().manual_seed(9))
    scores = (features - 5) / torch.arange(1, WIDTH + 1) @ law
    scores = scores + noise * torch.randn(scores.shape, generator=random)
    shares = scores.unflatten(1, (CELLS, CLASSES)).softmax(dim=2)
    return ProbedTokens(features, shares, torch.arange(count) % 6)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_ridge_is_least_squares_with_penalty_rows(strength: float) -> None:
    fit, test = tokens(), tokens(40, seed=1)
    x, y = fit.features.double().numpy(), fit.shares.double().flatten(1).numpy()
    mean, deviation, centre = x.mean(0), x.std(0), y.mean(0)

    guess = RidgeFit(fit).predict(test.features, strength)

    # min |XW - Y|^2 + s n |W|^2 is plain least squares with the rows sqrt(s n) I appended.
    rows = np.sqrt(strength * len(x)) * np.eye(WIDTH)
    left = np.concatenate([(x - mean) / deviation, rows])
    right = np.concatenate([y - centre, np.zeros((WIDTH, y.shape[1]))])
    weight = np.linalg.lstsq(left, right, rcond=None)[0]
    expected = (test.features.double().numpy() - mean) / deviation @ weight + centre
    np.testing.assert_allclose(guess.flatten(1).numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("seed", range(6))
def test_the_penalty_is_the_one_that_serves_every_third_subject_best(seed: int) -> None:
    fit = tokens(24, seed=seed, noise=3.0)
    inner = torch.tensor([s not in (0, 3) for s in fit.subjects.tolist()])
    ridge, other = RidgeFit(fit.part(inner)), fit.part(~inner)
    scores = [explained(other.shares, ridge.predict(other.features, s)) for s in STRENGTHS]

    assert chosen_strength(fit) == STRENGTHS[int(np.argmax(scores))]
    assert len(set(scores)) == len(STRENGTHS)


def test_one_subject_alone_takes_the_usual_penalty() -> None:
    fit = tokens(20)

    alone = ProbedTokens(fit.features, fit.shares, torch.zeros(20, dtype=torch.long))

    assert chosen_strength(alone) == probes.USUAL_STRENGTH


def test_explained_is_one_less_residual_by_total_class_by_class() -> None:
    truth, guess = tokens(30).shares, tokens(30, seed=2).shares
    expected = []
    for k in range(1, CLASSES):
        residual = total = 0.0
        for c in range(CELLS):
            mean = sum(float(truth[n, c, k]) for n in range(30)) / 30
            residual += sum(float(truth[n, c, k] - guess[n, c, k]) ** 2 for n in range(30))
            total += sum((float(truth[n, c, k]) - mean) ** 2 for n in range(30))
        expected.append(1 - residual / total)

    assert explained(truth, guess) == pytest.approx(np.mean(expected), rel=1e-6)
    assert explained(truth, truth) == 1
    assert explained(truth, truth.mean(dim=0).expand_as(truth)) == pytest.approx(0, abs=1e-6)


def test_a_class_that_is_nowhere_counts_in_no_mean() -> None:
    truth, guess = tokens(30).shares.clone(), tokens(30, seed=2).shares
    truth[:, :, 3] = 0
    picked = guess[..., :3].argmax(dim=2)

    assert explained(truth, guess) == explained(truth[..., :3], guess[..., :3])
    assert share_dice(truth, picked) == share_dice(truth[..., :3], picked)
    assert np.isnan(explained(torch.zeros(5, 1, 3), torch.zeros(5, 1, 3)))


def test_dice_of_full_cells_is_that_of_their_voxels() -> None:
    random = np.random.default_rng(0)
    truth, picked = random.integers(0, 3, (50, 8)), random.integers(0, 3, (50, 8))
    shares = torch.nn.functional.one_hot(torch.from_numpy(truth), 3).float()
    # Each cell stands for 2 x 2 x 2 voxels of one class.
    a, b = (np.repeat(x.ravel(), 8) for x in (truth, picked))
    expected = [2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum()) for k in (1, 2)]

    assert share_dice(shares, torch.from_numpy(picked)) == pytest.approx(np.mean(expected))


def test_as_many_cells_lie_above_a_threshold_as_the_class_fills() -> None:
    fit = tokens()
    guess = RidgeFit(fit).predict(fit.features, 0.1)

    above = (guess > thresholds(fit.shares, guess)).sum(dim=(0, 1))

    filled = fit.shares.double().sum(dim=(0, 1)).round()
    assert above.tolist() == filled.tolist()


def test_the_class_farthest_above_its_threshold_is_picked_and_none_is_background() -> None:
    guess = torch.tensor([[[9.0, 0.2, 0.5]], [[9.0, 0.5, 0.5]], [[0.0, 0.0, 0.0]]])

    picked = picked_above(guess, torch.tensor([0.0, 0.1, 0.6]))

    assert picked.tolist() == [[1], [1], [0]]


def test_a_linear_law_is_found_and_features_that_tell_nothing_are_not() -> None:
    fit, test = tokens(noise=0.05), tokens(60, seed=1, noise=0.05)
    other = torch.Generator().manual_seed(5)

    def scrambled(part: ProbedTokens) -> ProbedTokens:
        noise = torch.randn(part.features.shape, generator=other)
        return ProbedTokens(noise, part.shares, part.subjects)

    score, nothing = ridge_probe(fit, test), ridge_probe(scrambled(fit), scrambled(test))

    assert score.r2 > 0.6 > 0.1 > nothing.r2
    assert score.dice > nothing.dice + 0.2


def test_the_share_that_is_picked_is_that_of_the_labels_to_fit_on() -> None:
    """Thresholds from the labels to be read would leak how much of them there is."""

    def line(first: float, above: float) -> ProbedTokens:
        x = torch.arange(10.0) + first
        organ = (x > above).float()
        shares = torch.stack([1 - organ, organ], dim=1)[:, None]
        return ProbedTokens(x[:, None], shares, torch.zeros(10, dtype=torch.long))

    # Of 1 to 10 those above 7 are the organ, of 1.5 to 10.5 the six above 5.
    score = ridge_probe(line(1, 7), line(1.5, 5))

    # What is read grows with x, so that the four above 7 are picked: 2 * 4 / (4 + 6).
    assert score.dice == pytest.approx(0.8)


def test_neighbours_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "CHUNK", 16)
    fit, test = tokens(50), tokens(37, seed=1)
    x = fit.features.numpy()
    mean, deviation = x.mean(0), x.std(0)
    picked = np.zeros((37, CELLS), int)
    for n in range(37):
        here = (test.features[n].numpy() - mean) / deviation
        cosines = []
        for row in (x - mean) / deviation:
            cosines.append(row @ here / np.linalg.norm(row) / np.linalg.norm(here))
        nearest = np.argsort(cosines)[-5:]
        picked[n] = fit.shares[nearest.tolist()].mean(0).argmax(1).numpy()

    found = neighbour_dice(fit, test, 5)

    assert found == pytest.approx(share_dice(test.shares, torch.from_numpy(picked)))
    assert neighbour_dice(fit, test, 99) == neighbour_dice(fit, test, 50)


def test_the_constant_share_is_one_for_one_vector_and_near_none_for_noise() -> None:
    vector = torch.arange(1.0, 8.0)
    noise = torch.randn(4000, 7, generator=torch.Generator().manual_seed(0))

    assert constant_share(vector.expand(30, 7)) == pytest.approx(1)
    assert constant_share(noise) < 0.05
    # Mean 3 and deviation 4 in every channel: 3 / sqrt(9 + 16).
    assert constant_share(3 + 4 * noise) == pytest.approx(0.6, abs=0.02)
    assert rms(torch.tensor([3.0, -4.0])) == pytest.approx(np.sqrt(12.5))


def test_places_read_one_position_from_another() -> None:
    places = torch.cartesian_prod(torch.arange(5.0), torch.arange(3.0), torch.arange(4.0))

    found = position_features(places, (places.amin(0), places.amax(0)))

    assert len(found.unique(dim=0)) == 60
    middle = found[(places == torch.tensor([2.0, 1.0, 0.0])).all(dim=1)][0]
    assert middle[:3].tolist() == [0.5, 0.5, 0.0]
    assert middle[3:7].tolist() == pytest.approx([np.sin(0.5 * np.pi * 2**j) for j in range(4)])


def test_large_patches_are_averaged_in_boxes_and_small_ones_left() -> None:
    small = torch.arange(24.0).reshape(1, 24)
    large = torch.rand(3, 2 * 16 * 16 * 16, generator=torch.Generator().manual_seed(0))

    assert voxel_features(small, 1, (4, 3, 2)) is small
    found = voxel_features(large, 2, (16, 16, 16))
    assert found.shape == (3, 2 * 8 * 8 * 8)
    box = large.reshape(3, 2, 16, 16, 16)[1, 1, 2:4, 4:6, 14:16]
    assert float(found.reshape(3, 2, 8, 8, 8)[1, 1, 1, 2, 7]) == pytest.approx(float(box.mean()))


def test_tokens_that_do_not_fit_together_are_refused() -> None:
    part = tokens(10)

    with pytest.raises(ShapeError):
        ProbedTokens(part.features[:9], part.shares, part.subjects)
    with pytest.raises(ShapeError):
        ProbedTokens(part.features, part.shares.flatten(1), part.subjects)
