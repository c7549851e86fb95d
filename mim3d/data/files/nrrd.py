"""NRRD headers (`.nrrd`, and `.nhdr` with its data beside it), by own code.

Source: "Definition of NRRD File Format", teem.sourceforge.net/nrrd/format.html. Known fields in
known forms only. What is refused: block types, colours and complex numbers, hex and bzip2, lists
and patterns of data files.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim3d.config.read import ReadConfig
from mim3d.data.files.deflate import DeflateStream
from mim3d.data.files.geometry import Grid, lps_grid, unknown_orientation
from mim3d.data.files.layout import Axes, Layout, check_size, plain_axes, positive_sizes
from mim3d.data.files.streams import PlainStream, Stream, neighbour, open_regular, skip
from mim3d.data.files.texts import (
    LONGEST_HEADER,
    NumberStream,
    bad_header,
    data_file_name,
    header_lines,
    real_numbers,
    whole_numbers,
)
from mim3d.data.volume import Note
from mim3d.foundation.errors import VolumeError

TYPES = {
    name: kind
    for kind, names in {
        "i1": "signed char, int8, int8_t",
        "u1": "uchar, unsigned char, uint8, uint8_t",
        "i2": "short, short int, signed short, signed short int, int16, int16_t",
        "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
        "i4": "int, signed int, int32, int32_t",
        "u4": "uint, unsigned int, uint32, uint32_t",
        "i8": "longlong, long long, long long int, signed long long, signed long long int, int64,"
        " int64_t",
        "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
        "f4": "float",
        "f8": "double",
    }.items()
    for name in names.split(", ")
}
RAW, TEXT, GZIP = {"raw"}, {"txt", "text", "ascii"}, {"gz", "gzip"}
SIGNS = {
    "right-anterior-superior": (1.0, 1.0, 1.0),
    "ras": (1.0, 1.0, 1.0),
    "left-anterior-superior": (-1.0, 1.0, 1.0),
    "las": (-1.0, 1.0, 1.0),
    "left-posterior-superior": (-1.0, -1.0, 1.0),
    "lps": (-1.0, -1.0, 1.0),
}
OTHER_SPACES = {
    "scanner-xyz",
    "3d-right-handed",
    "3d-left-handed",
}
SAME = {
    "centerings": "centers",
    "axismins": "axis mins",
    "axismaxs": "axis maxs",
    "datafile": "data file",
    "byteskip": "byte skip",
    "lineskip": "line skip",
    "oldmin": "old min",
    "oldmax": "old max",
    "blocksize": "block size",
    "sampleunits": "sample units",
}
FIELDS = {
    "type", "dimension", "sizes", "spacings", "thicknesses", "axis mins", "axis maxs", "centers",
    "labels", "units", "kinds", "space", "space dimension", "space units", "space origin",
    "space directions", "measurement frame", "endian", "encoding", "data file", "byte skip",
    "line skip", "min", "max", "old min", "old max", "block size", "content", "number",
    "sample units",
}  # fmt: skip
SPATIAL_KINDS = {"domain", "space", "none", "???"}
CHANNEL_KINDS = {
    "time", "list", "point", "vector", "covariant-vector", "normal", "stub", "scalar", "2-vector",
    "3-vector", "4-vector", "3-gradient", "3-normal",
}  # fmt: skip
MOST_LINES = 10_000
UNITS = {"mm": 1.0, "m": 1000.0, "cm": 10.0, "um": 0.001, "": 1.0}


@contextlib.contextmanager
def opened(path: Path, config: ReadConfig) -> Iterator[tuple[Layout, Stream]]:
    """Opens a file, and the data file its header names; the stream stands at the voxels.

    Raises:
        VolumeError: the header breaks a rule, or the data file is not where it may be.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_regular(path))
        fields, start = parse(file)
        layout = to_layout(fields)
        if "data file" in fields:
            beside = neighbour(path, data_file_name(fields["data file"]))
            file = stack.enter_context(open_regular(beside, follow=False))
            start = 0
        yield layout, _stream(file, start, fields, layout, config)


