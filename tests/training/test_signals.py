"""Signals and the end of a SLURM job."""

from __future__ import annotations

import signal
import threading

import pytest

from mim3d.training.signals import StopRequest


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_is_a_wish_and_the_old_handler_comes_back(name: str) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)

    with StopRequest({}) as stop:
        assert stop.reason is None
        signal.raise_signal(number)
        assert stop.reason == name

    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_ends_at_once() -> None:
    with StopRequest({}):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_second_sigterm_is_the_same_wish() -> None:
    with StopRequest({}) as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    assert stop.reason == "SIGTERM"


def test_the_end_of_the_job_leaves_room_for_three_checkpoints() -> None:
    now = [10_000.0]
    stop = StopRequest({"SLURM_JOB_END_TIME": "11000"}, now=lambda: now[0])

    now[0] = 10_939.0
    assert stop.reason is None
    now[0] = 10_940.0
    assert stop.reason == "the end of the SLURM job"
    stop.slowest_checkpoint = 100.0
    now[0] = 10_700.0
    assert stop.reason == "the end of the SLURM job"
    now[0] = 10_699.0
    assert stop.reason is None


def test_an_end_that_is_no_number_is_said_and_not_watched(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stop = StopRequest({"SLURM_JOB_END_TIME": "soon"})

    assert stop.reason is None
    assert "`soon`, not a number" in caplog.text


def test_in_another_thread_no_handler_is_set() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def work() -> None:
        with StopRequest({}) as stop:
            seen.extend([signal.getsignal(signal.SIGTERM), stop.reason])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert seen == [before, None]
