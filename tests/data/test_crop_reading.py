from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from positions import make_case, value_at
from scipy.ndimage import gaussian_filter, map_coordinates

from mim3d.data import crop_reading
from mim3d.data.augment import rotation
from mim3d.data.classes import IGNORE_INDEX
from mim3d.data.crop_reading import cut_crop
from mim3d.data.crop_warp import crop_to_volume
from mim3d.data.crops import CropPlan
from mim3d.foundation.errors import UserError

SIZE = (11, 13, 7)


# Cutting


def test_a_crop_inside_the_volume_is_the_box_at_its_start():
    case = make_case()

    crop = cut_crop(case, CropPlan("case", (3, 5, 2), SIZE), labels=True)

    box = (slice(3, 14), slice(5, 18), slice(2, 9))
    assert crop.valid is None
    assert crop.voxels.dtype == torch.float32
    np.testing.assert_array_equal(crop.voxels, case.normalise(case.stored[(slice(None), *box)]))
    np.testing.assert_array_equal(crop.labels, case.labels[box])
    np.testing.assert_allclose(crop.voxels, value_at(crop.affine, SIZE), atol=0.0051)


def test_padding_is_zero_invalid_and_ignored():
    case = make_case((9, 30, 20))

    crop = cut_crop(case, CropPlan("case", (-1, 20, -3), SIZE), labels=True)

    expected = np.zeros(SIZE, bool)
    expected[1:10, 0:10, 3:7] = True
    np.testing.assert_array_equal(crop.valid, expected)
    assert (crop.voxels[:, ~crop.valid] == 0).all()
    assert (crop.labels[~crop.valid] == IGNORE_INDEX).all()
    np.testing.assert_array_equal(crop.labels[crop.valid], case.labels[0:9, 20:30, 0:4].ravel())
    inside = value_at(crop.affine, SIZE)[:, expected]
    np.testing.assert_allclose(crop.voxels[:, crop.valid], inside, atol=0.0051)


def test_labels_are_not_read_unless_asked_for():
    case = make_case()

    crop = cut_crop(case, CropPlan("case", (0, 0, 0), SIZE))

    assert crop.labels is None
    assert case.reads == [((0, 0, 0), SIZE, False)]


def test_a_case_without_labels_is_named():
    case = replace(make_case(case_id="liver_7"), labels=None)

    with pytest.raises(UserError, match="`liver_7` has no label map"):
        cut_crop(case, CropPlan("liver_7", (0, 0, 0), SIZE), labels=True)


def test_cutting_never_changes_the_case():
    case = make_case(SIZE)
    before = case.labels.copy(), case.stored.copy()

    crop = cut_crop(case, CropPlan("case", (0, 0, 0), SIZE), labels=True)
    crop.voxels.zero_()

    np.testing.assert_array_equal(case.labels, before[0])
    np.testing.assert_array_equal(case.stored, before[1])


# Warping

WARP = rotation(np.deg2rad([8.0, -11.0, 17.0])) / np.array([1.1, 0.92, 1.05])


@pytest.mark.parametrize("start", [(8, 4, 5), (-4, 12, 8), (24, -5, -2)])
def test_a_warped_crop_shows_at_each_point_what_the_volume_has_there(start):
    case = make_case()

    crop = cut_crop(case, CropPlan("case", start, SIZE), labels=True, warp=WARP)

    voxels = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"), axis=-1)
    to_volume = np.linalg.inv(case.affine) @ crop.affine
    places = voxels @ to_volume[:3, :3].T + to_volume[:3, 3]
    last = np.array(case.shape[1:]) - 1
    between = ((places >= 0) & (places <= last)).all(axis=-1)  # where interpolation is linear
    valid = ((places >= -0.5) & (places <= last + 0.5)).all(axis=-1)
    np.testing.assert_allclose(
        crop.voxels[:, between], value_at(crop.affine, SIZE)[:, between], atol=0.0052
    )
    nearest = np.clip(places.round().astype(int), 0, last)
    labels = np.where(valid, case.labels[tuple(np.moveaxis(nearest, -1, 0))], IGNORE_INDEX)
    # a coordinate in the middle between two voxels may go either way
    assert (crop.labels.numpy() != labels).mean() < 0.002
    np.testing.assert_array_equal(True if crop.valid is None else crop.valid, valid)
    assert (crop.voxels[:, ~torch.from_numpy(valid)] == 0).all()
    assert between.mean() > 0.2


