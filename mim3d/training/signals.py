"""When to stop early: signals, and the end of a SLURM job."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)

NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGHUP")
"""What schedulers send before they kill, what a person types, and the end of a terminal."""
SMALLEST_MARGIN_SECONDS = 60.0
CHECKPOINTS_IN_MARGIN = 3
"""A checkpoint on a busy file system can take longer than the slowest one so far."""


class Abandoned(BaseException):
    """Work that can be done again was left at once, because a signal came.

    No `Exception`: it comes in the middle of anything, also of what forgives errors.
    """


class StopRequest:
    """Inside, a signal is a wish that `reason` tells of; the loop ends its step first.

    A second Ctrl-C ends the process at once, without touching files. Handlers are those of the
    process, so only the main thread has them, and they are put back afterwards.

    Args:
        environment: variables to look at; none takes the process's own.
        now: seconds since 1970.
    """

    def __init__(
        self,
        environment: Mapping[str, str] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        env = os.environ if environment is None else environment
        self._end = _end_of_job(env, now())
        self._now = now
        self._signal: str | None = None
        self._may_raise = False
        self._before: dict[signal.Signals, Any] = {}
        self.slowest_checkpoint = 0.0
        """Seconds, kept up to date by the loop."""
        self.ahead = 0.0
        """Seconds until this can be asked again, kept up to date by the loop."""

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for name in NAMES:
                number = getattr(signal, name, None)
                # `nohup` has the end of the terminal ignored, and means it.
                if number is None or (name == "SIGHUP" and _is_ignored(number)):
                    continue
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not set from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == "SIGINT":
            raise KeyboardInterrupt
        self._signal = signal.Signals(number).name
        if self._may_raise:
            self._may_raise = False  # once: what cleans up behind it is left in peace
            raise Abandoned

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal ends the work there and then. For what changes nothing and takes long.

        Raises:
            Abandoned: a signal came, now or since the loop last asked.
        """
        self._may_raise = True  # first: a signal behind the question would be heard too late
        try:
            if self._signal is not None:
                raise Abandoned
            yield
        finally:
            self._may_raise = False

    @property
    def reason(self) -> str | None:
        """Why to stop after this step, or None to go on."""
        if self._signal is not None:
            return self._signal
        margin = max(SMALLEST_MARGIN_SECONDS, CHECKPOINTS_IN_MARGIN * self.slowest_checkpoint)
        if self._end is not None and self._now() >= self._end - margin - self.ahead:
            return "the end of the SLURM job"
        return None


def _is_ignored(number: signal.Signals) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN


def _end_of_job(environment: Mapping[str, str], now: float) -> float | None:
    text = environment.get("SLURM_JOB_END_TIME")
    if text is None:
        return None
    try:
        end = float(text)
    except ValueError:
        end = math.nan
    if math.isnan(end):
        logger.warning("`SLURM_JOB_END_TIME` is `%s`, not a number; it is not watched", text)
        return None
    if end <= now:
        logger.warning("`SLURM_JOB_END_TIME` is past and this job alive; it is not watched")
        return None
    return end
