from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from positions import make_case, value_at
from scipy.ndimage import gaussian_filter, map_coordinates

from mim3d.config.sections import DataConfig
from mim3d.data import crops as crops_module
from mim3d.data.augment import rotation
from mim3d.data.batch import IGNORE_INDEX
from mim3d.data.crops import (
    FIXED_STEP,
    CropPlan,
    SamplingPlan,
    crop_to_volume,
    cut_crop,
    grid_starts,
    start_range,
)
from mim3d.foundation.errors import ConfigError, UserError

SIZE = (11, 13, 7)


def plan_of(case, cases=("case",), seed=0, batch_size=4, min_overlap=1.0, **config) -> SamplingPlan:
    return SamplingPlan(
        cases,
        DataConfig(**{"crop_size": SIZE, **config}),
        seed=seed,
        batch_size=batch_size,
        open_case=lambda _: case,
        min_overlap=min_overlap,
    )


def starts(plan: SamplingPlan, count: int) -> np.ndarray:
    return np.array([plan.draw(step, 0).start for step in range(count)])


# Which case


def test_every_case_is_seen_equally_often_in_every_pass():
    names = [f"c{i}" for i in range(7)]
    plan = plan_of(make_case(), names, batch_size=3)

    seen = [plan.case_id(step, index) for step in range(14) for index in range(3)]

    passes = [tuple(seen[first : first + 7]) for first in range(0, 42, 7)]
    assert all(sorted(one) == names for one in passes)
    assert len(set(passes)) > 1


def test_cases_follow_from_the_global_sample_number_alone():
    names = [f"c{i}" for i in range(5)]
    small, large = (plan_of(make_case(), names, batch_size=n) for n in (2, 6))

    by_two = [small.case_id(step, index) for step in range(9) for index in range(2)]
    by_six = [large.case_id(step, index) for step in range(3) for index in range(6)]

    assert by_two == by_six


def test_order_of_the_cohort_does_not_matter_but_the_seed_does():
    names = [f"c{i}" for i in range(9)]

    def sequence(cases, seed):
        plan = plan_of(make_case(), cases, seed)
        return [plan.draw(step, index) for step in range(9) for index in range(4)]

    assert sequence(names, 0) == sequence(names[::-1], 0)
    assert sequence(names, 0) != sequence(names, 1)


def test_fixed_crops_go_through_all_cases_too():
    names = [f"c{i}" for i in range(6)]
    plan = plan_of(make_case(), names, batch_size=4)

    seen = [plan.case_id(FIXED_STEP, index) for index in range(12)]

    assert Counter(seen) == dict.fromkeys(names, 2)


# Which place


@pytest.mark.parametrize(
    ("shape", "overhang", "low", "high"),
    [
        ((31, 23, 17), (0, 0, 0), (0, 0, 0), (20, 10, 10)),
        ((31, 23, 17), (2, 0, 3), (-2, 0, -3), (22, 10, 13)),
        # smaller than the crop: the volume may lie anywhere in it
        ((9, 13, 4), (0, 0, 0), (-2, 0, -3), (0, 0, 0)),
        # at least half of the smaller of both stays in sight: reach 9 // 2, 13 // 2, 4 // 2
        ((9, 13, 4), (50, 50, 50), (-6, -6, -5), (4, 6, 2)),
    ],
)
def test_uniform_starts_fill_their_range_evenly(shape, overhang, low, high):
    plan = plan_of(make_case(shape), overhang=overhang)
    drawn = starts(plan, 3000)

    first, last = start_range(shape, SIZE, overhang)
    assert tuple(first) == low
    assert tuple(last) == high
    for axis in range(3):
        values, counts = np.unique(drawn[:, axis], return_counts=True)
        assert values.tolist() == list(range(low[axis], high[axis] + 1))
        expected = 3000 / len(values)
        assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_crops_around_labels_show_their_class_and_classes_come_equally_often():
    case = make_case()
    case.labels[:] = 0
    case.labels[2:20, 3:20, 2:15] = 1
    case.labels[5, 6, 7] = 3  # a structure of one voxel
    plan = plan_of(case, placement="label", label_share=0.75)

    drawn = [plan.draw(step, 0) for step in range(2000)]

    classes = Counter(crop.centre_class for crop in drawn)
    assert set(classes) == {None, 1, 3}
    for name, share in ((None, 0.25), (1, 0.375), (3, 0.375)):
        assert classes[name] / 2000 == pytest.approx(share, abs=0.04)
    for crop in drawn[:200]:
        if crop.centre_class is not None:
            labels = cut_crop(case, crop, labels=True).labels
            assert (labels == crop.centre_class).any()


def test_a_case_without_foreground_is_seen_anywhere():
    case = make_case()
    case.labels[:] = 0
    plan = plan_of(case, placement="label", label_share=1.0)

    assert len({tuple(start) for start in starts(plan, 50)}) > 25


def test_crops_around_the_body_hold_a_voxel_of_it_and_stay_in_range():
    case = make_case()
    case.stored[:] = 0
    case.stored[:, 28:, 20:, 1:3] = 900
    plan = plan_of(case, placement="body")

    for step in range(50):
        crop = plan.draw(step, 0)
        assert (cut_crop(case, crop).voxels == 9).any()
        assert all(0 <= s <= n - k for s, n, k in zip(crop.start, (31, 23, 17), SIZE, strict=True))


# Places of further views


def shared_voxels(one: CropPlan, other: CropPlan) -> int:
    """Voxels of the volume, or of the padding around it, that both crops hold: counted."""
    boxes = [
        np.stack(np.meshgrid(*(s + np.arange(n) for s, n in zip(c.start, c.size, strict=True))))
        for c in (one, other)
    ]
    places = [set(map(tuple, box.reshape(3, -1).T.tolist())) for box in boxes]
    return len(places[0] & places[1])


