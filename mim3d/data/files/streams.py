"""Bytes of voxels out of plain files and deflate streams, every check value compared.

A stream is pulled: `fill` writes as much as it can into memory that the caller allocated, `finish`
reads on to the end and compares what is left. Nothing is allocated by the word of a file, and the
output of a stream is never larger than what was asked for plus one buffer.
"""

from __future__ import annotations

import importlib.util
import io
import os
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

from mim3d.data.volume import Note
from mim3d.foundation.errors import VolumeError

FEED = 1 << 16
"""Compressed bytes read at once."""
PIECE = 1 << 17
"""The most bytes inflated at once: they stay in the cache until they are checked and copied, which
is a third faster than with 4 MiB and as fast as inflating into the final memory."""
DRAIN = 1 << 16
MOST_EXCESS = 1 << 20
MOST_GROWTH = 1032
"""A deflate stream cannot grow by more than this factor (zlib's technical notes)."""
LONGEST_SKIP = 1 << 28
"""The most that may lie between header and voxels (extensions)."""
GZIP_MAGIC = b"\x1f\x8b"


def _fastest() -> ModuleType:
    # isal inflates three times as fast as zlib; chosen by looking, once.
    if importlib.util.find_spec("isal") is not None:
        from isal import isal_zlib

        return isal_zlib
    return zlib


DEFLATE = _fastest()
INFLATE_ERRORS: tuple[type[Exception], ...] = (zlib.error, DEFLATE.error)


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

    def finish(self) -> Rest:
        """Reads to the end, comparing check values.

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

    def finish(self) -> Rest:
        """As `Stream.finish`."""
        return Rest(zeros=_zeros_to_the_end(self))

    def most(self) -> int:
        """As `Stream.most`."""
        return self._left


class DeflateStream:
    """A gzip stream of one or more members, or one zlib stream, from `start` to the file's end.

    Own code reads the wrappers (RFC 1950, RFC 1952) and compares their check values; isal or zlib
    inflates the raw deflate blocks (RFC 1951) between them.
    """

    def __init__(self, file: io.FileIO, start: int = 0, wrapper: str = "gzip") -> None:
        self._file = file
        self._pending = b""
        self._wrapper = wrapper
        self._decoder = None
        self._check = 0
        self._count = 0
        self._members = 0
        self._foreign = 0
        self._ended = False
        self._size = max(0, os.fstat(file.fileno()).st_size - start)
        file.seek(start)

    def fill(self, target: memoryview) -> int:
        """As `Stream.fill`."""
        done = 0
        while done < len(target):
            if self._decoder is None and not self._open_member():
                break
            part = self._inflate(min(len(target) - done, PIECE))
            target[done : done + len(part)] = part
            done += len(part)
        return done

    def finish(self) -> Rest:
        """As `Stream.finish`."""
        zeros = _zeros_to_the_end(self)
        return Rest(zeros=zeros, foreign=self._foreign)

    def most(self) -> int:
        """As `Stream.most`."""
        return self._size * MOST_GROWTH + (1 << 16)

    def _inflate(self, limit: int) -> bytes:
        if not self._pending:
            self._pending = self._file.read(FEED)
        assert self._decoder is not None
        before = len(self._pending)
        try:
            part: bytes = self._decoder.decompress(self._pending, limit)
        except INFLATE_ERRORS:
            raise _damaged("its compressed stream is damaged") from None
        self._account(part)
        if self._decoder.eof:
            self._pending = self._decoder.unused_data
            self._close_member()
            return part
        self._pending = self._decoder.unconsumed_tail
        if not part and len(self._pending) == before:
            raise _cut("its compressed stream is cut short")
        return part

    def _account(self, part: bytes) -> None:
        sum_of = DEFLATE.crc32 if self._wrapper == "gzip" else DEFLATE.adler32
        self._check = sum_of(part, self._check)
        self._count += len(part)

    def _open_member(self) -> bool:
        """Reads the wrapper's head; False where there is no further member."""
        if self._ended:
            return False
        if self._members and (self._wrapper == "zlib" or not self._another()):
            self._ended = True
            self._foreign = self._foreign_to_the_end()
            return False
        if self._wrapper == "gzip":
            self._gzip_head()
            self._check = 0
        else:
            first, second = self._take(2)
            if first & 15 != 8 or (first * 256 + second) % 31 or second & 32:
                raise _damaged("its compressed stream does not begin as a zlib stream")
            self._check = 1
        self._count = 0
        self._members += 1
        self._decoder = DEFLATE.decompressobj(-15)
        return True

    def _another(self) -> bool:
        while len(self._pending) < 2:
            more = self._file.read(FEED)
            if not more:
                return False
            self._pending += more
        return self._pending[:2] == GZIP_MAGIC

    def _gzip_head(self) -> None:
        head = self._take(10)
        flags = head[3]
        if head[:2] != GZIP_MAGIC or head[2] != 8 or flags & 0xE0:
            raise _damaged("its gzip header has an unknown method or reserved flags")
        if flags & 4:
            size = self._take(2)
            head += size + self._take(int.from_bytes(size, "little"))
        for flag in (8, 16):
            if flags & flag:
                head += self._take_text()
        if flags & 2 and int.from_bytes(self._take(2), "little") != zlib.crc32(head) & 0xFFFF:
            raise _damaged("the check value of its gzip header is wrong")

    def _close_member(self) -> None:
        self._decoder = None
        if self._wrapper == "zlib":
            right = int.from_bytes(self._take(4), "big") == self._check
        else:
            trailer = self._take(8)
            right = int.from_bytes(trailer[:4], "little") == self._check
            if int.from_bytes(trailer[4:], "little") != self._count & 0xFFFFFFFF:
                raise _damaged("the size stated at the end of its gzip stream is wrong")
        if not right:
            raise _damaged("the check value of its compressed stream is wrong")

    def _take(self, count: int) -> bytes:
        while len(self._pending) < count:
            more = self._file.read(FEED)
            if not more:
                raise _cut("its compressed stream is cut short")
            self._pending += more
        taken, self._pending = self._pending[:count], self._pending[count:]
        return taken

    def _take_text(self) -> bytes:
        text = b""
        while not text.endswith(b"\0"):
            if len(text) >= 1 << 16:
                raise _damaged("its gzip header has a text without end")
            text += self._take(1)
        return text

    def _foreign_to_the_end(self) -> int:
        """Bytes after the last member; 0 where all of them are zero."""
        foreign, only_zeros = 0, True
        part = self._pending or self._file.read(FEED)
        self._pending = b""
        while part:
            foreign += len(part)
            only_zeros = only_zeros and not part.strip(b"\0")
            part = self._file.read(FEED)
        return 0 if only_zeros else foreign


def _zeros_to_the_end(stream: Stream) -> int:
    buffer = bytearray(DRAIN)
    total = 0
    while count := stream.fill(memoryview(buffer)):
        total += count
        if bytes(memoryview(buffer)[:count]).strip(b"\0"):
            raise VolumeError(
                "it holds more data than its header tells of",
                remedy="the header and the voxels do not belong together: get the file again",
                code="more-data",
            )
        if total > MOST_EXCESS:
            raise VolumeError("it unpacks to far more than its header tells of", code="more-data")
    return total


def _damaged(what: str) -> VolumeError:
    return VolumeError(what, remedy="copy or download the file again", code="damaged")


def _cut(what: str) -> VolumeError:
    return VolumeError(what, remedy="copy or download the file again", code="cut-short")
