"""Plain lines of progress, and durations as a person says them."""

from __future__ import annotations

import logging

import pytest

from mim3d.foundation.reporting import NamedReporter, PlainReporter, duration


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-1, "0 s"), (44.6, "45 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_a_duration_is_said_in_two_units_at_most(seconds, said):
    assert duration(seconds) == said


def test_progress_is_rare_and_messages_are_not(caplog):
    caplog.set_level(logging.INFO, logger="mim3d")
    reporter = PlainReporter(every_seconds=1000)

    reporter.say("begins")
    for step in range(100):
        reporter.progress(step, 100, f"step {step}")
    reporter.warn("look here")

    assert [record.getMessage() for record in caplog.records] == ["begins", "look here"]


def test_progress_is_logged_when_its_time_has_come(caplog):
    caplog.set_level(logging.INFO, logger="mim3d")
    reporter = PlainReporter(every_seconds=0)

    reporter.progress(1, 2, "step 1/2")

    assert [record.getMessage() for record in caplog.records] == ["step 1/2"]


def test_one_of_many_trainings_warns_and_goes_on_under_its_name_and_says_nothing_else(caplog):
    caplog.set_level(logging.INFO, logger="mim3d")
    reporter = NamedReporter(PlainReporter(every_seconds=0), "mae-1")

    reporter.say("begins")
    reporter.warn("look here")
    reporter.progress(1, 2, "step 1/2")

    said = [record.getMessage() for record in caplog.records]
    assert said == ["mae-1: look here", "mae-1: step 1/2"]