def parse(file: io.FileIO) -> tuple[dict[str, str], int]:
    """The fields of a header, and where the bytes behind it begin.

    Raises:
        VolumeError: an unknown field or form, or a field given twice.
    """
    fields: dict[str, str] = {}
    start = 0
    for number, line, behind in header_lines(file):
        start = behind
        if number == 1:
            if not re.fullmatch(r"NRRD000[1-5]", line):
                raise bad_header("its first line names no known version")
            continue
        if not line:
            break
        name, colon, value = line.partition(":")
        if line.startswith("#") or (colon and value.startswith("=")):
            continue
        name = SAME.get(name.strip().lower(), name.strip().lower())
        if not colon or name not in FIELDS:
            raise bad_header(f"line {number} is no known field")
        if name in fields:
            raise bad_header(f"`{name}` is given twice")
        fields[name] = value.strip()
    return fields, start


def data_file(path: Path) -> Path | None:
    """The file beside a header that holds its voxels; None where the header's own file does.

    Raises:
        VolumeError: the header breaks a rule.
    """
    with open_regular(path) as file:
        fields, _ = parse(file)
    name = fields.get("data file")
    return None if name is None else neighbour(path, data_file_name(name))


def to_layout(fields: dict[str, str]) -> Layout:
    """Judges the fields by the rules.

    Raises:
        VolumeError: type, axes or geometry cannot be used.
    """
    for name in ("type", "dimension", "sizes", "encoding"):
        if name not in fields:
            raise bad_header(f"`{name}` is missing")
    stored = _stored_type(fields)
    (dimension,) = whole_numbers(fields["dimension"], 1, "dimension")
    if not 1 <= dimension <= 5:
        raise bad_header(f"`dimension` is {dimension}, 1 to 5 are possible")
    sizes = whole_numbers(fields["sizes"], dimension, "sizes")
    positive_sizes(sizes)
    directions = _directions(fields, dimension)
    spacings = _spacings(fields, dimension)
    space = _spatial_axes(fields, dimension, directions, spacings)
    axes, space = _axes(sizes, space)
    grid = _grid(fields, [directions[axis] for axis in space] if directions else None,
                 [spacings[axis] for axis in space] if spacings else None)  # fmt: skip
    return Layout(stored, axes, tuple(sizes), grid)


def _stored_type(fields: dict[str, str]) -> np.dtype[Any]:
    kind = TYPES.get(fields["type"].lower())
    if kind is None:
        raise VolumeError(
            "its voxels have a type that is no scalar intensity",
            remedy="convert it to a volume of integers or floats",
            code="voxel-type",
        )
    endian = fields.get("endian", "").lower()
    if endian not in ("little", "big", ""):
        raise bad_header("`endian` is neither `little` nor `big`")
    if not endian and int(kind[1]) > 1 and fields["encoding"].lower() not in TEXT:
        raise bad_header("`endian` is missing")
    return np.dtype((">" if endian == "big" else "<") + kind)


def _directions(fields: dict[str, str], dimension: int) -> list[list[float] | None] | None:
    """One vector of three an axis of the file, None for an axis that is not of space."""
    text = fields.get("space directions")
    if text is None:
        return None
    pieces = re.split(r"(\([^()]*\)|none)", text)
    between, found = pieces[::2], pieces[1::2]
    if "".join(between).strip() or len(found) != dimension:
        raise bad_header(f"`space directions` is not {dimension} vectors")
    vectors = [None if each == "none" else _vector(each, "space directions") for each in found]
    if len({len(vector) for vector in vectors if vector is not None}) > 1:
        raise bad_header("`space directions` has vectors of different lengths")
    return vectors


