"""Work in a forked child that is killed: at its n-th file operation, or at a moment.

A kill between two operations finds names half moved; a kill at a moment also finds files half
written. What the child says before it dies is what it acknowledged.
"""

from __future__ import annotations

import builtins
import faulthandler
import io
import os
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

OPERATIONS = frozenset({
    "open", "os.mkdir", "os.rename", "os.symlink", "os.link", "os.remove", "os.rmdir", "os.utime",
    "os.scandir", "shutil.rmtree", "ctypes.dlsym", "os.write",
})  # fmt: skip
"""Audited by Python before they happen; the last one stands before names are exchanged."""
PATIENCE_SECONDS = 300.0

Say = Callable[[str], None]
Work = Callable[[Say], None]


@dataclass(frozen=True)
class Death:
    """When a child is killed: at an operation, or after seconds; never if both are None."""

    operation: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Life:
    """What became of a child.

    Args:
        said: its words, in order.
        fault: an exception it ended with, else None.
        signal: what killed it, else None.
        operations: file operations it made; 0 unless it came to its end.
        seconds: how long it lived.
    """

    said: tuple[str, ...]
    fault: str | None
    signal: int | None
    operations: int
    seconds: float


def drawn_death(random: np.random.Generator, whole: Life) -> Death:
    """A point of a life that took as long as `whole`: every second one between operations."""
    if random.random() < 0.5:
        return Death(operation=int(random.integers(whole.operations)))
    return Death(seconds=float(random.uniform(0, whole.seconds)))


def life(work: Work, death: Death | None = None) -> Life:
    """Runs `work` in a child and kills it when its time has come.

    Args:
        work: gets a function that says a word to this process; what it raises is a fault.
        death: None lets it live.

    Raises:
        TimeoutError: it lived longer than any work takes.
    """
    return Child(work, death).wait()


class Child:
    """A child at work; the arguments are those of `life`."""

    def __init__(self, work: Work, death: Death | None = None) -> None:
        self._death = death or Death()
        self._reader, writer = os.pipe()
        with warnings.catch_warnings():
            # Python 3.12 warns of threads (torch has some): the child runs on one.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reader)
            _live(work, self._death.operation, writer)
        os.close(writer)
        self._began = time.monotonic()

    def kill(self) -> None:
        """Ends it, with everything it started."""
        os.killpg(self.pid, signal.SIGKILL)

    def wait(self) -> Life:
        """Kills it when its time has come, and tells of its life."""
        lines, ready = b"", False
        while True:
            left = self._left(ready)
            if left <= 0:
                self.kill()
                left = PATIENCE_SECONDS
            if select.select([self._reader], [], [], left)[0]:
                part = os.read(self._reader, 65536)
                if not part:
                    break
                lines += part
                if not ready:
                    # The clock starts where the work does.
                    self._began, ready = time.monotonic(), True
        os.close(self._reader)
        _, status = os.waitpid(self.pid, 0)
        return self._told(lines.decode().splitlines(), os.waitstatus_to_exitcode(status))

    def _left(self, ready: bool) -> float:
        limit = PATIENCE_SECONDS
        if ready and self._death.seconds is not None:
            limit = self._death.seconds
        left = self._began + limit - time.monotonic()
        if left <= 0 and self._death.seconds is None:
            self.kill()
            raise TimeoutError(f"the child did not end within {PATIENCE_SECONDS:.0f} s")
        return left

    def _told(self, lines: list[str], code: int) -> Life:
        said = tuple(line[1:] for line in lines if line.startswith("+"))
        faults = [line[1:] for line in lines if line.startswith("!")]
        counts = [int(line[1:]) for line in lines if line.startswith("#")]
        seconds = time.monotonic() - self._began
        fault = faults[0] if faults else (f"it ended with {code}" if code > 0 else None)
        return Life(said, fault, -code if code < 0 else None, sum(counts), seconds)


def _live(work: Work, operation: int | None, writer: int) -> NoReturn:
    """The child's life; it leaves by no other way, so nothing of the parent's runs twice."""
    try:
        os.setpgid(0, 0)
        faulthandler.disable()
        warnings.simplefilter("ignore")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        _on_one_thread()
        # What was written outlives the process without it, and a hundred flushes take a second.
        os.fsync = lambda descriptor: None
        os.write(writer, b"\n")
        count = _counted(operation)
        _write_by_halves()
        fault = None
        try:
            work(lambda word: _write_line(writer, f"+{word}"))
        except BaseException as error:
            fault = "".join(traceback.format_exception_only(error)).strip().replace("\n", " ")
        made = count()
        _write_line(writer, f"#{made}")
        if fault is not None:
            _write_line(writer, f"!{fault}")
        os._exit(0)
    finally:
        os._exit(1)


def _on_one_thread() -> None:
    """The parent's threads did not come along; who waits for them waits for ever."""
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)


def _counted(last: int | None) -> Callable[[], int]:
    """Counts file operations from now on; the one numbered `last` is not lived to see."""
    made = 0

    def hook(event: str, arguments: object) -> None:
        nonlocal made
        if event in OPERATIONS:
            if made == last:
                os.killpg(0, signal.SIGKILL)
            made += 1

    sys.addaudithook(hook)
    return lambda: made


def _write_by_halves() -> None:
    """Lets a kill between operations find a file of which a part is written."""
    really_open = io.open

    def opened(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if 0 in rest or named or "b" not in mode or not set(mode) & set("wxa"):
            return really_open(file, mode, *rest, **named)
        return _Halves(io.FileIO(file, mode.replace("b", "")))

    builtins.open = io.open = opened  # type: ignore[assignment]


class _Halves(io.BufferedWriter):
    """Writes each piece in two, with an operation before either and after both."""

    def write(self, content: Any, /) -> int:
        """As of every file."""
        piece = memoryview(content).cast("B")
        half = len(piece) // 2
        for part in (piece[:half], piece[half:]):
            sys.audit("os.write")
            super().write(part)
            self.flush()
        sys.audit("os.write")
        return len(piece)


def _write_line(writer: int, text: str) -> None:
    os.write(writer, f"{text}\n".encode())
