"""NumPy archives (`.npz`): a zip of arrays, read row by row.

Nothing in it is unpickled, and nothing is unpacked before the sizes that it declares are compared
with each other. Array format: numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from mim3d.data.files.streams import AGAIN, open_regular
from mim3d.foundation.errors import VolumeError

MAX_ARRAYS = 64
MAX_ROWS = 500_000
MAX_ROW_BYTES = 1 << 30
MAX_HEADER = 1 << 16
"""Bytes of an array's header."""
MOST_DEFLATED = 1032
"""Bytes that one byte of a deflate stream can become (zlib.net/zlib_tech.html)."""
PIECE = 1 << 20
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, IndexError, OverflowError,
          NotImplementedError, RuntimeError)  # fmt: skip
"""What `zipfile` raises over damaged archives."""


@dataclass(frozen=True)
class Array:
    """What the header of an array in an archive says.

    Attributes:
        name: without `.npy`.
        shape: rows first.
        dtype: of a number.
        start: bytes of the header, before the first row.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


class Archive:
    """An open archive; its headers are read and checked, its numbers are not.

    Args:
        path: the file.

    Raises:
        VolumeError: it is no archive of plain arrays, or declares what it cannot hold.
    """

    def __init__(self, path: Path) -> None:
        self._file = open_regular(path)
        try:
            with _sound():
                self._zip = zipfile.ZipFile(self._file)
                self.arrays = {array.name: array for array in self._read_headers()}
        except BaseException:
            self._file.close()
            raise
        self._stream: tuple[str, IO[bytes]] | None = None
        self._row: tuple[str, int, bytes] | None = None

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if "_file" in self.__dict__:
            self.close()

    def close(self) -> None:
        """Closes the file."""
        if self.__dict__.get("_stream") is not None:
            self._stream[1].close()  # type: ignore[index]
            self._stream = None
        self._file.close()

    def row(self, name: str, number: int) -> bytes:
        """The bytes of one row; in rising order no byte is unpacked twice, and the last is kept.

        Raises:
            VolumeError: the archive is damaged up to there.
        """
        if self._row is None or self._row[:2] != (name, number):
            array = self.arrays[name]
            with _sound():
                if self._stream is None or self._stream[0] != name:
                    self._stream = (name, self._zip.open(f"{name}.npy"))
                stream = self._stream[1]
                stream.seek(array.start + number * array.row_bytes)
                content = stream.read(array.row_bytes)
            if len(content) < array.row_bytes:
                raise _damaged("it ends before its last row")
            self._row = (name, number, content)
        return self._row[2]

    def pieces(self, name: str) -> Iterator[bytes]:
        """All numbers of an array, at most a MiB at a time; at the end its checksum is compared.

        Raises:
            VolumeError: the archive is damaged.
        """
        array = self.arrays[name]
        with _sound(), self._zip.open(f"{name}.npy") as stream:
            stream.read(array.start)
            whole = PIECE - PIECE % array.dtype.itemsize
            while piece := stream.read(whole):
                yield piece

    def _read_headers(self) -> Iterator[Array]:
        members = self._zip.infolist()
        names = [member.filename for member in members]
        if len(names) > MAX_ARRAYS or len(set(names)) < len(names):
            raise _damaged("it has an array twice, or too many of them")
        if not all(name.endswith(".npy") for name in names):
            raise _damaged("it holds something else than arrays")
        held = os.fstat(self._file.fileno()).st_size
        for member in members:
            yield self._header(member, held)

    def _header(self, member: zipfile.ZipInfo, held: int) -> Array:
        name = member.filename.removesuffix(".npy")
        if member.flag_bits & 1:
            raise _damaged("it is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _damaged("it is compressed by another method than deflate")
        most = member.compress_size * (MOST_DEFLATED if member.compress_type else 1)
        if member.compress_size > held or member.file_size > most:
            raise _damaged("it declares more than it can hold")
        with self._zip.open(member) as stream:
            start = io.BytesIO(stream.read(MAX_HEADER))
        shape, fortran, dtype = _parsed(start, name)
        if dtype.kind not in "buif" or dtype.itemsize > 8 or fortran or not shape:
            raise VolumeError(
                f"`{name}` is no array of plain numbers, row after row",
                remedy="save it with `numpy.savez_compressed` as integers or floats in C order",
                code="array",
            )
        array = Array(name, shape, dtype, start.tell())
        if member.file_size != array.start + shape[0] * array.row_bytes:
            raise _damaged(f"`{name}` has another size than its header declares")
        if shape[0] > MAX_ROWS or array.row_bytes > MAX_ROW_BYTES:
            raise VolumeError(
                f"`{name}` declares {shape[0]:,} rows of {array.row_bytes:,} bytes, at most "
                f"{MAX_ROWS:,} rows of {MAX_ROW_BYTES:,} are taken",
                remedy="save large volumes in files of their own",
                code="too-large",
            )
        return array


def _parsed(start: io.BytesIO, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether it is in Fortran order, and type."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        return readers[np.lib.format.read_magic(start)](start)
    except (ValueError, SyntaxError, TypeError, KeyError, EOFError, MemoryError, RecursionError):
        what = f"the header of its array `{name}` cannot be used"
        raise VolumeError(what, remedy=AGAIN, code="array") from None


@contextlib.contextmanager
def _sound() -> Iterator[None]:
    """Turns what `zipfile` says of a damaged archive into one sentence."""
    try:
        yield
    except VolumeError:
        raise
    except BROKEN as error:
        # A closed file is a mistake of ours.
        if isinstance(error, ValueError) and "closed file" in str(error):
            raise
        raise _damaged("it is no sound zip of arrays") from None


def _damaged(what: str) -> VolumeError:
    return VolumeError(f"the archive cannot be used: {what}", remedy=AGAIN, code="archive")
