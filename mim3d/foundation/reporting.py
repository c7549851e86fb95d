"""How long work says where it is. Workflows report; whoever called them decides how it looks.

The command line hands in a live display; a notebook or a test gets plain lines or silence.
"""

from __future__ import annotations

import logging
import time
from typing import Protocol

logger = logging.getLogger("mim3d")


class Reporter(Protocol):
    """Where workflows send what a person may want to read."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def warn(self, text: str) -> None:
        """A line about something the user can act on."""

    def progress(self, done: int, total: int, text: str) -> None:
        """A line that rewrites itself: how far, and what with."""


class PlainReporter:
    """Log lines: every message, and progress at most once in `every_seconds`."""

    def __init__(self, every_seconds: float = 60.0) -> None:
        self._every_seconds = every_seconds
        self._last = time.monotonic()

    def say(self, text: str) -> None:
        """Logs the line."""
        logger.info(text)

    def warn(self, text: str) -> None:
        """Logs the line as a warning."""
        logger.warning(text)

    def progress(self, done: int, total: int, text: str) -> None:
        """Logs the line if the last one is old enough."""
        now = time.monotonic()
        if now - self._last >= self._every_seconds:
            self._last = now
            logger.info(text)


class Silent:
    """Says nothing."""

    def say(self, text: str) -> None:
        """Drops the line."""

    def warn(self, text: str) -> None:
        """Drops the line."""

    def progress(self, done: int, total: int, text: str) -> None:
        """Drops the line."""


class NamedReporter:
    """One of many trainings as part of a larger work: its warnings and progress under its name.

    Args:
        reporter: who hears of it.
        name: of the training.
    """

    def __init__(self, reporter: Reporter, name: str) -> None:
        self._reporter, self._name = reporter, name

    def say(self, text: str) -> None:
        """Drops the line: the training's own log has it."""

    def warn(self, text: str) -> None:
        """Passes it on."""
        self._reporter.warn(f"{self._name}: {text}")

    def progress(self, done: int, total: int, text: str) -> None:
        """Passes it on."""
        self._reporter.progress(done, total, f"{self._name}: {text}")


def duration(seconds: float) -> str:
    """Seconds as a person would say them: `45 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
