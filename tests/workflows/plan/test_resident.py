"""What a resident feed takes, beside the rules that it reserves by and numbers by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from mim3d.config.data import DataConfig
from mim3d.data.feed import share
from mim3d.data.room import AHEAD, RESERVE
from mim3d.data.workers import SLOTS
from mim3d.foundation.errors import ConfigError
from mim3d.workflows.plan.arithmetic import Cohort
from mim3d.workflows.plan.resident import Resident, free_gb

COHORT = Cohort(
    volumes=100,
    volume_shape=(10, 12, 20),
    channels=2,
    crop_size=(5, 6, 10),
    origin_grid=None,
    compression=2.0,
)
DATA = DataConfig(feed="resident", window_cases=24, max_crops_per_visit=30)
FEED = Resident(COHORT, DATA, batch_size=16, seed=3, devices=4, is_on_device=True)
WHOLE = replace(FEED, data=DataConfig(feed="resident"))
VOXELS = 10 * 12 * 20


def window(feed: Resident = FEED, count: int = 24, most: int = 30) -> Resident:
    return replace(feed, data=replace(feed.data, window_cases=count, max_crops_per_visit=most))


def test_without_a_window_each_device_keeps_the_whole_cohort() -> None:
    cohort = replace(COHORT, known_sizes=(100, 300))
    labelled = replace(WHOLE, cohort=replace(cohort, has_labels=True))

    found = replace(WHOLE, cohort=cohort).reserve(None, 50 * 400 * 4)

    assert (found.bytes, found.fits) == (50 * 400 * 4, True)
    assert not replace(WHOLE, cohort=cohort).reserve(None, 50 * 400 * 4 - 1).fits
    assert labelled.reserve(None, None).bytes == 50 * 400 * 5


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("is_on_device", [True, False])
def test_a_window_takes_what_the_worst_device_draws_from_in_the_steps_under_way(
    workers: int, is_on_device: bool
) -> None:
    """Counted by asking the sampling plan for the visits of consecutive steps, rank by rank."""
    feed = window(count=24, most=7)
    feed = replace(feed, data=replace(feed.data, workers=workers), is_on_device=is_on_device)
    visits = feed.visits()
    assert visits is not None
    steps = SLOTS * workers + 1 if workers and not is_on_device else 1
    most, slots = 0, set()
    for rank in range(4):
        (part,) = share(16, rank, 4, 1)
        for first in range(60):
            seen = {visits.visit(step, i) for step in range(first, first + steps) for i in part}
            slots |= {visit.slot for visit in seen if rank == 0}
            most = max(most, len(seen))

    # A slot that nobody asks for in a step holds a volume all the same.
    assert most <= feed.need(visits) <= 24
    assert feed.need(visits) >= len(slots) == feed.slots(visits) == 6
    assert feed.reserve(visits, None).places == feed.need(visits) + AHEAD


def test_a_slot_is_as_large_as_the_largest_volume_and_what_is_read_ahead_is_extra() -> None:
    feed = replace(FEED, cohort=replace(COHORT, known_sizes=(100, 300)))
    visits = feed.visits()
    assert visits is not None
    need = feed.need(visits)

    plenty, scarce, less = (
        feed.reserve(visits, free)
        for free in (None, (need + AHEAD) * 300 * 4 - 1, need * 300 * 4 - 1)
    )

    assert need > 6
    assert (plenty.places, plenty.bytes) == (need + AHEAD, (need + AHEAD) * 300 * 4)
    assert (scarce.places, scarce.fits) == (need, True)
    assert (less.places, less.fits) == (need, False)


def test_a_window_that_does_not_divide_is_on_every_device() -> None:
    shared, odd = window(count=24), window(count=25)

    slots = [feed.slots(feed.visits()) for feed in (shared, odd)]  # type: ignore[arg-type]

    assert slots == [6, 25]


@pytest.mark.parametrize(("devices", "batch"), [(1, 16), (4, 16), (4, 4), (8, 64), (3, 24)])
@pytest.mark.parametrize("volumes", [7.5, 20, 45])
def test_an_advised_window_fits_is_shared_out_and_no_much_larger_one_does(
    devices: int, batch: int, volumes: float
) -> None:
    feed = replace(WHOLE, cohort=replace(COHORT, volumes=300), devices=devices, batch_size=batch)
    free = volumes * VOXELS * 4

    visits = feed.advised(free, 25)

    assert visits is not None
    assert visits.most == 25
    assert feed.slots(visits) * devices == visits.window
    assert feed.reserve(visits, free).fits
    larger = feed.window(min(300, visits.window + 2 * max(batch, visits.window)), 25)
    assert larger.window == visits.window or feed.need(larger) + AHEAD > int(volumes)


def test_where_no_window_fits_none_is_advised() -> None:
    assert WHOLE.advised(2.5 * VOXELS * 4, 25) is None
    assert WHOLE.advised(1e12, 10**9) is None


def test_a_window_turns_over_as_fast_as_volumes_arrive_or_crops_are_drawn() -> None:
    """PERFORMANCE 11: 640 volumes, one every 0.48 s, 5.1 min, 12.6 min, 660 crops, reuse 7.4."""
    cohort = Cohort(100_000, (512, 512, 300), 1, (96, 96, 96), None, 157.3 / 60)
    feed = Resident(cohort, DataConfig(feed="resident"), 4096, 0, 64, is_on_device=True)
    rate = 64 * 1364.0

    least = feed.least_crops(None, rate, 125e6)
    stay = feed.residence(feed.window(64 * 640, least), rate, 125e6)

    assert least == pytest.approx(660, abs=10)
    assert (stay.window, stay.volumes, stay.crops_per_visit) == (40960, 640, least)
    assert stay.arrival_seconds == pytest.approx(0.48, abs=0.005)
    assert stay.stay_seconds / 60 == pytest.approx(5.1, abs=0.05)
    assert stay.pass_seconds / 60 == pytest.approx(12.6, abs=0.2)
    assert stay.reuse == pytest.approx(7.4, abs=0.1)
    twice = feed.residence(feed.window(64 * 640, 2 * least), rate, 125e6)
    assert twice.stay_seconds == pytest.approx(2 * 640 * least / 1364)


def test_the_disk_delivers_the_visits_that_a_step_begins() -> None:
    """16 crops of 30 a visit; a volume has 2400 voxels of 4 bytes, half of that in a store."""
    shared, odd = window(count=24), window(count=25)
    arrival = VOXELS * 4 / 2 / 1e6

    # A quarter of the visits each, or all of them.
    assert shared.feed_seconds(shared.visits(), 1e6) == pytest.approx(16 / 30 / 4 * arrival)
    assert odd.feed_seconds(odd.visits(), 1e6) == pytest.approx(16 / 30 * arrival)
    assert odd.least_crops(odd.visits(), 5000.0, 1e6) == math.ceil(5000 * arrival)
    assert shared.least_crops(shared.visits(), 5000.0, 1e6) == math.ceil(1250 * arrival)
    assert WHOLE.feed_seconds(None, 1e6) == 0


def test_numbers_of_a_window_that_the_feed_refuses_are_refused() -> None:
    with pytest.raises(ConfigError, match="between 1 and the number of cases, 100, not 101"):
        window(count=101).visits()
    with pytest.raises(ConfigError, match="needs `data.max_crops_per_visit`"):
        replace(FEED, data=DataConfig(feed="resident", window_cases=5)).visits()


def test_volumes_leave_alone_what_the_feed_leaves_alone_of_a_gpu() -> None:
    # 100 GB with 92 usable: training leaves 82, the feed takes 80 less the weights.
    assert free_gb(100, 3, 10, 92, is_cpu=False) == pytest.approx((1 - RESERVE) * 100 - 3)
    assert free_gb(100, 3, 10, 92, is_cpu=True) == 82
    assert free_gb(100, 3, 60, 92, is_cpu=False) == 32
    assert free_gb(100, 3, 99, 92, is_cpu=False) == 0