PLACEMENTS = {
    "uniform": {},
    "overhang": {"overhang": (4, 3, 2)},
    "body": {"placement": "body", "overhang": (2, 2, 2)},
    "label": {"placement": "label", "label_share": 0.8},
    "grid": {"origin_grid": (4, 2, 3)},
}


@pytest.mark.parametrize("shape", [(31, 23, 17), (9, 26, 5)])
@pytest.mark.parametrize("min_overlap", [0.3, 0.75])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_further_view_shares_enough_voxels_and_lies_where_a_crop_may(
    placement, min_overlap, shape
):
    case, config = make_case(shape), PLACEMENTS[placement]
    plan = plan_of(case, min_overlap=min_overlap, **config)
    low, high = start_range(shape, SIZE, config.get("overhang", (0, 0, 0)))
    different = 0

    for step in range(60):
        first, *others = (plan.draw(step, 1, view) for view in range(3))
        assert first == plan_of(case, **config).draw(step, 1)
        for other in others:
            assert shared_voxels(first, other) >= min_overlap * np.prod(SIZE)
            assert (low <= np.array(other.start)).all()
            assert (np.array(other.start) <= high).all()
            assert other.case_id == first.case_id
            assert other.size == SIZE
            different += other.start != first.start
            if placement == "grid":
                grid = config["origin_grid"]
                for axis in range(3):
                    starts = grid_starts(shape[axis], SIZE[axis], low[axis], high[axis], grid[axis])
                    assert other.start[axis] in starts
    assert different > 60


def test_places_of_views_reach_down_to_the_least_overlap_and_follow_from_their_keys():
    plan = plan_of(make_case((60, 60, 60)), min_overlap=0.4)

    pairs = [(plan.draw(step, 2), plan.draw(step, 2, 1)) for step in range(300)]

    shares = [shared_voxels(*pair) / np.prod(SIZE) for pair in pairs]
    assert min(shares) < 0.45
    assert max(shares) > 0.8
    again = plan_of(make_case((60, 60, 60)), min_overlap=0.4)
    assert [again.draw(step, 2, 1) for step in range(300)] == [other for _, other in pairs]
    other_seed = plan_of(make_case((60, 60, 60)), seed=1, min_overlap=0.4)
    assert [other_seed.draw(step, 2, 1) for step in range(300)] != [other for _, other in pairs]


def test_views_of_one_crop_and_of_fixed_crops_have_places_of_their_own():
    plan = plan_of(make_case((60, 60, 60)), min_overlap=0.4)

    for step in (FIXED_STEP, 3):
        assert len({plan.draw(step, 0, view).start for view in range(6)}) == 6


def test_at_full_overlap_every_view_is_the_same_crop():
    plan = plan_of(make_case(), placement="label")

    assert all(plan.draw(step, 0, 1) == plan.draw(step, 0) for step in range(30))


@pytest.mark.parametrize(
    ("min_overlap", "config", "why"),
    [
        (1.2, {}, "must lie between 0 and 1, not 1.2"),
        (-0.1, {}, "must lie between 0 and 1, not -0.1"),
        (float("nan"), {}, "must lie between 0 and 1, not nan"),
        (0.5, {"origin_grid": 16}, "wider than the 6 voxels by which views may differ"),
    ],
)
def test_overlaps_that_cannot_be_are_refused(min_overlap, config, why):
    with pytest.raises(ConfigError, match=why):
        plan_of(make_case(), min_overlap=min_overlap, **config)


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
    monkeypatch.setattr(crops_module, "lines", crops_module.places)
    monkeypatch.setattr(crops_module, "stretch", crops_module.interpolate)
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


# The grid of origins


def test_starts_lie_on_the_grid_or_at_the_faces_and_every_one_comes_equally_often():
    plan = plan_of(make_case((48, 23, 17)), origin_grid=(8, 4, 1))

    drawn = starts(plan, 3000)

    expected = ([0, 8, 16, 24, 32, 37], [0, 4, 8, 10], list(range(11)))
    for axis in range(3):
        values, counts = np.unique(drawn[:, axis], return_counts=True)
        assert values.tolist() == expected[axis]
        share = 3000 / len(values)
        assert np.abs(counts - share).max() < 5 * np.sqrt(share)


def test_a_crop_on_the_grid_of_chunks_touches_the_fewest_of_them():
    plan = plan_of(make_case((96, 64, 32)), crop_size=(32, 32, 32), origin_grid=32)

    assert (starts(plan, 100) % 32 == 0).all()


def test_where_the_crop_holds_the_volume_or_reaches_beyond_it_starts_are_as_without_a_grid():
    assert grid_starts(9, 11, -4, 2, 8).tolist() == list(range(-4, 3))
    assert grid_starts(30, 11, -3, 22, 8).tolist() == [-3, 0, 8, 16, 22]
    assert grid_starts(11, 11, 0, 0, 8).tolist() == [0]


def test_every_voxel_of_a_volume_can_be_seen_on_a_grid():
    for shape in range(11, 60):
        found = grid_starts(shape, 11, 0, shape - 11, 8)
        assert (np.diff(found) <= 8).all()
        assert found[0] == 0
        assert found[-1] + 11 == shape


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"origin_grid": 0}, "must be positive"),
        ({"origin_grid": (8, -1, 8)}, "must be positive"),
        ({"origin_grid": 8, "placement": "body"}, "needs `data.placement uniform`"),
    ],
)
def test_grids_that_cannot_be_are_refused(config, why):
    with pytest.raises(ConfigError, match=why):
        plan_of(make_case(), **config)
