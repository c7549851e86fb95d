"""Text headers (NRRD, MetaImage) and numbers written as text, bounded in every direction.

A header holds at most 1 MiB in lines of at most 64 KiB. Numbers are Python's, so that nothing
wraps. What a header says in words never appears in an error: it may name a patient.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from mim3d.data.files.streams import FEED, Rest, more_data
from mim3d.foundation.errors import VolumeError

LONGEST_HEADER = 1 << 20
LONGEST_LINE = 1 << 16
LONGEST_NUMBER = 64
LONGEST_NAME = 1 << 12
WHOLE = re.compile(r"[+-]?[0-9]{1,20}")


def header_lines(file: io.FileIO) -> Iterator[tuple[int, str, int]]:
    """Lines from the front of a file: number, text without its ending, where the next one begins.

    Raises:
        VolumeError: header or line too long.
    """
    file.seek(0)
    raw = b""
    while len(raw) < LONGEST_HEADER and (more := file.read(LONGEST_HEADER - len(raw))):
        raw += more
    start, number = 0, 0
    while start < len(raw):
        stop = raw.find(b"\n", start, start + LONGEST_LINE)
        if stop < 0:
            stop = len(raw)
            if stop - start >= LONGEST_LINE or len(raw) == LONGEST_HEADER:
                raise bad_header("a line or the whole of it is too long")
        number += 1
        # Latin-1: every byte is a letter, so that no header can stop the parser.
        yield number, raw[start:stop].decode("latin-1").rstrip("\r"), stop + 1
        start = stop + 1
    if len(raw) == LONGEST_HEADER:
        raise bad_header("it is too long")


def bad_header(what: str) -> VolumeError:
    """The error for a header that breaks a rule of its format."""
    return VolumeError(f"its header cannot be used: {what}", code="header")


def whole_numbers(text: str, count: int | None, name: str) -> list[int]:
    """Whole numbers divided by spaces.

    Raises:
        VolumeError: another number of them, or something else.
    """
    parts = text.split()
    if not all(WHOLE.fullmatch(part) for part in parts) or len(parts) != (count or len(parts)):
        raise bad_header(f"`{name}` is not {count or 'a list of'} whole numbers")
    return [int(part) for part in parts]


def real_numbers(text: str, count: int, name: str, *, nan: bool = False) -> list[float]:
    """Finite numbers divided by spaces; NaN only where it is allowed.

    Raises:
        VolumeError: another number of them, or something else.
    """
    parts = text.split()
    try:
        if any(len(part) > LONGEST_NUMBER or "_" in part for part in parts):
            raise ValueError
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    finite = all(math.isfinite(number) or (nan and math.isnan(number)) for number in numbers)
    if len(numbers) != count or not finite:
        raise bad_header(f"`{name}` is not {count} finite numbers")
    return numbers


def data_file_name(text: str) -> str:
    """The name of a data file out of a header's Latin-1 text.

    Raises:
        VolumeError: it is a list or a pattern of files.
    """
    pattern = len(text) > LONGEST_NAME or re.search(r"%[0-9]*[a-z].*\s-?[0-9]", text)
    if text.upper().startswith("LIST") or pattern:
        raise VolumeError(
            "its header names a list or a pattern of data files, which are not read",
            remedy="write the volume into one file",
            code="data-file",
        )
    return os.fsdecode(text.encode("latin-1"))


class NumberStream:
    """Voxels written as text, given out as the bytes of a type."""

    def __init__(self, file: io.FileIO, start: int, stored: np.dtype[Any]) -> None:
        self._file = file
        self._stored = stored
        self._text = b""
        self._ready = b""
        self._size = max(0, os.fstat(file.fileno()).st_size - start)
        file.seek(start)

    def fill(self, target: memoryview) -> int:
        """As `Stream.fill`."""
        done = 0
        while done < len(target):
            if not self._ready and not self._parse():
                break
            part = self._ready[: len(target) - done]
            target[done : done + len(part)] = part
            self._ready = self._ready[len(part) :]
            done += len(part)
        return done

    def finish(self, wanted: int) -> Rest:
        """As `Stream.finish`."""
        if self._ready or self._parse():
            raise more_data(wanted + len(self._ready), wanted, at_least=True)
        return Rest()

    def most(self) -> int:
        """As `Stream.most`."""
        # A digit and a space a number.
        return (self._size + 1) // 2 * self._stored.itemsize

    def _parse(self) -> bool:
        """Makes the next numbers ready; False at the end of the file."""
        more = b" "
        while more:
            more = self._file.read(FEED)
            text = self._text + more
            parts, self._text = text.split(), b""
            if more and not text[-1:].isspace():
                # The last number may go on in the next piece.
                self._text = parts.pop()
                if len(self._text) > LONGEST_NUMBER:
                    raise bad_header("its voxels are no numbers")
            if parts:
                self._ready = self._to_bytes(parts)
                return True
        return False

    def _to_bytes(self, parts: list[bytes]) -> bytes:
        try:
            if any(len(part) > LONGEST_NUMBER or b"_" in part for part in parts):
                raise ValueError
            if self._stored.kind == "f":
                with np.errstate(over="ignore"):
                    return np.array([float(part) for part in parts]).astype(self._stored).tobytes()
            numbers = [int(part) for part in parts]
            limits = np.iinfo(self._stored)
            if min(numbers) < limits.min or max(numbers) > limits.max:
                raise ValueError
            return np.array(numbers, dtype=self._stored).tobytes()
        except ValueError:
            raise VolumeError("its voxels are no numbers of its type", code="damaged") from None
