from __future__ import annotations

import numpy as np
import pytest

from mim3d.data.body import Air, body_box, body_mask, find_air

SHAPE = (48, 40, 30)


def _ball() -> np.ndarray:
    """An ellipsoid off the middle, inside the volume on all sides."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    return ((x - 0.1) / 0.6) ** 2 + (y / 0.7) ** 2 + ((z + 0.1) / 0.65) ** 2 <= 1


def _tissue(random: np.random.Generator) -> np.ndarray:
    return 600 + 120 * random.standard_normal(SHAPE)


def test_ct_is_body_above_minus_500():
    random = np.random.default_rng(0)
    ct = np.where(_ball(), 40 + 20 * random.standard_normal(SHAPE), -1000).astype(np.int16)

    assert (find_air(ct, "ct").body(ct) == _ball()).all()


@pytest.mark.parametrize("background", [0, -1024, 7])
def test_an_exact_background_is_air_whatever_its_value(background):
    random = np.random.default_rng(1)
    mr = np.where(_ball(), background + _tissue(random), background)

    air = find_air(mr, "mr")

    assert air == Air(background)
    assert (air.body(mr) == _ball()).all()


def test_small_negative_values_of_interpolation_are_air_too():
    random = np.random.default_rng(2)
    mr = np.where(_ball(), _tissue(random), 0.0)
    edge = random.random(SHAPE) < 0.01
    mr[edge & ~_ball()] = -3.0

    assert (find_air(mr, "mr").body(mr) == _ball()).all()


@pytest.mark.parametrize("snr", [12, 25, 80])
@pytest.mark.parametrize("fat", [False, True])
def test_noise_around_a_body_is_air(snr, fat):
    """Rician noise; with fat, the first of Otsu's thresholds lies between tissues."""
    random = np.random.default_rng(snr)
    signal = np.where(_ball(), _tissue(random), 0.0)
    if fat:
        signal[_ball() & (np.arange(SHAPE[1])[None, :, None] > 22)] *= 3
    noise = 600 / snr * random.standard_normal((2, *SHAPE))
    mr = np.rint(np.hypot(signal + noise[0], noise[1])).astype(np.int16)

    air = find_air(mr, "mr")
    body = air.body(mr)

    assert air.noisy
    assert body[_ball()].mean() > 0.98
    assert body[~_ball()].mean() < 0.02


def test_a_crop_inside_the_head_is_all_body():
    random = np.random.default_rng(3)
    crop = np.where(_ball(), _tissue(random), 260 + 80 * random.standard_normal(SHAPE))

    assert find_air(crop.astype(np.uint16), "mr") == Air(None)


def test_a_few_voxels_clipped_at_zero_are_no_background():
    random = np.random.default_rng(4)
    crop = np.clip(_tissue(random), 380, None) - 380  # about 3 % at zero

    assert 0.01 < (crop == 0).mean() < 0.05
    assert find_air(crop, "mr").threshold is None


def test_the_box_of_a_noisy_body_ignores_specks():
    """Caught: without means of blocks the box is the whole volume."""
    random = np.random.default_rng(5)
    noise = 30 * random.standard_normal((2, *SHAPE))
    mr = np.hypot(np.where(_ball(), _tissue(random), 0.0) + noise[0], noise[1])[None]
    airs = (find_air(mr[0], "mr"),)

    box = body_box(mr, airs)

    specks = airs[0].body(mr[0]) & ~_ball()
    assert specks.any()
    for axis, side in enumerate(box):
        true = np.flatnonzero(_ball().any(axis=tuple(a for a in range(3) if a != axis)))
        assert side.start <= true[0]
        assert side.stop > true[-1]
        assert side.stop - side.start < true[-1] - true[0] + 18


def test_the_box_of_an_exact_body_is_tight_and_holds_all_channels():
    two = np.zeros((2, *SHAPE))
    two[0, 5:20, 6:11, 7:9] = 100 + np.arange(15 * 5 * 2).reshape(15, 5, 2)
    two[1, 18:30, 2:8, 20:29] = 50 + np.arange(12 * 6 * 9).reshape(12, 6, 9)
    airs = (Air(0.0), Air(0.0))

    assert body_box(two, airs) == (slice(5, 30), slice(2, 11), slice(7, 29))
    assert (body_mask(two, airs) == (two > 0).any(axis=0)).all()


def test_a_volume_without_body_has_an_empty_box():
    assert all(s.start == s.stop for s in body_box(np.full((1, 4, 5, 6), -1000), (Air(-500),)))


def test_voxels_that_are_not_finite_are_no_body():
    volume = np.ones((3, 4, 5))
    volume[0, 0, 0] = np.nan
    volume[1, 1, 1] = np.inf

    assert Air(None).body(volume).sum() == 58
    assert Air(0.0).body(volume).sum() == 58


def test_the_threshold_does_not_depend_on_the_order_in_memory():
    random = np.random.default_rng(6)
    big = np.abs(random.standard_normal((120, 90, 70)))
    big[20:100, 10:80, 5:65] += 40

    assert find_air(big, "mr") == find_air(np.asfortranarray(big), "mr")


@pytest.mark.parametrize("value", [1e6, -1e6])
@pytest.mark.parametrize("share", [1e-4, 4e-3])
def test_a_few_voxels_far_away_do_not_move_the_threshold(value, share):
    """Caught: with the smallest value as the low end of the histogram, all but it was body."""
    random = np.random.default_rng(0)
    noise = np.hypot(*(8 * random.standard_normal((2, *SHAPE))))
    mr = np.where(_ball(), _tissue(random), noise)
    expected = find_air(mr, "mr")

    spoilt = mr.copy()
    places = random.choice(mr.size, int(share * mr.size), replace=False)
    spoilt.reshape(-1)[places] = value

    assert find_air(spoilt, "mr").threshold == pytest.approx(expected.threshold, rel=0.02)
