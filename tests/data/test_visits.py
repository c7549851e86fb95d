from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from positions import make_case

from mim3d.config.data import DataConfig
from mim3d.data.sampling import FIXED_STEP, SamplingPlan
from mim3d.data.visits import Visit, VisitPlan
from mim3d.foundation.errors import ConfigError

# cases, window, crops a visit, batch
PLANS = [(7, 3, 5, 4), (12, 4, 6, 8), (9, 8, 2, 4), (5, 5, 3, 1), (10, 6, 1, 9), (6, 1, 4, 3)]
STEPS = 60


def drawn(plan: VisitPlan, batch_size: int, steps: int = STEPS) -> list[list[Visit]]:
    return [[plan.visit(step, index) for index in range(batch_size)] for step in range(steps)]


@pytest.mark.parametrize(("cases", "window", "most", "batch_size"), PLANS)
def test_a_visit_gives_at_most_so_many_crops_and_all_but_the_first_give_exactly_those(
    cases, window, most, batch_size
):
    plan = VisitPlan(cases, window, most, batch_size, seed=3)

    counts = Counter(visit for step in drawn(plan, batch_size) for visit in step)

    newest = {slot: max(v.number for v in counts if v.slot == slot) for slot in range(window)}
    assert set(newest) == {visit.slot for visit in counts}
    for visit, count in counts.items():
        assert count <= most
        if 0 < visit.number < newest[visit.slot]:
            assert count == most


@pytest.mark.parametrize(("cases", "window", "most", "batch_size"), PLANS)
def test_every_case_is_visited_equally_often_in_every_pass(cases, window, most, batch_size):
    plan = VisitPlan(cases, window, most, batch_size, seed=3)

    # The queue in the order of its places.
    queue = [plan.case(Visit(place % window, place // window)) for place in range(4 * cases)]

    passes = [queue[first : first + cases] for first in range(0, 4 * cases, cases)]
    assert all(sorted(one) == list(range(cases)) for one in passes)
    assert cases < 5 or len(set(map(tuple, passes))) == 4


@pytest.mark.parametrize(("cases", "window", "most", "batch_size"), PLANS)
def test_a_visit_lasts_from_its_first_to_its_last_crop_and_few_are_alive(
    cases, window, most, batch_size
):
    plan = VisitPlan(cases, window, most, batch_size, seed=1)
    steps = drawn(plan, batch_size)
    spans: dict[Visit, list[int]] = defaultdict(list)
    for step, visits in enumerate(steps):
        for visit in visits:
            spans[visit].append(step)

    for visit, seen in spans.items():
        last = plan.last_step(visit)
        assert last >= seen[-1]
        if last < STEPS and visit.number > 0:
            assert last - seen[-1] <= 1 + window // batch_size
    for ahead in (1, 2, 5):
        for step in range(STEPS - ahead):
            alive = [
                v for v, s in spans.items() if s[0] < step + ahead and plan.last_step(v) >= step
            ]
            assert len(alive) <= plan.largest_need(ahead, range(batch_size))


def test_cases_come_and_go_evenly():
    plan = VisitPlan(cases=40, window=16, most=32, batch_size=8, seed=0)
    begins: dict[Visit, int] = {}

    for step, visits in enumerate(drawn(plan, 8, 400)):
        for visit in visits:
            begins.setdefault(visit, step)

    later = Counter(step for visit, step in begins.items() if visit.number > 0)
    # 8 crops a step at 32 crops a visit: one new case every fourth step
    assert sum(later.values()) == pytest.approx(400 * 8 / 32, abs=16)
    assert max(later.values()) <= 2


def test_devices_that_share_a_batch_need_disjoint_shares_of_the_window():
    plan = VisitPlan(cases=20, window=12, most=6, batch_size=8, seed=0)

    shares = [
        {plan.visit(step, index).slot for step in range(50) for index in range(first, first + 2)}
        for first in range(0, 8, 2)
    ]

    assert [len(slots) for slots in shares] == [3, 3, 3, 3]
    assert set.union(*shares) == set(range(12))
    assert plan.largest_need(1, range(2)) <= 3 + 2


def test_the_mix_of_a_step_changes_with_seed_and_step():
    one, other = (VisitPlan(30, 12, 10, 4, seed) for seed in (0, 1))

    assert drawn(one, 4) == drawn(VisitPlan(30, 12, 10, 4, 0), 4)
    assert drawn(one, 4) != drawn(other, 4)
    assert len({tuple(v.slot for v in step) for step in drawn(one, 4)}) > 10


# In the sampling plan


def plan_of(cases=9, batch_size=4, **config) -> SamplingPlan:
    case, names = make_case(), [f"c{i}" for i in range(cases)]
    data = DataConfig(crop_size=(11, 13, 7), **config)
    return SamplingPlan(names, data, seed=5, batch_size=batch_size, open_case=lambda _: case)


def test_the_plan_draws_the_case_of_its_visit_and_the_place_of_any_plan():
    windowed, free = plan_of(window_cases=4, max_crops_per_visit=6), plan_of()

    for step in range(20):
        for index in range(4):
            visit = windowed.visit(step, index)
            assert windowed.case_id(step, index) == windowed.case_of(visit)
            # one case here, so places alone are compared
            assert windowed.draw(step, index).start == free.draw(step, index).start


def test_without_a_window_a_case_has_one_visit_and_the_sequence_is_that_of_shuffled_passes():
    plan = plan_of()

    seen = [plan.visit(step, index) for step in range(9) for index in range(4)]

    assert {visit.number for visit in seen} == {0}
    for first in range(0, 36, 9):
        assert sorted(visit.slot for visit in seen[first : first + 9]) == list(range(9))


def test_fixed_crops_do_not_know_the_window():
    windowed, free = plan_of(window_cases=4, max_crops_per_visit=6), plan_of()

    for index in range(20):
        assert windowed.case_id(FIXED_STEP, index) == free.case_id(FIXED_STEP, index)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"window_cases": 3}, "`data.window_cases` needs `data.max_crops_per_visit`"),
        ({"max_crops_per_visit": 3}, "`data.max_crops_per_visit` needs `data.window_cases`"),
        ({"window_cases": 10, "max_crops_per_visit": 3}, "between 1 and the number of cases, 9"),
        ({"window_cases": 0, "max_crops_per_visit": 3}, "between 1 and"),
        ({"window_cases": 3, "max_crops_per_visit": 0}, "at least 1, not 0"),
    ],
)
def test_windows_that_cannot_be_are_refused(config, why):
    with pytest.raises(ConfigError, match=why):
        plan_of(**config)
