"""Moments of a training: in a forward pass, a backward pass, an update, a line, a file's writing.

Counted from where the loop asks for its first batch, so that a signal finds somebody who hears it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from mim3d.data.batch import MicroBatch
from mim3d.objectives.base import Task
from mim3d.training.logs import Log
from mim3d.training.loop import Feed
from tests.reliability.killing import OPERATIONS

PLACES = ("forward pass", "backward pass", "update", "line of the log", "file operation")


class Moments:
    """Counts the moments of one training in this process, and acts at one of them.

    Args:
        at: place and number of the moment; None only counts.
        action: what is done then.
    """

    def __init__(self, at: tuple[str, int] | None, action: Callable[[], None]) -> None:
        self.counts: Counter[str] = Counter()
        self._at, self._action = at, action
        self._is_counting = False

    def touch(self, task: Task) -> None:
        """Listens to a task that is about to be trained, to optimisers, logs and files."""
        task.register_forward_pre_hook(lambda *_: self._pass("forward pass"))
        # The last gradient to come, when all others are there.
        encoder = [p for name, p in task.named_parameters() if name.startswith("encoder.")]
        first = next(parameter for parameter in encoder if parameter.requires_grad)
        hear: Any = first.register_post_accumulate_grad_hook
        hear(lambda _: self._pass("backward pass"))
        register_optimizer_step_post_hook(lambda *_: self._pass("update"))
        self._cut_lines()
        sys.addaudithook(
            lambda event, _: self._pass("file operation") if event in OPERATIONS else None
        )

    def feed(self, feed: Feed) -> Feed:
        """The same feed; moments count from its first batch on."""
        return _Beginning(feed, self)

    def begin(self) -> None:
        """From now on."""
        self._is_counting = True

    def _pass(self, place: str) -> None:
        if not self._is_counting:
            return
        is_now = (place, self.counts[place]) == self._at
        self.counts[place] += 1
        if is_now:
            self._action()

    def _cut_lines(self) -> None:
        really_write = Log.write

        def write(log: Any, *line: Any) -> None:
            if not isinstance(log._file, _Halves):
                log._file = _Halves(log._file, lambda: self._pass("line of the log"))
            really_write(log, *line)

        Log.write = write  # type: ignore[method-assign, assignment]


@dataclass
class _Beginning:
    feed: Feed
    moments: Moments

    def batches(
        self, start: int, stop: int, **share: int
    ) -> Iterator[tuple[int, list[MicroBatch]]]:
        self.moments.begin()
        yield from self.feed.batches(start, stop, **share)


@dataclass
class _Halves:
    """A file of lines that takes the first half of each by itself, as a full buffer would."""

    file: Any
    between: Callable[[], None]
    is_second: bool = False

    def write(self, content: memoryview) -> int:
        self.is_second = not self.is_second
        if not self.is_second:
            return int(self.file.write(content))
        written = self.file.write(content[: len(content) // 2])
        self.between()
        return int(written)

    def close(self) -> None:
        self.file.close()
