"""What a person sees while a verb works: lines that stay, and one that rewrites itself.

Everything here goes to standard error; results go to standard output. On a terminal progress is one
live line; elsewhere it is one plain line a minute, so that a log file stays readable.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

BAR_WIDTH = 24
EVERY_SECONDS = 60.0


class Display:
    """A `Reporter` on standard error.

    Args:
        quiet: shows warnings only.
        silent: shows nothing, as on all ranks but the first.
        console: where to write; standard error by default.
        every_seconds: between lines of progress where there is no terminal.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        silent: bool = False,
        console: Console | None = None,
        every_seconds: float = EVERY_SECONDS,
    ) -> None:
        # Rich leaves colours out where NO_COLOR is set or there is no terminal.
        self._console = console or Console(stderr=True, highlight=False, quiet=silent)
        self._quiet = quiet
        self._every_seconds = every_seconds
        self._last = time.monotonic()
        self._live: Live | None = None

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self._quiet:
            self._print(Text(text))

    def warn(self, text: str) -> None:
        """A line about something the user can act on."""
        self._print(Text.assemble(("warning: ", "yellow"), text))

    def progress(self, done: int, total: int, text: str) -> None:
        """How far the work is; the line goes away when it is done."""
        if self._quiet:
            return
        if self._console.is_terminal:
            self._rewrite(done, total, text)
        elif time.monotonic() - self._last >= self._every_seconds:
            self._last = time.monotonic()
            self._print(Text(text))

    def close(self) -> None:
        """Takes the live line away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _rewrite(self, done: int, total: int, text: str) -> None:
        if done >= total:
            self.close()
            return
        if self._live is None:
            self._live = Live(console=self._console, transient=True, refresh_per_second=4)
            self._live.start()
        line = Table.grid(padding=(0, 1))
        line.add_row(ProgressBar(total=total, completed=done, width=BAR_WIDTH), Text(text))
        self._live.update(line)

    def _print(self, text: Text) -> None:
        # Soft wrap: a path or a command to copy must not be broken by the width of the window.
        self._console.print(text, soft_wrap=True)


class _ToDisplay(logging.Handler):
    """Log records as lines of the display, so that they do not tear the live line."""

    def __init__(self, display: Display) -> None:
        super().__init__()
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            self._display.warn(text)
        else:
            self._display.say(text)


@contextmanager
def listening(display: Display, *, verbose: bool) -> Iterator[None]:
    """Shows log records of mim3d and Python's warnings on the display while the block runs.

    Args:
        display: where they go.
        verbose: also shows details of mim3d and warnings of other libraries.
    """
    logger = logging.getLogger("mim3d")
    handler, level, propagate = _ToDisplay(display), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    logger.propagate = False

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: object = None,
        line: str | None = None,
    ) -> None:
        # A warning of another library's inside is nothing that a user can act on.
        if verbose or category.__module__.startswith("mim3d"):
            display.warn(str(message))

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        display.close()
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
