"""Signals and the end of a SLURM job."""

from __future__ import annotations

import inspect
import signal
import sys
import threading
from types import FrameType
from typing import Any

import pytest

from mim3d.training.signals import Abandoned, StopRequest

AT_ONCE = inspect.unwrap(StopRequest.at_once).__code__


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGHUP"])
def test_a_signal_is_a_wish_and_the_old_handler_comes_back(name: str) -> None:
    number = getattr(signal, name)

    def before(number: int, frame: object) -> None:
        """A handler of our own: under `nohup` SIGHUP is ignored, and stays so."""

    outside = signal.signal(number, before)
    try:
        with StopRequest({}) as stop:
            assert stop.reason is None
            signal.raise_signal(number)
            assert stop.reason == name

        assert signal.getsignal(number) is before
    finally:
        signal.signal(number, outside)


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


def test_a_step_and_a_validation_that_are_still_to_come_need_their_time_too() -> None:
    now = [10_000.0]
    stop = StopRequest({"SLURM_JOB_END_TIME": "11000"}, now=lambda: now[0])
    stop.ahead = 300.0

    now[0] = 10_639.0
    assert stop.reason is None
    now[0] = 10_640.0
    assert stop.reason == "the end of the SLURM job"


@pytest.mark.parametrize("end", ["9999.5", "nan", "0"])
def test_an_end_that_cannot_be_is_said_and_not_watched(
    end: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An environment that outlived its job would stop every run after its first step."""
    stop = StopRequest({"SLURM_JOB_END_TIME": end}, now=lambda: 10_000.0)

    assert stop.reason is None
    assert "it is not watched" in caplog.text


def test_what_can_be_done_again_is_left_at_once_and_only_once() -> None:
    with StopRequest({}) as stop:
        with pytest.raises(Abandoned), stop.at_once():
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("it went on")
        signal.raise_signal(signal.SIGTERM)

        assert stop.reason == "SIGTERM"
        with pytest.raises(Abandoned), stop.at_once():
            raise AssertionError("it began")


def _abandons_at(moment: int) -> bool | None:
    """Whether work is left for a signal at so many opcodes of `at_once`; None where it has fewer.

    The work is done by hand between the two halves of the context manager, so that every opcode of
    the generator counts and nothing else.
    """
    passed = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal passed
        if frame.f_code is not AT_ONCE:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            passed += 1
            if passed == moment:
                signal.raise_signal(signal.SIGTERM)
        return trace

    with StopRequest({}) as stop:
        before, is_at_work = sys.gettrace(), False
        sys.settrace(trace)
        try:
            with stop.at_once():
                is_at_work = True
                if stop.reason is not None:
                    return False
        except Abandoned:
            return True
        finally:
            sys.settrace(before)
        assert is_at_work
        return None if stop.reason is None else True


def test_a_signal_at_any_moment_of_the_beginning_ends_the_work() -> None:
    """One that came between the question and the readiness was heard after the whole work."""
    found = [_abandons_at(moment) for moment in range(1, 200)]

    assert found.count(True) > 10
    assert False not in found
    assert found[-1] is None


def test_work_that_forgives_every_error_is_left_all_the_same() -> None:
    with StopRequest({}) as stop, pytest.raises(Abandoned), stop.at_once():
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:  # as around anything that may be tried again
            raise AssertionError("it went on") from None


def test_the_end_of_the_terminal_that_nohup_has_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest({}) as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.reason is None
    finally:
        signal.signal(signal.SIGHUP, before)
