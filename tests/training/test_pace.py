"""Measured speed, with a clock that the test turns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mim3d.training.pace import Pace, Slowest, timed


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("mim3d.training.pace.time.monotonic", clock)
    return clock


def slow(clock: Clock, closed: list[bool]) -> Iterator[int]:
    try:
        for number in range(3):
            clock.now += 0.5
            yield number
    finally:
        closed.append(True)


def test_speed_counts_waiting_and_leaves_out_pauses(clock: Clock) -> None:
    pace, closed = Pace(8), []

    for _ in timed(slow(clock, closed), pace):
        clock.now += 1.5
        with pace.paused():
            clock.now += 70

    speed = pace.read()
    # 3 steps of 2 s, of which 0.5 s waiting.
    assert speed.crops_per_second == pytest.approx(4.0)
    assert speed.seconds_a_step == pytest.approx(2.0)
    assert speed.data_share == pytest.approx(0.25)
    assert closed == [True]


def test_stretches_begin_anew_and_add_up(clock: Clock) -> None:
    pace = Pace(8)
    for seconds in (1.0, 3.0):
        pace.waited(0.0)
        clock.now += seconds
        pace.clear()

    assert pace.overall() == pytest.approx(4.0)
    assert pace.read().data_share == 0
    assert pace.take_seconds() == pytest.approx(4.0)
    assert pace.take_seconds() == 0


def test_the_line_is_due_once_a_second(clock: Clock) -> None:
    pace = Pace(1)
    due = []
    for _ in range(10):
        clock.now += 0.4
        due.append(pace.is_line_due())

    assert due == [False, False, True, False, False, True, False, False, True, False]


def test_the_feed_is_closed_when_the_loop_ends_early(clock: Clock) -> None:
    closed: list[bool] = []
    batches = timed(slow(clock, closed), Pace(1))

    next(batches)
    batches.close()

    assert closed == [True]


def test_the_slowest_step_leaves_out_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("mim3d.training.pace.time.monotonic", lambda: now[0])
    slowest = Slowest()

    for seconds in (100.0, 2.0, 5.0, 1.0):
        now[0] += seconds
        slowest.end_step()
        now[0] += 50.0  # a validation
        slowest.begin_step()

    assert slowest.step == 5.0