def _vector(text: str, name: str) -> list[float]:
    inner = text.strip()
    if not (inner.startswith("(") and inner.endswith(")")):
        raise bad_header(f"`{name}` is no vector")
    parts = inner[1:-1].split(",")
    numbers = real_numbers(" ".join(parts), len(parts), name)
    if len(numbers) not in (2, 3):
        raise bad_header(f"`{name}` has vectors of {len(numbers)} numbers, 3 are possible")
    return numbers


def _spacings(fields: dict[str, str], dimension: int) -> list[float] | None:
    if "spacings" not in fields:
        return None
    return real_numbers(fields["spacings"], dimension, "spacings", nan=True)


def _spatial_axes(
    fields: dict[str, str],
    dimension: int,
    directions: list[list[float] | None] | None,
    spacings: list[float] | None,
) -> list[int]:
    """Which axes of the file are of space."""
    kinds = fields.get("kinds", "").lower().split()
    if kinds and len(kinds) != dimension:
        raise bad_header(f"`kinds` is not {dimension} words")
    for kind in kinds:
        if kind not in SPATIAL_KINDS | CHANNEL_KINDS:
            raise VolumeError(
                "one of its axes is of colours, complex numbers or matrices",
                remedy="convert it to a volume of integers or floats",
                code="voxel-type",
            )
    every = range(dimension)
    if directions is not None:
        return [axis for axis in every if directions[axis] is not None]
    if any(kind in CHANNEL_KINDS for kind in kinds):
        return [axis for axis in every if kinds[axis] in SPATIAL_KINDS]
    if spacings is not None and any(map(math.isnan, spacings)):
        return [axis for axis in every if not math.isnan(spacings[axis])]
    return list(every[:3])


def _axes(sizes: list[int], space: list[int]) -> tuple[Axes, list[int]]:
    """Sizes and the channel's place; a flat image becomes one voxel thick."""
    if not 2 <= len(space) <= 3:
        raise VolumeError(f"it has {len(space)} axes of space, 2 or 3 are possible", code="axes")
    others = [axis for axis in range(len(sizes)) if axis not in space and sizes[axis] > 1]
    if len(others) > 1:
        plain_axes([*(sizes[axis] for axis in space), *(sizes[axis] for axis in others)])
    kept = sorted([*space, *others])
    dims = [sizes[axis] for axis in kept]
    channel = kept.index(others[0]) if others else None
    if len(space) == 2:
        behind = kept.index(space[-1]) + 1
        dims.insert(behind, 1)
        if channel is not None and channel >= behind:
            channel += 1
    return Axes(tuple(dims), channel), space


def _grid(
    fields: dict[str, str],
    directions: list[list[float] | None] | None,
    spacings: list[float] | None,
) -> Grid:
    """Where the voxels lie; arguments hold the axes of space only."""
    notes: list[Note] = []
    scale = _unit(fields, notes)
    signs = _signs(fields)
    vectors = [vector for vector in directions or [] if vector is not None]
    if signs is not None:
        columns = _columns(vectors, notes) * scale
        return lps_grid(columns, _space_origin(fields, notes) * scale, signs, notes)
    if vectors:
        spacing = [math.sqrt(sum(part * part for part in vector)) for vector in vectors]
    elif spacings is not None:
        spacing = spacings
    else:
        raise VolumeError(
            "its header does not say how large a voxel is",
            remedy="add `space directions` or `spacings` to the header",
            code="spacing",
        )
    if len(spacing) == 2:
        spacing = [*spacing, 1.0]
        notes.append(_thickness())
    return unknown_orientation((spacing[0], spacing[1], spacing[2]), notes, scale)


