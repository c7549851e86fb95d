"""Injuries of a byte string: what copying, downloading, disks and people do to files."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import numpy as np

Draw = np.random.Generator
Injury = Callable[[bytearray, int, Draw], None]
LENGTHS = (1, 2, 4, 7, 64, 512, 4096)


def injured(raw: bytes, start: int, draw: Draw) -> tuple[str, bytes]:
    """One injury behind `start`: its name and the bytes, which may by chance be the old ones."""
    name = list(INJURIES)[int(draw.integers(len(INJURIES)))]
    data = bytearray(raw)
    INJURIES[name](data, start, draw)
    return name, bytes(data)


def cut_place(raw: bytes, start: int, draw: Draw) -> int:
    """Where to cut: anywhere, at the borders of buffers, near either end of the stream."""
    kind = int(draw.integers(4))
    if kind == 0:
        step = int(draw.choice([512, 1024, 4096, 1 << 15, 1 << 16]))
        return min(max(start, int(draw.integers(1, len(raw) // step + 2)) * step), len(raw) - 1)
    if kind == 1:
        return len(raw) - int(draw.integers(1, min(40, len(raw) - start)))
    if kind == 2:
        return start + int(draw.integers(0, min(40, len(raw) - start)))
    return int(draw.integers(start, len(raw)))


def _part(data: bytearray, start: int, draw: Draw) -> slice:
    at = int(draw.integers(start, len(data)))
    return slice(at, min(at + int(draw.choice(LENGTHS)), len(data)))


def _flip_bits(data: bytearray, start: int, draw: Draw) -> None:
    for _ in range(int(draw.choice([1, 1, 1, 2, 5]))):
        data[int(draw.integers(start, len(data)))] ^= 1 << int(draw.integers(8))


def _zero(data: bytearray, start: int, draw: Draw) -> None:
    part = _part(data, start, draw)
    data[part] = bytes(part.stop - part.start)


def _overwrite(data: bytearray, start: int, draw: Draw) -> None:
    part = _part(data, start, draw)
    data[part] = draw.bytes(part.stop - part.start)


def _insert(data: bytearray, start: int, draw: Draw) -> None:
    at = int(draw.integers(start, len(data)))
    data[at:at] = draw.bytes(int(draw.choice(LENGTHS)))


def _delete(data: bytearray, start: int, draw: Draw) -> None:
    del data[_part(data, start, draw)]


def _repeat(data: bytearray, start: int, draw: Draw) -> None:
    part = _part(data, start, draw)
    data[part.start : part.start] = data[part]


def _swap(data: bytearray, start: int, draw: Draw) -> None:
    first, second = _part(data, start, draw), _part(data, start, draw)
    if first.stop <= second.start:
        kept = data[first]
        middle = data[first.stop : second.start]
        data[first.start : second.stop] = data[second] + middle + kept


def _append(data: bytearray, start: int, draw: Draw) -> None:
    data += draw.bytes(int(draw.choice(LENGTHS)))


def _trailer(data: bytearray, start: int, draw: Draw) -> None:
    """Check value and stated size are the last eight bytes (of zlib: the last four)."""
    data[-int(draw.integers(1, 9))] ^= 1 << int(draw.integers(8))


def _deflate_anew(data: bytearray, start: int, draw: Draw) -> None:
    """A changed byte under the old check value: only comparing that value tells."""
    stream = bytes(data[start:])
    is_gzip = stream[:2] == b"\x1f\x8b"
    content = bytearray(gzip.decompress(stream) if is_gzip else zlib.decompress(stream))
    content[int(draw.integers(len(content)))] ^= 1 << int(draw.integers(8))
    end = -8 if is_gzip else -4
    squeezed = gzip.compress(content, 1) if is_gzip else zlib.compress(content, 1)
    data[start:] = squeezed[:end] + stream[end:]


INJURIES: dict[str, Injury] = {
    "bits flipped": _flip_bits,
    "a block zeroed": _zero,
    "a block overwritten": _overwrite,
    "bytes inserted": _insert,
    "bytes deleted": _delete,
    "a block repeated": _repeat,
    "blocks swapped": _swap,
    "bytes appended": _append,
    "check value or size flipped": _trailer,
    "deflated anew": _deflate_anew,
}