@pytest.mark.parametrize("start", [(9, 5, 5), (-4, 12, 8)])
def test_warped_texture_agrees_with_scipy(start):
    case = make_case()
    case.stored[:] = np.random.default_rng(0).integers(-3000, 3000, case.stored.shape)
    plan = CropPlan("case", start, SIZE)

    crop = cut_crop(case, plan, warp=WARP)

    valid = torch.ones(SIZE) > 0 if crop.valid is None else crop.valid
    matrix = crop_to_volume(case, plan, WARP)
    voxels = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij")).reshape(3, -1)
    places = matrix[:3, :3] @ voxels + matrix[:3, 3:]
    for channel, values in enumerate(case.normalise(case.stored)):
        expected = map_coordinates(values, places, order=1, mode="nearest").reshape(SIZE)
        # float32 coordinates: 1e-5 of a voxel times a step of 60 a voxel
        np.testing.assert_allclose(crop.voxels[channel][valid], expected[valid], atol=2e-3)


@pytest.mark.parametrize("start", [(9, 5, 5), (-4, 12, 8), (24, -5, -2)])
@pytest.mark.parametrize("shape", [(31, 23, 17), (5, 23, 1)])
def test_a_zoom_axis_by_axis_is_the_interpolation_in_three_dimensions(start, shape, monkeypatch):
    case = make_case(shape)
    case.stored[:] = np.random.default_rng(0).integers(-300, 300, case.stored.shape)
    plan, zoom = CropPlan("case", start, SIZE), np.diag([1 / 1.1, 1 / 0.87, 1 / 1.31])

    by_axes = cut_crop(case, plan, labels=True, warp=zoom)
    monkeypatch.setattr(crop_reading, "lines", crop_reading.places)
    monkeypatch.setattr(crop_reading, "stretch", crop_reading.interpolate)
    at_once = cut_crop(case, plan, labels=True, warp=zoom)

    torch.testing.assert_close(by_axes.voxels, at_once.voxels, atol=1e-4, rtol=0)
    assert torch.equal(by_axes.labels, at_once.labels)
    assert (by_axes.valid is None) == (at_once.valid is None)
    assert by_axes.valid is None or torch.equal(by_axes.valid, at_once.valid)


def rescaled(start, size, factors, shape=(60, 50, 40), **kwargs):
    case = make_case(shape, spacing=(1.0, 1.5, 3.0))
    case.stored[:] = np.random.default_rng(0).integers(-3000, 3000, case.stored.shape)
    plan = CropPlan("case", start, size)
    crop = cut_crop(case, plan, warp=np.diag(factors), rescale=factors, **kwargs)
    return case, crop, crop_to_volume(case, plan, np.diag(factors), factors)


@pytest.mark.parametrize("factors", [(2.0, 1.6, 1.0), (0.7, 3.0, 1.3), (0.5, 0.5, 0.5)])
@pytest.mark.parametrize("start", [(0, 5, 30), (22, -3, 11)])
def test_a_crop_of_larger_voxels_is_scipys_gaussian_and_interpolation(start, factors):
    case, crop, matrix = rescaled(start, (21, 11, 9), factors)

    # A voxel of f times the width at half height: 2.355 deviations.
    sigma = [np.sqrt(max(f * f - 1, 0)) / 2.354820045 for f in factors]
    voxels = np.stack(np.meshgrid(*map(np.arange, (21, 11, 9)), indexing="ij")).reshape(3, -1)
    places = matrix[:3, :3] @ voxels + matrix[:3, 3:]
    valid = np.ones((21, 11, 9), bool) if crop.valid is None else crop.valid.numpy()
    for channel, values in enumerate(case.normalise(case.stored).astype(np.float64)):
        total, share = (
            gaussian_filter(x, sigma, mode="constant", truncate=3.0)
            for x in (values, np.ones_like(values))
        )
        expected = map_coordinates(total / share, places, order=1, mode="nearest")
        expected = expected.reshape(21, 11, 9)
        np.testing.assert_allclose(crop.voxels[channel][valid], expected[valid], atol=2e-3)