def _columns(vectors: list[list[float]], notes: list[Note]) -> NDArray[np.float64]:
    """Directions in a space of the body as columns; a flat image gets its normal, 1 long."""
    if not vectors or any(len(vector) != 3 for vector in vectors):
        raise bad_header("`space directions` is not one vector of 3 numbers for each axis of space")
    columns = np.array(vectors).T
    if columns.shape[1] == 3:
        return columns
    normal = np.cross(columns[:, 0], columns[:, 1])
    length = float(np.linalg.norm(normal))
    notes.append(_thickness())
    return np.column_stack([columns, normal / (length if length > 0 else 1.0)])


def _space_origin(fields: dict[str, str], notes: list[Note]) -> NDArray[np.float64]:
    if "space origin" not in fields:
        notes.append(Note("no-origin", "the place of the first voxel is missing: taken as 0"))
        return np.zeros(3)
    found = _vector(fields["space origin"], "space origin")
    if len(found) != 3:
        raise bad_header("`space origin` is no vector of 3 numbers")
    return np.array(found)


def _thickness() -> Note:
    return Note("thickness", "a flat image without thickness: taken as 1 mm")


def _signs(fields: dict[str, str]) -> tuple[float, float, float] | None:
    """The factors that turn the named space into RAS+; None where it is not one of the body."""
    space = fields.get("space")
    if "space dimension" in fields:
        (dimension,) = whole_numbers(fields["space dimension"], 1, "space dimension")
        if dimension not in (2, 3) or (space is not None and dimension != 3):
            raise bad_header(f"`space dimension` is {dimension}")
    if space is None and "space dimension" not in fields and "space directions" in fields:
        raise bad_header("`space directions` without `space`")
    if space is None:
        return None
    if space.lower() in OTHER_SPACES:
        return None
    if space.lower() not in SIGNS:
        raise bad_header("`space` is none that is known (LPS, RAS, LAS)")
    return SIGNS[space.lower()]


def _unit(fields: dict[str, str], notes: list[Note]) -> float:
    words = set(re.findall(r'"([^"]*)"', fields.get("space units", "")))
    if len(words) > 1:
        raise bad_header("`space units` differ between axes")
    (word,) = words or {"mm"}
    if word.strip() not in UNITS:
        raise bad_header("`space units` are none that is known (mm, cm, m, um)")
    scale = UNITS[word.strip()]
    if scale != 1:
        text = f"lengths are in {word.strip()} and were converted to mm"
        notes.append(Note("units-converted", text))
    return scale


def _stream(
    file: io.FileIO, start: int, fields: dict[str, str], layout: Layout, config: ReadConfig
) -> Stream:
    """The voxels behind line skip, decompression and byte skip, in this order."""
    encoding = fields["encoding"].lower()
    (lines,) = whole_numbers(fields.get("line skip", "0"), 1, "line skip")
    (skipped,) = whole_numbers(fields.get("byte skip", "0"), 1, "byte skip")
    if lines < 0 or lines > MOST_LINES or skipped < (-1 if encoding in RAW else 0):
        raise bad_header("`line skip` or `byte skip` is impossible")
    start = _behind_lines(file, start, lines)
    stream: Stream
    if encoding in RAW:
        stream = PlainStream(file, start)
        if skipped < 0:
            skipped = max(0, stream.most() - layout.stored_bytes)
    elif encoding in GZIP:
        stream = DeflateStream(file, start)
    elif encoding in TEXT and not skipped:
        stream = NumberStream(file, start, layout.stored)
    else:
        raise VolumeError(
            "its encoding is not read (raw, gzip and ascii are)",
            remedy="write it again with gzip",
            code="encoding",
        )
    check_size(layout, stream.most(), encoding not in RAW, config.max_bytes)
    skip(stream, skipped)
    return stream


def _behind_lines(file: io.FileIO, start: int, lines: int) -> int:
    if not lines:
        return start
    file.seek(start)
    raw = file.read(LONGEST_HEADER)
    place = 0
    for _ in range(lines):
        place = raw.find(b"\n", place) + 1
        if not place:
            raise bad_header("`line skip` goes beyond the end")
    return start + place
