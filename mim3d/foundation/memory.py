"""Memory that ran out, by whatever words a library says so, and what this process takes of it."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from mim3d.foundation.errors import UserError

KINDS = frozenset({"MemoryError", "OutOfMemoryError"})
WORDS = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "unable to allocate",
)
"""What torch, HDF5 and the C++ library say, in small letters."""
STATUS = Path("/proc/self/statm")
HIGH_WATER = Path("/proc/self/status")
EVERY_SECONDS = 0.002


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory of this machine or of a GPU did not suffice."""
    if {kind.__name__ for kind in type(error).__mro__} & KINDS:
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    text = str(error).lower()
    if isinstance(error, ImportError):
        return "failed to map segment" in text  # a library that is loaded only now
    return isinstance(error, RuntimeError | OSError) and any(words in text for words in WORDS)


@contextlib.contextmanager
def lack_told(sentence: Callable[[], UserError]) -> Iterator[None]:
    """Turns a lack of memory in the block into a sentence; a person's own errors pass as they are.

    Args:
        sentence: made when memory ran out, and raised in place of what a library said.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise sentence() from error


def resident_bytes() -> int | None:
    """Memory of the machine that this process holds now; None where the system does not say."""
    try:
        return int(STATUS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


class Peak:
    """The most that was held while a block ran.

    Attributes:
        bytes: None where the system does not say.
    """

    def __init__(self) -> None:
        self.bytes = resident_bytes()

    def look(self) -> None:
        """Looks once."""
        now = resident_bytes()
        if now is not None:
            self.bytes = max(now, self.bytes or 0)


@contextlib.contextmanager
def watched() -> Iterator[Peak]:
    """Looks at this process's memory all the time while the block runs.

    The system's own high-water mark alone would not do: it tells of a block that holds more than
    any before it, and cannot be set back for others.
    """
    peak, done, highest = Peak(), threading.Event(), _high_water()

    def look() -> None:
        while not done.wait(EVERY_SECONDS):
            peak.look()

    watcher = threading.Thread(target=look, name="memory", daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak.look()
        now = _high_water()
        if now > highest and peak.bytes is not None:
            peak.bytes = max(now, peak.bytes)


def _high_water() -> int:
    """The most this process ever held; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in HIGH_WATER.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 0


def gigabytes(count: float) -> str:
    """Bytes as a person says them: `640 MB`, `3.2 GB`, `110 GB`."""
    if count < 0.95e9:
        return f"{count / 1e6:.0f} MB"
    return f"{count / 1e9:.1f} GB" if count < 99.5e9 else f"{count / 1e9:.0f} GB"
