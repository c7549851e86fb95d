from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mim3d.data.body import Air, find_air
from mim3d.data.intensity import Normalisation, infer_modality, measure

WINDOW = (-175.0, 250.0)
CLIP = (0.5, 99.5)


def _mr(seed: int = 0) -> np.ndarray:
    """A brain in exact zeros: three tissues, off the middle."""
    random = np.random.default_rng(seed)
    volume = np.zeros((33, 29, 21))
    volume[4:30, 3:25, 2:18] = random.choice([200, 500, 800], (26, 22, 16))
    return np.where(volume > 0, volume + 40 * random.standard_normal(volume.shape), 0)


def test_a_ct_window_becomes_zero_to_one():
    ct = np.array([-1000, -175, -68.75, 37.5, 250, 3000], np.float32)
    rule = Normalisation("window", *WINDOW)

    assert rule.apply(ct).tolist() == [0, 0, 0.25, 0.5, 1, 1]
    assert rule.invert(rule.apply(ct))[1:5] == pytest.approx(ct[1:5])


def test_mr_is_clipped_to_percentiles_of_the_body_then_standardised_over_it():
    """Against the formula written out; caught: statistics over air."""
    volume = _mr()
    body = volume[volume > 0]

    rule = measure(volume, find_air(volume, "mr"), "mr", WINDOW, CLIP)

    low, high = np.percentile(body, CLIP)
    clipped = body.clip(low, high)
    assert rule.low == pytest.approx(low)
    assert rule.high == pytest.approx(high)
    assert rule.mean == pytest.approx(clipped.mean())
    assert rule.deviation == pytest.approx(clipped.std())
    normalised = rule.apply(volume)[volume > 0]
    assert abs(normalised.mean()) < 1e-4
    assert normalised.std() == pytest.approx(1, abs=1e-4)


def test_tensors_and_arrays_are_normalised_alike_and_left_as_they_were():
    volume = _mr().astype(np.int16)
    rule = measure(volume, Air(0.0), "mr", WINDOW, CLIP)
    before = volume.copy()

    array = rule.apply(volume)
    tensor = rule.apply(torch.from_numpy(volume))

    assert array.dtype == np.float32
    assert tensor.dtype == torch.float32
    assert (tensor.numpy() == array).all()
    assert (volume == before).all()
    same = array.copy()
    rule.apply(same)
    assert (same == array).all()


@pytest.mark.parametrize("share", [0.0005, 0.002, 0.004])
@pytest.mark.parametrize("value", [1e6, 1e9])
def test_a_few_outliers_change_the_normalised_body_by_less_than_one_percent(share, value):
    """Caught: without leaving spikes out, the clip limits move."""
    clean = _mr()
    random = np.random.default_rng(7)
    hit = (random.random(clean.shape) < share) & (clean > 0)
    dirty = np.where(hit, value, clean)
    kept = (clean > 0) & ~hit

    rules = [measure(v, find_air(v, "mr"), "mr", WINDOW, CLIP) for v in (clean, dirty)]

    change = np.abs(rules[1].apply(dirty)[kept] - rules[0].apply(clean)[kept])
    assert change.max() < 0.01


@pytest.mark.parametrize("share", [0.01, 0.2, 0.4])
def test_statistics_with_voxels_that_are_not_finite_equal_those_without(share):
    random = np.random.default_rng(8)
    volume = 300 + 50 * random.standard_normal((19, 17, 11))
    broken = volume.copy()
    holes = random.random(volume.shape) < share
    broken[holes] = random.choice([np.nan, np.inf, -np.inf], int(holes.sum()))

    with_holes = measure(broken, Air(None), "mr", WINDOW, CLIP)
    without = measure(volume[~holes].reshape(-1, 1, 1), Air(None), "mr", WINDOW, CLIP)

    assert with_holes == without


