from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from positions import make_case

from mim3d.config.data import DataConfig
from mim3d.data.crop_reading import cut_crop
from mim3d.data.crop_starts import grid_starts, start_range
from mim3d.data.crops import CropPlan
from mim3d.data.sampling import FIXED_STEP, SamplingPlan
from mim3d.foundation.errors import ConfigError

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
