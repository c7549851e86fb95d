"""When to stop early: signals, and the end of a SLURM job."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)

NAMES = ("SIGTERM", "SIGUSR1", "SIGINT")
SMALLEST_MARGIN_SECONDS = 60.0
CHECKPOINTS_IN_MARGIN = 3
"""A checkpoint on a busy file system can take longer than the slowest one so far."""


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
        self._end = _end_of_job(env)
        self._now = now
        self._signal: str | None = None
        self._before: dict[signal.Signals, Any] = {}
        self.slowest_checkpoint = 0.0
        """Seconds, kept up to date by the loop."""

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for name in NAMES:
                if hasattr(signal, name):
                    number = getattr(signal, name)
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

    @property
    def reason(self) -> str | None:
        """Why to stop after this step, or None to go on."""
        if self._signal is not None:
            return self._signal
        margin = max(SMALLEST_MARGIN_SECONDS, CHECKPOINTS_IN_MARGIN * self.slowest_checkpoint)
        if self._end is not None and self._now() >= self._end - margin:
            return "the end of the SLURM job"
        return None


def _end_of_job(environment: Mapping[str, str]) -> float | None:
    text = environment.get("SLURM_JOB_END_TIME")
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        logger.warning("`SLURM_JOB_END_TIME` is `%s`, not a number; it is not watched", text)
        return None
