"""DICOM series made element by element, in four encodings."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Tag = tuple[int, int]
Elements = dict[Tag, tuple[str, bytes]]

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
BIG, RLE = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5"
SERIES, POSITION, ORIENTATION = (0x0020, 0x000E), (0x0020, 0x0032), (0x0020, 0x0037)
SPACING, THICKNESS, BETWEEN = (0x0028, 0x0030), (0x0018, 0x0050), (0x0018, 0x0088)
ROWS, COLUMNS, STORED = (0x0028, 0x0010), (0x0028, 0x0011), (0x0028, 0x0101)
ALLOCATED, SIGNED = (0x0028, 0x0100), (0x0028, 0x0103)
SLOPE, INTERCEPT = (0x0028, 0x1053), (0x0028, 0x1052)
SAMPLES, PHOTOMETRIC, FRAMES = (0x0028, 0x0002), (0x0028, 0x0004), (0x0028, 0x0008)
PIXELS = (0x7FE0, 0x0010)
LONG = ("OB", "OW", "OF", "UN", "SQ", "UT")


@dataclass(frozen=True)
class Plan:
    """A series before it is written.

    Args:
        slices: the elements of each, pixels included, in order along the normal.
        voxels: `columns rows slices`, rescaled.
        affine: (4, 4), voxel of `voxels` to millimetres, RAS+.
        syntax: how the files are encoded.
    """

    slices: list[Elements]
    voxels: NDArray[np.float64]
    affine: NDArray[np.float64]
    syntax: str = EXPLICIT


def draw_series(random: np.random.Generator, count: int, syntax: str = EXPLICIT) -> Plan:
    """A sound series of `count` slices in any orientation, of any spacing, with 9 x 8 pixels."""
    turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
    turn *= np.linalg.det(turn)
    row, column, normal = turn[:, 0], turn[:, 1], np.cross(turn[:, 0], turn[:, 1])
    spacing = random.uniform(0.4, 3, 3).round(3)
    first = random.uniform(-200, 200, 3).round(2)
    stored = _pixels(random, count)
    slope, intercept = (1.0, 0.0) if random.random() < 0.5 else (2.5, -1024.0)
    slices = []
    for k in range(count):
        place = first + k * spacing[2] * normal
        pixels = stored[:, :, k].T.astype(">i2" if syntax == BIG else "<i2")
        data = rle(pixels.tobytes()) if syntax == RLE else pixels.tobytes()
        elements: Elements = {
            (0x0008, 0x0060): ("CS", b"CT"),
            (0x0010, 0x0010): ("PN", b"PLANTED^NAME"),
            THICKNESS: ("DS", decimals(spacing[2])),
            SERIES: ("UI", b"1.2.3"),
            (0x0020, 0x0013): ("IS", b"%d" % (k + 1)),
            POSITION: ("DS", decimals(*place)),
            ORIENTATION: ("DS", decimals(*row, *column)),
            SAMPLES: ("US", short(1, syntax)),
            PHOTOMETRIC: ("CS", b"MONOCHROME2"),
            ROWS: ("US", short(8, syntax)),
            COLUMNS: ("US", short(9, syntax)),
            SPACING: ("DS", decimals(spacing[1], spacing[0])),
            ALLOCATED: ("US", short(16, syntax)),
            STORED: ("US", short(16, syntax)),
            (0x0028, 0x0102): ("US", short(15, syntax)),
            SIGNED: ("US", short(1, syntax)),
            PIXELS: ("OW", data),
        }
        if (slope, intercept) != (1.0, 0.0):
            elements[INTERCEPT] = ("DS", decimals(intercept))
            elements[SLOPE] = ("DS", decimals(slope))
        slices.append(elements)
    affine = np.eye(4)
    affine[:3] = np.column_stack(
        [row * spacing[0], column * spacing[1], normal * spacing[2], first]
    )
    affine[:2] *= -1
    return Plan(slices, np.asarray(stored * slope + intercept, np.float64), affine, syntax)


def _pixels(random: np.random.Generator, count: int) -> NDArray[np.int64]:
    """`columns rows slices`, equal to themselves under no flip or turn."""
    i, j, k = np.indices((9, 8, count))
    noise = random.integers(0, 9, (9, 8, count))
    found: NDArray[np.int64] = 3 * i + 40 * j + 400 * k + noise - 100
    return found


def decimals(*numbers: float) -> bytes:
    """The numbers of one DS element, of at most 16 characters each."""
    return "\\".join(f"{number:.9g}"[:16] for number in numbers).encode()


def short(number: int, syntax: str = EXPLICIT) -> bytes:
    """The value of a US element."""
    return struct.pack(">H" if syntax == BIG else "<H", number)


def encoded(elements: Elements, syntax: str = EXPLICIT) -> bytes:
    """A file of these elements in rising order."""
    meta: Elements = {
        (0x0002, 0x0002): ("UI", b"1.2.840.10008.5.1.4.1.1.2"),
        (0x0002, 0x0010): ("UI", syntax.encode()),
    }
    head = b"".join(_element(tag, *meta[tag], EXPLICIT) for tag in sorted(meta))
    head = _element((2, 0), "UL", struct.pack("<I", len(head)), EXPLICIT) + head
    body = b"".join(_element(tag, *elements[tag], syntax) for tag in sorted(elements))
    return bytes(128) + b"DICM" + head + body


def _element(tag: Tag, form: str, value: bytes, syntax: str) -> bytes:
    order = ">" if syntax == BIG else "<"
    if len(value) % 2:
        value += b"\0" if form in ("UI", "OB", "OW") else b" "
    name = struct.pack(f"{order}HH", *tag)
    if tag == PIXELS and syntax == RLE:
        item = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
        item += struct.pack("<HHI", 0xFFFE, 0xE000, len(value)) + value
        end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        return name + b"OB\0\0" + struct.pack("<I", 0xFFFFFFFF) + item + end
    if syntax == IMPLICIT:
        return name + struct.pack("<I", len(value)) + value
    if form in LONG:
        return name + form.encode() + struct.pack(f"{order}HI", 0, len(value)) + value
    return name + form.encode() + struct.pack(f"{order}H", len(value)) + value


def rle(data: bytes) -> bytes:
    """PS3.5, annex G: a segment of the high bytes, one of the low ones; literal runs only."""
    segments = []
    for plane in (data[1::2], data[0::2]):
        runs = [plane[at : at + 128] for at in range(0, len(plane), 128)]
        packed = b"".join(bytes([len(run) - 1]) + run for run in runs)
        segments.append(packed + b"\0" * (len(packed) % 2))
    return struct.pack("<16I", 2, 64, 64 + len(segments[0]), *[0] * 13) + b"".join(segments)


def write_series(folder: Path, files: list[bytes]) -> None:
    """Writes files under names that look alike."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(files):
        (folder / f"IM{number:03}.dcm").write_bytes(content)
