"""Bytes out of gzip and zlib streams, every check value compared before the stream is over.

Own code reads the wrappers (RFC 1950, RFC 1952); isal or zlib inflates the raw deflate blocks
(RFC 1951) between them.
"""

from __future__ import annotations

import importlib.util
import io
import os
import zlib
from types import ModuleType

from mim3d.data.files.streams import AGAIN, FEED, Rest, zeros_to_the_end
from mim3d.foundation.errors import VolumeError

FIRST_BITE = 1 << 10
"""Compressed bytes that a member begins with; twice as many each time up to `FEED`. What is left of
a bite is copied when a member ends, which a file of a million members must not multiply."""
MOST_EMPTY = 1 << 14
"""Members without content in a row; a file of nothing else would keep the reader for minutes."""
PIECE = 1 << 17
"""The most bytes inflated at once: they stay in the cache until they are checked and copied, which
is a third faster than with 4 MiB and as fast as inflating into the final memory."""
MOST_GROWTH = 1032
"""A deflate stream cannot grow by more than this factor (zlib's technical notes)."""
LONGEST_NAME = 1 << 12
"""Of a file or a comment in the header of a gzip member."""
GZIP_MAGIC = b"\x1f\x8b"
CUT = "its compressed stream is cut short"


def _fastest() -> ModuleType:
    # isal inflates three times as fast as zlib; chosen by looking, once.
    if importlib.util.find_spec("isal") is not None:
        from isal import isal_zlib

        return isal_zlib
    return zlib


DEFLATE = _fastest()
INFLATE_ERRORS: tuple[type[Exception], ...] = (zlib.error, DEFLATE.error)


class StreamCut(VolumeError):
    """A compressed stream that ends in its middle."""

    given = 0
    """Bytes that were written before it did, by the call that raised."""


class DeflateStream:
    """A gzip stream of one or more members, or one zlib stream, from `start` to the file's end."""

    def __init__(self, file: io.FileIO, start: int = 0, wrapper: str = "gzip") -> None:
        self._file = file
        self._pending = memoryview(b"")
        self._bite = FIRST_BITE
        self._wrapper = wrapper
        self._decoder = None
        self._check = 0
        self._count = 0
        self._members = 0
        self._empty = 0
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
            try:
                part = self._inflate(min(len(target) - done, PIECE))
            except StreamCut as cut:
                cut.given = done
                raise
            target[done : done + len(part)] = part
            done += len(part)
        return done

    def finish(self, wanted: int) -> Rest:
        """As `Stream.finish`."""
        zeros = zeros_to_the_end(self, wanted)
        return Rest(zeros=zeros, foreign=self._foreign)

    def most(self) -> int:
        """As `Stream.most`."""
        return self._size * MOST_GROWTH + (1 << 16)

    def _inflate(self, limit: int) -> bytes:
        if not self._pending:
            self._more()
        assert self._decoder is not None
        bite = self._pending[: self._bite]
        try:
            part: bytes = self._decoder.decompress(bite, limit)
        except INFLATE_ERRORS:
            raise _damaged("its compressed stream is damaged") from None
        self._account(part)
        if self._decoder.eof:
            self._give_back(len(bite), self._decoder.unused_data)
            self._close_member()
            return part
        used = len(bite) - len(self._decoder.unconsumed_tail)
        self._pending = self._pending[used:]
        self._bite = min(2 * self._bite, FEED)
        if not part and not used:
            raise StreamCut(CUT, remedy=AGAIN, code="cut-short")
        return part

    def _give_back(self, bite: int, unused: bytes) -> None:
        """Takes up behind the member; isal may give back more than its last bite."""
        behind = self._pending[bite - len(unused) :] if len(unused) <= bite else None
        if behind is None:
            behind = memoryview(unused + bytes(self._pending[bite:]))
        self._pending = behind

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
            if first & 15 != 8 or first >> 4 > 7 or (first * 256 + second) % 31 or second & 32:
                raise _damaged("its compressed stream does not begin as a zlib stream")
            self._check = 1
        self._count = 0
        self._bite = FIRST_BITE
        self._members += 1
        self._decoder = DEFLATE.decompressobj(-15)
        return True

    def _another(self) -> bool:
        while len(self._pending) < 2:
            if not self._more():
                return False
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
        self._empty = 0 if self._count else self._empty + 1
        if self._empty > MOST_EMPTY:
            raise _damaged("its gzip stream has thousands of empty members")
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
            if not self._more():
                raise VolumeError(CUT, remedy=AGAIN, code="cut-short")
        taken, self._pending = bytes(self._pending[:count]), self._pending[count:]
        return taken

    def _take_text(self) -> bytes:
        text = bytes(self._pending[:LONGEST_NAME])
        while (end := text.find(b"\0")) < 0:
            if len(text) >= LONGEST_NAME:
                raise _damaged("its gzip header has a text without end")
            if not self._more():
                raise VolumeError(CUT, remedy=AGAIN, code="cut-short")
            text = bytes(self._pending[:LONGEST_NAME])
        return self._take(end + 1)

    def _more(self) -> bool:
        """Reads on in the file; False at its end."""
        more = self._file.read(FEED)
        self._pending = memoryview(bytes(self._pending) + more)
        return bool(more)

    def _foreign_to_the_end(self) -> int:
        """Bytes after the last member; 0 where all of them are zero."""
        foreign, only_zeros = 0, True
        part = bytes(self._pending) or self._file.read(FEED)
        self._pending = memoryview(b"")
        while part:
            foreign += len(part)
            only_zeros = only_zeros and not part.strip(b"\0")
            part = self._file.read(FEED)
        return 0 if only_zeros else foreign


def _damaged(what: str) -> VolumeError:
    return VolumeError(what, remedy=AGAIN, code="damaged")
