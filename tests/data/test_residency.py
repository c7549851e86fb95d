from __future__ import annotations

import threading
from dataclasses import fields

import numpy as np
import pytest
import torch
from positions import make_case, make_store

from mim3d.config.data import AugmentationConfig, DataConfig
from mim3d.data import feed as feed_module
from mim3d.data import residency as residency_module
from mim3d.data import room as room_module
from mim3d.data import sources, workers
from mim3d.data.batch import BatchNeeds, CropBatch
from mim3d.data.batched import Volumes
from mim3d.data.feed import Feed, make_feed
from mim3d.data.numbers import draw_numbers, numbers_bytes
from mim3d.data.residency import Residency
from mim3d.data.room import AHEAD, Room
from mim3d.data.visits import Visit, VisitPlan
from mim3d.foundation.errors import ConfigError, ResourceError, UserError

SIZE = (11, 13, 7)
SHAPES = [(31, 23, 17), (25, 29, 12), (18, 20, 30), (9, 26, 5), (22, 21, 20), (14, 17, 19)]
WINDOW = {"window_cases": 3, "max_crops_per_visit": 4}
AUGMENTATION = AugmentationConfig(
    flip_axes=("x", "y"), affine_probability=0.3, rotation_degrees=(9, 9, 9), noise=0.1
)
WHERE = {
    "host": {"feed": "resident", "resident_on": "host"},
    "host-workers": {"feed": "resident", "resident_on": "host", "workers": 2},
    "device": {"feed": "resident", "resident_on": "device"},
    "device-workers": {"feed": "resident", "resident_on": "device", "workers": 2},
    "store-workers": {"feed": "store", "workers": 2},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"), SHAPES)


def feed_of(store, needs=BatchNeeds(labels=True), **data) -> Feed:  # noqa: B008 (it is frozen)
    config = DataConfig(**{"crop_size": SIZE, "overhang": (2, 2, 2), **data})
    return make_feed(
        store,
        store.cases,
        data=config,
        augmentation=AUGMENTATION,
        needs=needs,
        batch_size=4,
        seed=7,
    )


def assert_same(expected: CropBatch, found: CropBatch) -> None:
    assert expected.case_ids == found.case_ids
    assert torch.equal(expected.crop_ids, found.crop_ids)
    assert torch.equal(expected.labels, found.labels)
    torch.testing.assert_close(expected.affine, found.affine, atol=1e-11, rtol=0)
    # values reach 60: the bound is for the path that warps whole batches
    torch.testing.assert_close(expected.voxels, found.voxels, atol=3e-4, rtol=1e-5)


def assert_same_steps(one, other) -> None:
    for (step, batches), (other_step, others) in zip(one, other, strict=True):
        assert step == other_step
        for expected, found in zip(batches, others, strict=True):
            assert_same(expected, found)


# The same samples


@pytest.mark.parametrize("name", WHERE)
@pytest.mark.parametrize("window", [WINDOW, {}], ids=["window", "whole"])
def test_every_feed_carries_out_the_same_plan(store, name, window):
    expected = feed_of(store, **window).batches(0, 12, accumulation=2)

    found = feed_of(store, **window, **WHERE[name]).batches(0, 12, accumulation=2)

    assert_same_steps(expected, found)


@pytest.mark.parametrize("name", WHERE)
@pytest.mark.parametrize("window", [WINDOW, {}], ids=["window", "whole"])
def test_every_feed_has_the_same_views_at_the_same_places(store, name, window):
    needs = BatchNeeds(views=2, labels=True, min_overlap=0.4)
    expected = feed_of(store, needs, **window).batches(0, 8, accumulation=2)

    found = feed_of(store, needs, **window, **WHERE[name]).batches(0, 8, accumulation=2)

    assert_same_steps(expected, found)


@pytest.mark.parametrize("name", ["host", "host-workers", "device"])
def test_a_feed_goes_on_in_the_middle_as_if_it_had_begun_at_the_start(store, name):
    whole = list(feed_of(store, **WINDOW, **WHERE[name]).batches(0, 14))

    assert_same_steps(whole[9:], feed_of(store, **WINDOW, **WHERE[name]).batches(9, 14))


@pytest.mark.parametrize("name", ["host", "device"])
def test_devices_have_their_shares_of_the_same_batch(store, name):
    whole = feed_of(store, **WINDOW).batches(0, 8, accumulation=4)
    ranks = [
        feed_of(store, **WINDOW, **WHERE[name]).batches(0, 8, rank=rank, world=2, accumulation=2)
        for rank in range(2)
    ]

    for (_, batches), (_, first), (_, second) in zip(whole, *ranks, strict=True):
        for expected, found in zip(batches, first + second, strict=True):
            assert_same(expected, found)


@pytest.mark.parametrize("name", ["host", "device"])
def test_fixed_crops_are_those_of_any_feed(store, name):
    expected = feed_of(store).fixed(6)

    for one, other in zip(expected, feed_of(store, **WINDOW, **WHERE[name]).fixed(6), strict=True):
        assert_same(one, other)


def test_auto_is_the_machine_where_the_device_is_a_cpu(store):
    assert feed_of(store, feed="resident")._device is None
    assert feed_of(store, feed="resident", resident_on="device")._device == torch.device("cpu")
    with pytest.raises(ConfigError, match="`data.resident_on` needs `data.feed resident`"):
        feed_of(store, resident_on="device")


def test_the_reuse_of_volumes_in_memory_is_said(store):
    windowed = feed_of(store, **WINDOW, **WHERE["host"]).reuse
    assert windowed is not None
    assert "3 of 6 volumes at a time" in windowed
    assert "after 4 crops" in windowed
    assert "all 6 volumes" in str(feed_of(store, **WHERE["device"]).reuse)
    assert feed_of(store, **WINDOW).reuse is None


# What is in memory


def watched(store, monkeypatch, **data) -> tuple[Feed, list[Residency]]:
    made: list[Residency] = []
    real = Feed._residency

    def make(self, *args):
        made.append(real(self, *args))
        return made[-1]

    monkeypatch.setattr(Feed, "_residency", make)
    return feed_of(store, **data), made


@pytest.mark.parametrize("name", ["host", "host-workers", "device", "device-workers"])
def test_no_more_cases_are_in_memory_than_the_window_and_what_comes_next(store, name, monkeypatch):
    feed, made = watched(store, monkeypatch, **WINDOW, **WHERE[name])

    list(feed.batches(0, 30))

    workers = WHERE[name].get("workers", 0) if name == "host-workers" else 0
    need = feed.plan.visits.largest_need(2 * workers + 1, range(4))
    assert made[0].most_resident <= need + AHEAD
    needed = {feed.plan.visit(step, index) for step in range(30) for index in range(4)}
    assert made[0].visits_read == len(needed)  # each once


def test_without_a_window_every_case_is_read_once_and_stays(store, monkeypatch):
    feed, made = watched(store, monkeypatch, **WHERE["device"])

    batches = feed.batches(0, 10**9)  # the thread must not walk through all of them
    for _ in range(30):
        next(batches)
    made[0]._thread.join()
    batches.close()

    assert made[0].visits_read == len(SHAPES)
    assert made[0].volumes.voxels.numel() == 2 * sum(np.prod(shape) for shape in SHAPES)


def test_a_cohort_that_is_larger_than_memory_is_drawn_from_through_a_window(store, monkeypatch):
    largest = max(int(np.prod(shape)) for shape in SHAPES)
    plan = VisitPlan(6, 3, 4, 4, seed=7)
    need = plan.largest_need(1, range(4)) * largest * 5  # two channels of int16 and labels
    whole = sum(int(np.prod(shape)) for shape in SHAPES) * 5
    monkeypatch.setattr(room_module, "available_bytes", lambda: need)
    monkeypatch.setattr(sources, "available_bytes", lambda: whole - 1)

    assert_same_steps(
        feed_of(store, **WINDOW).batches(0, 10),
        feed_of(store, **WINDOW, **WHERE["host"]).batches(0, 10),
    )
    with pytest.raises(ResourceError, match="for 6 volumes"):
        next(feed_of(store, **WHERE["host"]).batches(0, 10))
    monkeypatch.setattr(room_module, "available_bytes", lambda: need - 1)
    with pytest.raises(ResourceError, match=r"window of the cohort.*memory of `cpu` are free"):
        next(feed_of(store, **WINDOW, **WHERE["host"]).batches(0, 10))


def test_workers_that_draw_numbers_alone_have_slots_of_that_size(store, monkeypatch):
    asked: list[int] = []

    def noted(*args, slot_bytes, **kwargs):
        asked.append(slot_bytes)
        return workers.made_ahead(*args, slot_bytes=slot_bytes, **kwargs)

    monkeypatch.setattr(feed_module, "made_ahead", noted)
    feed = feed_of(store, **WHERE["device-workers"])
    numbers = draw_numbers(feed.plan, AUGMENTATION, 0, range(2))
    exact = sum(getattr(numbers, field.name).nbytes for field in fields(numbers))

    list(feed.batches(0, 3, accumulation=2))

    assert numbers_bytes(2) == exact + 9 * workers.ALIGNMENT
    assert asked == [2 * numbers_bytes(2)]  # a crop alone is 12 kB


# The thread


def threads() -> set[str]:
    return {t.name for t in threading.enumerate()}


@pytest.mark.parametrize("name", ["host", "host-workers", "device"])
def test_leaving_the_loop_ends_the_thread(store, name):
    batches = feed_of(store, **WINDOW, **WHERE[name]).batches(0, 1000)
    next(batches)
    assert "residency" in threads()

    batches.close()

    assert "residency" not in threads()


@pytest.mark.parametrize("name", ["host", "host-workers", "device"])
@pytest.mark.parametrize("window", [WINDOW, {}], ids=["window", "whole"])
def test_an_error_of_the_thread_reaches_the_loop(tmp_path, name, window):
    store = make_store(tmp_path, SHAPES)
    path = tmp_path / "cases" / "case_2.h5"
    path.write_bytes(path.read_bytes()[:-1] + b"?")

    with pytest.raises(UserError, match=r"`case_2.h5` of the store .* checksum is wrong"):
        list(feed_of(store, **window, **WHERE[name]).batches(0, 12))

    assert "residency" not in threads()


class TinyCase:
    """A case of eight voxels."""

    shape = (1, 2, 2, 2)

    def read_slab(self, first, count, *, labels):
        return np.zeros((1, count, 2, 2), np.int16), None

    def close(self) -> None:
        pass


def test_a_visit_that_has_ended_is_not_read_again_by_a_thread_that_falls_behind():
    plan, steps = VisitPlan(cases=6, window=2, most=4, batch_size=2, seed=0), range(60)
    opened: list[Visit] = []
    released = {step: threading.Event() for step in steps}

    def visits(step: int) -> list[Visit]:
        return [plan.visit(step, index) for index in range(2)]

    def needs(step: int) -> list[Visit]:
        # All of a step may be there before the thread looks at it; then the loop overtakes it.
        if threading.current_thread().name == "residency" and set(visits(step)) <= set(opened):
            assert released[step].wait(60)
        return visits(step)

    def open_case(visit: Visit) -> TinyCase:
        opened.append(visit)
        return TinyCase()

    room = Room([8] * 6, 100)  # enough not to wait for a place that a second reading took
    volumes = Volumes(torch.zeros(room.size, dtype=torch.int16), None)
    held = Residency(volumes, room, steps, needs, plan.last_step, open_case)
    for step in steps:
        held.admit(step)
        held.release(step)
        released[step].set()
    held._thread.join()
    held.close()

    distinct = {visit for step in steps for visit in visits(step)}
    assert sorted(opened) == sorted(distinct)
    assert held.visits_read == len(distinct)


class SlowCase:
    """A case that is read slab by slab and says how often."""

    shape = (2, 70, 5, 3)

    def __init__(self) -> None:
        self.stored = make_case((70, 5, 3)).stored
        self.slabs: list[tuple[int, int]] = []
        self.is_closed = False

    def read_slab(self, first, count, *, labels):
        self.slabs.append((first, count))
        return self.stored[:, first : first + count], None

    def close(self) -> None:
        self.is_closed = True


def test_a_volume_comes_in_slabs_and_lies_channel_by_channel(monkeypatch):
    monkeypatch.setattr(residency_module, "SLAB_BYTES", 1)
    case, volumes = SlowCase(), Volumes(torch.zeros(3000, dtype=torch.int16), None)
    visit = Visit(0, 0)

    held = Residency(volumes, Room([1050], None), range(1), lambda _: [visit], None, lambda _: case)
    places = held.admit(0)
    held.close()

    assert places == {visit: 0}
    assert case.slabs == [(0, 32), (32, 32), (64, 6)]
    assert case.is_closed
    np.testing.assert_array_equal(volumes.voxels[:2100], case.stored.ravel())
    assert (volumes.voxels[2100:] == 0).all()
