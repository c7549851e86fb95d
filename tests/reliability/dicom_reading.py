"""What DICOM files say when they are read plainly: the oracle of the proofs.

Shares no code with mim3d and checks nothing: elements by PS3.5, 7.1, the place of a pixel by the
formula of PS3.3, C.7.6.2.1.1, values by shifting and rescaling each slice by its own numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tests.reliability.dicom_series import (
    ALLOCATED,
    BETWEEN,
    BIG,
    COLUMNS,
    EXPLICIT,
    IMPLICIT,
    INTERCEPT,
    LONG,
    ORIENTATION,
    PIXELS,
    POSITION,
    RLE,
    ROWS,
    SIGNED,
    SLOPE,
    SPACING,
    STORED,
    THICKNESS,
    Tag,
)


def grid_of(files: Sequence[bytes]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Voxels `columns rows slices` and the affine (RAS+) of a series; equal slices count once."""
    slices = [elements_of(raw) for raw in files]
    row, column = np.split(_numbers(slices[0], ORIENTATION), 2)
    row, column = row / np.linalg.norm(row), column / np.linalg.norm(column)
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    along = {id(each): float(_numbers(each, POSITION) @ normal) for each in slices}
    slices.sort(key=lambda each: along[id(each)])
    kept = slices[:1]
    for each in slices[1:]:
        if along[id(each)] - along[id(kept[-1])] > 1e-3:
            kept.append(each)
    first, last = (_numbers(each, POSITION) for each in (kept[0], kept[-1]))
    if len(kept) > 1:
        step = (last - first) / (len(kept) - 1)
    else:
        step = normal * next(t for t in map(_single(kept[0]), (BETWEEN, THICKNESS)) if t > 0)
    down, across = _numbers(kept[0], SPACING)
    affine = np.eye(4)
    affine[:3] = np.column_stack([row * across, column * down, step, first])
    affine[:2] *= -1
    return np.stack([_pixels(each).T for each in kept], axis=2), affine


def _numbers(elements: dict[Tag, bytes], tag: Tag) -> NDArray[np.float64]:
    text = elements[tag].decode("latin-1").strip("\0 ")
    return np.array([float(part) for part in text.split("\\")])


def _single(elements: dict[Tag, bytes]) -> Callable[[Tag], float]:
    def number(tag: Tag) -> float:
        return float(_numbers(elements, tag)[0]) if elements.get(tag, b"").strip(b"\0 ") else 0.0

    return number


def _pixels(elements: dict[Tag, bytes]) -> NDArray[np.float64]:
    """`rows columns`, rescaled."""
    order = ">" if elements[(0, 0)] == BIG.encode() else "<"
    # The unpacked frame is little endian.
    rows, columns, allocated, stored, signed = (
        struct.unpack(f"{order}H", elements[tag])[0]
        for tag in (ROWS, COLUMNS, ALLOCATED, STORED, SIGNED)
    )
    data = elements[PIXELS][: rows * columns * allocated // 8]
    values = np.frombuffer(data, f"{order}u{allocated // 8}").astype(np.int64) % 2**stored
    if signed:
        values = np.where(values >= 2 ** (stored - 1), values - 2**stored, values)
    number = _single(elements)
    slope = number(SLOPE) if elements.get(SLOPE, b"").strip(b"\0 ") else 1.0
    rescaled: NDArray[np.float64] = values.reshape(rows, columns) * slope + number(INTERCEPT)
    return rescaled


def elements_of(raw: bytes) -> dict[Tag, bytes]:
    """The values of a file's elements up to its pixels; compressed frames are unpacked."""
    found: dict[Tag, bytes] = {}
    at, syntax, order = 132, EXPLICIT, "<"
    while at < len(raw):
        group = struct.unpack_from("<H", raw, at)[0]
        if group != 2 and syntax == EXPLICIT and (2, 0x10) in found:
            syntax = found[(2, 0x10)].strip(b"\0 ").decode("latin-1")
            order = ">" if syntax == BIG else "<"
        explicit = syntax != IMPLICIT
        tag, length, at = _head(raw, at, explicit, order)
        if tag == PIXELS and syntax == RLE:
            return {**found, tag: _unpacked(raw, at), (0, 0): syntax.encode()}
        if length == 0xFFFFFFFF:
            at = _behind(raw, at, explicit, order)
            continue
        found[tag] = raw[at : at + length]
        at += length
        if tag == PIXELS:
            break
    return {**found, (0, 0): syntax.encode()}


def _head(raw: bytes, at: int, explicit: bool, order: str) -> tuple[Tag, int, int]:
    """Tag and length of the element at a place, and where its value begins."""
    group, number = struct.unpack_from(f"{order}HH", raw, at)
    if not explicit or group == 0xFFFE:
        return (group, number), struct.unpack_from(f"{order}I", raw, at + 4)[0], at + 8
    if raw[at + 4 : at + 6].decode() in (*LONG, "OD", "OL", "OV", "SV", "UC", "UR", "UV"):
        return (group, number), struct.unpack_from(f"{order}I", raw, at + 8)[0], at + 12
    return (group, number), struct.unpack_from(f"{order}H", raw, at + 6)[0], at + 8


def _behind(raw: bytes, at: int, explicit: bool, order: str) -> int:
    """Where a sequence of undefined length ends."""
    depth = 1
    while depth:
        tag, length, at = _head(raw, at, explicit, order)
        if tag in ((0xFFFE, 0xE0DD), (0xFFFE, 0xE00D)):
            depth -= 1
        elif length == 0xFFFFFFFF:
            depth += 1
        elif tag != (0xFFFE, 0xE000):
            at += length
    return at


def _unpacked(raw: bytes, at: int) -> bytes:
    """A frame of two RLE segments as little-endian pixels."""
    _, length, at = _head(raw, at, True, "<")
    _, length, at = _head(raw, at + length, True, "<")
    frame = raw[at : at + length]
    first, second = struct.unpack_from("<2I", frame, 4)
    planes = []
    for packed in (frame[first:second], frame[second:]):
        plane, place = bytearray(), 0
        while place + 1 < len(packed):
            count = packed[place]
            if count < 128:
                plane += packed[place + 1 : place + 2 + count]
                place += 2 + count
            elif count > 128:
                plane += packed[place + 1 : place + 2] * (257 - count)
                place += 2
            else:
                place += 1
        planes.append(plane)
    return bytes(byte for pair in zip(planes[1], planes[0], strict=False) for byte in pair)