def test_slices_that_alternate_become_their_mean_and_not_one_of_them():
    case = make_case((30, 30, 40))
    case.stored[:] = 100 * (-1) ** np.arange(40)
    plan = CropPlan("case", (4, 4, 14), (9, 8, 7))
    factors = (1.0, 1.0, 4.0)

    smooth = cut_crop(case, plan, warp=np.diag(factors), rescale=factors)
    aliased = cut_crop(case, plan, warp=np.diag(factors))

    assert float(smooth.voxels.abs().max()) < 0.01
    assert float(aliased.voxels.abs().min()) > 0.99


@pytest.mark.parametrize("start", [(0, 0, 0), (39, 39, 31), (17, 20, 14)])
def test_a_crop_read_at_another_scale_stays_in_the_volume_where_it_fits(start):
    size, shape = (21, 11, 9), (60, 50, 40)
    for factors in [(2.0, 2.0, 2.0), (2.8, 4.5, 4.4), (0.5, 0.8, 0.3)]:
        _, crop, matrix = rescaled(start, size, factors)

        assert crop.valid is None
        edges = np.array([-0.5 * np.ones(3), np.array(size) - 0.5])
        low, high = edges * np.diag(matrix)[:3] + matrix[:3, 3]
        assert (low >= -0.5 - 1e-9).all()
        assert (high <= np.array(shape) - 0.5 + 1e-9).all()
        # What it was drawn around, it still shows.
        middle = np.array(start) + (np.array(size) - 1) / 2
        assert ((low <= middle) & (middle <= high)).all()


def test_a_crop_larger_than_the_volume_shows_all_of_it():
    _, crop, _ = rescaled((0, 39, 3), (21, 11, 9), (4.0, 6.0, 5.0))

    places = np.argwhere(crop.valid.numpy())
    seen = (np.ptp(places, axis=0) + 1) * (4.0, 6.0, 5.0)
    assert (np.abs(seen - (60, 50, 40)) <= (4.0, 6.0, 5.0)).all()


def test_what_lay_beyond_the_volume_by_the_plan_still_may():
    inside, beyond = (
        rescaled(start, (21, 11, 9), (1.5, 1.5, 1.5))[1] for start in ((0, 0, 0), (-6, 0, 0))
    )

    assert inside.valid is None
    assert 0 < int((~beyond.valid).sum()) <= 4 * 11 * 9


def test_an_identity_warp_changes_nothing():
    case = make_case()
    plan = CropPlan("case", (-3, 6, 12), SIZE)

    plain, warped = (
        cut_crop(case, plan, labels=True),
        cut_crop(case, plan, labels=True, warp=np.eye(3)),
    )

    torch.testing.assert_close(warped.voxels, plain.voxels, atol=2e-4, rtol=0)
    assert torch.equal(warped.labels, plain.labels)
    assert torch.equal(warped.valid, plain.valid)
    np.testing.assert_allclose(warped.affine, plain.affine)


def test_a_rotation_keeps_distances_in_millimetres_and_the_spacing():
    case = make_case(spacing=(0.8, 1.3, 4.0))

    crop = cut_crop(case, CropPlan("case", (5, 5, 5), SIZE), warp=rotation([0.3, 0.2, 0.5]))

    gram = crop.affine[:3, :3].T @ crop.affine[:3, :3]
    np.testing.assert_allclose(gram, np.diag([0.8**2, 1.3**2, 4.0**2]), atol=1e-12)


def test_corners_of_a_rotated_crop_inside_the_volume_are_no_padding():
    case = make_case((40, 40, 40), spacing=(1, 1, 1))

    crop = cut_crop(case, CropPlan("case", (14, 14, 16), SIZE), warp=rotation([0.4, 0.4, 0.4]))

    assert crop.valid is None
    assert (crop.voxels != 0).all()


def test_a_small_volume_in_the_corner_of_a_crop_stays_in_sight_under_a_warp():
    case = make_case((5, 6, 4), spacing=(1, 1, 1))
    plan = CropPlan("case", (-43, -50, -28), (48, 56, 32))

    crop = cut_crop(case, plan, warp=rotation(np.deg2rad([30.0, 30.0, 30.0])))

    assert crop.valid is not None
    assert int(crop.valid.sum()) > 0.5 * 5 * 6 * 4
