"""Streams that voxels come out of, and the plain one; the compressed ones stand in `deflate`.

A stream is pulled: `fill` writes as much as it can into memory that the caller allocated, `finish`
reads on to the end and compares what is left. Nothing is allocated by the word of a file, and the
output of a stream is never larger than what was asked for plus one buffer.
"""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mim3d.data.volume import Note
from mim3d.foundation.errors import VolumeError

FEED = 1 << 16
"""Compressed bytes read at once."""
DRAIN = 1 << 16
MOST_EXCESS = 1 << 20
LONGEST_SKIP = 1 << 28
"""The most that may lie between header and voxels (extensions)."""
AGAIN = "copy or download the file again"


@dataclass(frozen=True)
class Rest:
    """What was found behind the voxels: zeros inside the stream, bytes after it, other notes."""

    zeros: int = 0
    foreign: int = 0
    more: tuple[Note, ...] = ()

    def notes(self) -> list[Note]:
        """One note for each kind."""
        found = list(self.more)
        if self.zeros:
            text = f"{self.zeros} zero bytes behind the voxels were ignored"
            found.append(Note("zeros-behind", text))
        if self.foreign:
            text = f"{self.foreign} bytes behind the compressed stream were ignored"
            found.append(Note("bytes-behind", text))
        return found


class Stream(Protocol):
    """A source of bytes that is read once, from front to end."""

    def fill(self, target: memoryview) -> int:
        """Writes into `target`; returns how many bytes, fewer only at the end of the stream."""

    def finish(self, wanted: int) -> Rest:
        """Reads to the end, comparing check values.

        Args:
            wanted: bytes of voxels that were read, for the message.

        Raises:
            VolumeError: a check value is wrong, or what is left is too much or not zero.
        """

    def most(self) -> int:
        """The most bytes this stream can still give, from the size of its file alone."""


def open_regular(path: str | os.PathLike[str], *, follow: bool = True) -> io.FileIO:
    """Opens a regular file without ever waiting for it; devices, pipes and sockets are refused.

    Raises:
        VolumeError: it is absent, cannot be opened, or is no regular file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    if not follow:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise VolumeError("there is no such file", code="missing") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "its name cannot be used"
        raise VolumeError(f"it cannot be opened: {reason}", code="unreadable") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise VolumeError("it is no regular file", code="not-a-file")
    return io.FileIO(descriptor, "rb")


def neighbour(header: Path, name: str) -> Path:
    """The data file that a header names, which must be a plain name in the same folder.

    Raises:
        VolumeError: the name leads elsewhere, to the header itself, or to nothing.
    """
    plain = name not in ("", ".", "..") and not set(name) & set("/\\\0") and name.isprintable()
    if not plain:
        raise VolumeError(
            "its header names a data file outside of its own folder",
            remedy="put the data file beside the header and name it without a folder",
            code="data-file",
        )
    beside = header.parent / name
    try:
        found = beside.resolve(strict=True)
        folder = header.parent.resolve(strict=True)
        same = found == header.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        raise VolumeError(
            "the data file that its header names is missing",
            remedy="put the data file beside the header",
            code="missing",
        ) from None
    if found.parent != folder:
        raise VolumeError(
            "its data file is a link out of its folder",
            remedy="put the data file itself beside the header",
            code="data-file",
        )
    if same:
        raise VolumeError("its header names itself as its data", code="data-file")
    return found


def read_all(stream: Stream, limit: int) -> bytes:
    """At most `limit` bytes from the front of a stream."""
    buffer = bytearray(limit)
    return bytes(buffer[: stream.fill(memoryview(buffer))])


def skip(stream: Stream, count: int) -> None:
    """Reads `count` bytes and forgets them.

    Raises:
        VolumeError: the stream ends before.
    """
    if count > min(stream.most(), LONGEST_SKIP):
        raise VolumeError("its voxels would begin beyond its end", code="offset")
    buffer = bytearray(min(count, 1 << 20))
    while count:
        got = stream.fill(memoryview(buffer)[: min(count, len(buffer))])
        if not got:
            raise VolumeError("its voxels would begin beyond its end", code="offset")
        count -= got


class PlainStream:
    """The bytes of a file from `start` on, as they are."""

    def __init__(self, file: io.FileIO, start: int = 0) -> None:
        self._file = file
        self._left = max(0, os.fstat(file.fileno()).st_size - start)
        file.seek(start)

    def fill(self, target: memoryview) -> int:
        """As `Stream.fill`."""
        done = 0
        while done < len(target):
            count = self._file.readinto(target[done : done + (1 << 24)])
            if not count:
                break
            done += count
        self._left = max(0, self._left - done)
        return done

    def finish(self, wanted: int) -> Rest:
        """As `Stream.finish`."""
        return Rest(zeros=zeros_to_the_end(self, wanted))

    def most(self) -> int:
        """As `Stream.most`."""
        return self._left


def more_data(found: int, wanted: int, *, at_least: bool) -> VolumeError:
    """The error for a file with more voxels than its header tells of."""
    return VolumeError(
        f"it holds {'at least ' if at_least else ''}{found} bytes of voxels,"
        f" more than the {wanted} that its header tells of",
        remedy="the header and the voxels do not belong together: get the file again",
        code="more-data",
    )


def zeros_to_the_end(stream: Stream, wanted: int) -> int:
    """How many zeros a stream ends with, read to its end and no farther than `MOST_EXCESS`.

    Raises:
        VolumeError: there are more of them, or other bytes.
    """
    is_plain = isinstance(stream, PlainStream)
    whole = stream.most()
    buffer = bytearray(DRAIN)
    total = 0
    while count := stream.fill(memoryview(buffer)):
        total += count
        if total > MOST_EXCESS or bytes(memoryview(buffer)[:count]).strip(b"\0"):
            raise more_data(wanted + (whole if is_plain else total), wanted, at_least=not is_plain)
    return total