@pytest.mark.parametrize("kind", [np.int16, np.uint16, np.uint8])
@pytest.mark.parametrize("threshold", [None, 40.0])
def test_counted_integers_have_the_statistics_of_all_their_voxels(kind, threshold):
    """Against percentiles and moments written out; two spikes take no part on either way."""
    volume = (_mr().clip(0, 1100) / 5).round()
    volume[7, 8, 9] = volume[7, 9, 9] = np.iinfo(kind).max if kind != np.uint8 else 255
    stored = np.asfortranarray(volume.astype(kind))
    air = Air(threshold)

    rule = measure(stored, air, "mr", WINDOW, CLIP)

    slow = measure(stored.astype(np.float64), air, "mr", WINDOW, CLIP)
    for name in ("low", "high", "mean", "deviation"):
        assert getattr(rule, name) == pytest.approx(getattr(slow, name), rel=1e-9)
    body = volume[volume > (-1 if threshold is None else threshold)]
    body = body[body < 1000] if kind != np.uint8 else body
    assert (rule.low, rule.high) == pytest.approx(np.percentile(body, CLIP).tolist())
    assert rule.deviation == pytest.approx(body.clip(rule.low, rule.high).std())


def test_the_order_in_memory_changes_no_statistics(monkeypatch):
    monkeypatch.setattr("mim3d.data.intensity.STATISTICS_SAMPLE", 500)
    volume = _mr()
    air = find_air(volume, "mr")

    straight = measure(volume, air, "mr", WINDOW, CLIP)

    assert measure(np.asfortranarray(volume), air, "mr", WINDOW, CLIP) == straight


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_a_constant_or_empty_body_has_no_normalisation(modality):
    assert measure(np.full((5, 6, 7), 3), Air(None), modality, WINDOW, CLIP) is None
    assert measure(np.full((5, 6, 7), -1000), Air(-500), modality, WINDOW, CLIP) is None


def test_air_lies_below_its_normalised_level_and_body_above():
    volume = _mr()
    rule = measure(volume, find_air(volume, "mr"), "mr", WINDOW, CLIP)

    below = rule.apply(volume) < rule.air_normalised

    assert below[volume <= 0].all()
    # The clipped half percent of the body cannot be told from air any more.
    assert below[volume > 0].mean() < 0.006


def test_air_that_a_window_clips_away_is_its_low_end():
    ct = np.array([-1000.0, -500, -176, -100, 40], np.float32)
    narrow = Normalisation("window", *WINDOW, air=-500.0)
    wide = narrow.with_window(-1000, 1000)

    assert (narrow.apply(ct) < narrow.air_normalised).tolist() == [True, True, True, False, False]
    assert (wide.apply(ct) < wide.air_normalised).tolist() == [True, True, False, False, False]
    assert Normalisation("window", 0, 1).air_normalised is None


def test_a_normalisation_survives_json():
    rule = Normalisation("zscore", 1.1, 2.2, 1.7, 0.123456789012345, None)

    assert Normalisation.from_json(json.loads(json.dumps(rule.as_json()))) == rule


def test_modality_follows_from_the_smallest_value():
    assert infer_modality(np.array([-501, 30])) == "ct"
    assert infer_modality(np.array([-499.0, 30, np.nan])) == "other"


@pytest.mark.parametrize(
    "rule",
    [
        Normalisation("window", -1000.0, 1000.0),
        Normalisation("window", 0.0, 1.0),
        Normalisation("zscore", -3.7, 812.3, 101.7, 33.3),
    ],
)
def test_normalising_in_place_gives_the_same_bits(rule):
    values = np.random.default_rng(0).normal(100, 900, (11, 13, 7)).astype(np.float32)
    # the formula, one array a step
    expected = (values.clip(rule.low, rule.high) - np.float32(rule.shift)) / np.float32(rule.width)

    np.testing.assert_array_equal(rule.apply(values), expected)
    rule.apply_in_place(values)

    np.testing.assert_array_equal(values, expected)
