"""A feed's worker processes: the same steps, and how they end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from position_feeds import SHAPES, crops_of, feed_of, steps_of
from positions import make_store

from mim3d.data import feed as feed_module
from mim3d.data import workers
from mim3d.data.batch import CropBatch
from mim3d.foundation.errors import ResourceError, UserError


def test_workers_give_the_same_steps_in_the_same_order(store):
    expected = steps_of(feed_of(store), 7, accumulation=2)

    for count in (1, 2, 3):
        found = steps_of(feed_of(store, workers=count), 7, accumulation=2)
        assert [step for step, _ in found] == list(range(7))
        for (_, a), (_, b) in zip(expected, found, strict=True):
            assert len(a) == len(b) == 2
            assert list(map(lambda x: crops_of([x]), a)) == list(map(lambda x: crops_of([x]), b))


def test_workers_can_be_spawned_where_fork_is_not_safe(store, monkeypatch):
    expected = steps_of(feed_of(store), 3)
    monkeypatch.setattr(
        feed_module,
        "made_ahead",
        lambda *args, **kwargs: workers.made_ahead(*args, **kwargs, start_method="spawn"),
    )

    found = steps_of(feed_of(store, workers=1), 3)

    for (_, a), (_, b) in zip(expected, found, strict=True):
        assert crops_of(a) == crops_of(b)


def children() -> set[int]:
    """Processes of this one that have not ended."""
    alive = set()
    for path in sorted(os.listdir("/proc")):
        try:
            with open(f"/proc/{path}/stat", encoding="ascii") as file:
                fields = file.read().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        if path.isdigit() and int(fields[1]) == os.getpid() and fields[0] != "Z":
            alive.add(int(path))
    return alive


linux_only = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")


def started(store, **data) -> tuple[Iterator[tuple[int, list[CropBatch]]], set[int]]:
    before = children()
    batches = feed_of(store, workers=2, **data).batches(0, 1000)
    next(batches)
    return batches, children() - before


@linux_only
def test_leaving_the_loop_ends_the_workers(store):
    batches, crew = started(store)
    assert len(crew) == 2

    batches.close()

    assert not crew & children()


@linux_only
def test_an_error_in_the_loop_ends_the_workers(store):
    crew: set[int] = set()

    def loop() -> None:
        before = children()
        for _ in feed_of(store, workers=2).batches(0, 1000):
            crew.update(children() - before)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop()

    assert len(crew) == 2
    assert not crew & children()


@linux_only
def test_workers_leave_interruptions_to_their_parent(store):
    batches, crew = started(store)

    for pid in crew:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    steps = [next(batches)[0] for _ in range(12)]

    assert steps == list(range(1, 13))
    batches.close()


@linux_only
def test_a_worker_that_dies_is_reported_with_the_cases_it_worked_on(store):
    batches, crew = started(store)

    for pid in crew:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(ResourceError, match=r"signal 9 while it made the crops of step .*`case_"):
        for _ in batches:
            pass

    assert not crew & children()


def test_an_error_in_a_worker_arrives_as_it_was_raised(tmp_path):
    store = make_store(tmp_path, SHAPES)
    path = tmp_path / "cases" / "case_2.h5"
    path.write_bytes(path.read_bytes()[:-1])

    for count in (0, 1):
        with pytest.raises(UserError, match=r"`case_2.h5` of the store cannot be used"):
            steps_of(feed_of(store, workers=count), 3)


def test_a_bug_in_a_worker_names_the_case_and_shows_its_traceback(store, monkeypatch):
    def broken(*args: object) -> None:
        raise ZeroDivisionError("broken on purpose")

    monkeypatch.setattr(feed_module.augment, "apply", broken)
    with pytest.raises(RuntimeError, match=r"cutting a crop at \(.*\) of case `case_") as caught:
        steps_of(feed_of(store, workers=1), 1)

    assert "in broken" in str(caught.value.__cause__)
    assert "broken on purpose" in str(caught.value.__cause__)
