"""How fast a training goes: measured over its steps, without validation and checkpoints."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")

LINE_EVERY_SECONDS = 1.0


@dataclass(frozen=True)
class Speed:
    """What the last stretch of steps took.

    Args:
        crops_per_second: over all processes.
        seconds_a_step: waiting for data included.
        data_share: share of the time spent waiting for crops, 0 to 1.
    """

    crops_per_second: float
    seconds_a_step: float
    data_share: float

    def as_json(self) -> dict[str, float]:
        """The numbers by name, in sensible digits."""
        return {
            "crops_per_second": round(self.crops_per_second, 3),
            "seconds_a_step": round(self.seconds_a_step, 5),
            "data_share": round(self.data_share, 4),
        }


class Pace:
    """Clocks of one process.

    Args:
        crops_a_step: of the global batch.
    """

    def __init__(self, crops_a_step: int) -> None:
        self._crops = crops_a_step
        now = time.monotonic()
        self._began, self._taken, self._line = now, now, now
        self._pauses = 0.0
        self._waiting = 0.0
        self._steps = 0
        self._all_steps, self._all_seconds = 0, 0.0

    def waited(self, seconds: float) -> None:
        """Counts one step that begins now and waited so long for its crops."""
        self._waiting += seconds
        self._steps += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is no training."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._pauses += time.monotonic() - began

    def read(self) -> Speed:
        """The speed since the last `clear`."""
        seconds = max(time.monotonic() - self._began - self._pauses, 1e-9)
        steps = max(self._steps, 1)
        return Speed(self._crops * steps / seconds, seconds / steps, self._waiting / seconds)

    def clear(self) -> None:
        """Begins a new stretch."""
        now = time.monotonic()
        self._all_steps += self._steps
        self._all_seconds += now - self._began - self._pauses
        self._began, self._pauses, self._waiting, self._steps = now, 0.0, 0.0, 0

    def overall(self) -> float:
        """Crops a second over all stretches that are closed; 0 where none is."""
        return self._crops * self._all_steps / self._all_seconds if self._all_steps else 0.0

    def is_line_due(self) -> bool:
        """Whether the live line is older than a second; if so, it counts as renewed."""
        now = time.monotonic()
        if now - self._line < LINE_EVERY_SECONDS:
            return False
        self._line = now
        return True

    def take_seconds(self) -> float:
        """Seconds since this was last asked, pauses included."""
        now = time.monotonic()
        seconds, self._taken = now - self._taken, now
        return seconds


class Slowest:
    """How long the slowest step and the slowest validation of this process took, in seconds.

    A step counts from the end of the one before it, waiting for data included; the first is left
    out, for it loads volumes.
    """

    def __init__(self) -> None:
        self.step = 0.0
        self.look = 0.0
        self._began: float | None = None

    def begin_step(self) -> None:
        """The step before is over, validation and checkpoint included."""
        self._began = time.monotonic()

    def end_step(self) -> None:
        """Gradients are there."""
        if self._began is not None:
            self.step = max(self.step, time.monotonic() - self._began)


def timed(batches: Iterator[Item], pace: Pace) -> Generator[Item, None, None]:
    """The same batches; how long each kept the caller waiting goes to the pace."""
    try:
        while True:
            began = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            pace.waited(time.monotonic() - began)
            yield batch
    finally:
        close: Any = getattr(batches, "close", None)
        if close is not None:
            close()
