"""Segmentations as 3D Slicer's `.seg.nrrd`: a label map whose header holds names and colours.

Source: "Segmentation file (.seg.nrrd)", slicer.readthedocs.io, developer guide, MRML overview. One
layer, no overlap: each segment is a value of the label map. ITK-SNAP and SimpleITK read the same
file as a plain NRRD.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim3d.data.classes import ClassTable
from mim3d.data.files.deflate import DeflateStream
from mim3d.data.files.streams import Rest, open_regular
from mim3d.data.files.texts import bad_header, header_lines
from mim3d.data.files.values import INTEGERS
from mim3d.data.files.writing import next_bytes, slabs, write_gzip
from mim3d.data.palette import Rgb
from mim3d.data.volume import Volume, to_file_order
from mim3d.foundation import atomic
from mim3d.foundation.disk import unlike
from mim3d.foundation.errors import ShapeError, UserError, VolumeError

ENDING = ".seg.nrrd"
KEY = re.compile(r"Segment(\d{1,5})_(Name|Color|LabelValue|Layer):=(.*)")
NO_EXTENT = "0 -1 0 -1 0 -1"
"""Of a segment that has no voxel, as 3D Slicer writes it."""


@dataclass(frozen=True)
class Segment:
    """One segment of a file: its value in the label map, what it is called, its colour if any."""

    value: int
    name: str
    colour: Rgb | None


def write_segmentation(
    path: str | os.PathLike[str], labels: NDArray[Any], like: Volume, classes: ClassTable
) -> None:
    """Writes a label map with names and colours on the grid of the file `like` was read from.

    Args:
        path: ends in `.seg.nrrd`; replaced whole if it exists.
        labels: `x y z` in RAS+, values of `classes`.
        like: the volume the labels belong to.
        classes: a segment for each but the background, with or without voxels.

    Raises:
        ShapeError: the labels are not on the grid of `like`.
        UserError: values that are no class, or another ending.
        DiskError: it cannot be written, or does not read back; the older file is untouched.
    """
    path = Path(path)
    if not path.name.lower().endswith(ENDING):
        raise UserError(f"segmentations end in `{ENDING}`", where=os.fspath(path), code="name")
    if labels.ndim != 3:
        raise ShapeError(f"write_segmentation expects `x y z`, got the shape {labels.shape}")
    classes.to_index(labels)  # refuses foreign values
    largest = max(classes.values[-1], classes.ignore_value or 0)
    stored = np.dtype(next(kind for kind in INTEGERS if largest <= np.iinfo(kind).max))
    stored = stored.newbyteorder("<")
    ordered = to_file_order(labels, like.origin)[None]
    header = atomic.utf8("\n".join(_header(ordered[0], stored, like, classes)) + "\n\n")
    with atomic.whole_file(path) as temporary:
        with open(temporary, "wb") as file:
            file.write(header)
            write_gzip(file, b"", ordered, stored)
        if not _reads_back(temporary, header, ordered, stored):
            raise unlike(path)


def read_segments(path: Path) -> tuple[Segment, ...]:
    """The segments that a NRRD header names, in their order; none in a plain NRRD.

    Raises:
        VolumeError: the header is damaged, or segments overlap in several layers.
    """
    found: dict[int, dict[str, str]] = {}
    with open_regular(path) as file:
        for number, line, _ in header_lines(file):
            if number == 1 and not line.startswith("NRRD"):
                return ()
            if not line:
                break
            if matched := KEY.fullmatch(line.encode("latin-1").decode("utf-8", "replace")):
                found.setdefault(int(matched[1]), {})[matched[2]] = matched[3].strip()
    if len({fields.get("Layer", "0") for fields in found.values()}) > 1:
        raise VolumeError(
            "its segments overlap and lie in several layers",
            where=os.fspath(path),
            remedy="export them as one label map in which each voxel has one value",
            code="layers",
        )
    return tuple(_segment(place, found[place]) for place in sorted(found))


def _segment(place: int, fields: dict[str, str]) -> Segment:
    value = fields.get("LabelValue", str(place + 1))
    if not value.isdecimal() or int(value) > np.iinfo(np.uint16).max:
        raise bad_header(f"`Segment{place}_LabelValue` is no value of a label map")
    name = re.sub(r"\\(.)", lambda m: " " if m[1] == "n" else m[1], fields.get("Name", ""))
    return Segment(int(value), name or f"label {value}", _colour(fields.get("Color", "")))


def _colour(text: str) -> Rgb | None:
    """Three shares of 1 as bytes; None for anything else: a colour is never worth an error."""
    try:
        shares = [float(part) for part in text.split()]
    except ValueError:
        return None
    if len(shares) != 3 or not all(math.isfinite(share) and 0 <= share <= 1 for share in shares):
        return None
    red, green, blue = (round(255 * share) for share in shares)
    return red, green, blue


def _header(
    ordered: NDArray[Any], stored: np.dtype[Any], like: Volume, classes: ClassTable
) -> Iterator[str]:
    origin = like.origin
    yield from ("NRRD0004", f"type: {'unsigned char' if stored.itemsize == 1 else 'ushort'}")
    yield "dimension: 3"
    # NRRD's spaces are those of the body; a file without orientation must not gain one.
    yield "space: left-posterior-superior" if origin.has_orientation else "space dimension: 3"
    yield f"sizes: {' '.join(map(str, ordered.shape))}"
    turned = np.diag([-1.0, -1.0, 1.0, 1.0]) @ origin.affine
    lps = turned if origin.has_orientation else origin.affine
    yield f"space directions: {' '.join(_vector(lps[:3, axis]) for axis in range(3))}"
    yield from ("kinds: domain domain domain", "endian: little", "encoding: gzip")
    yield f"space origin: {_vector(lps[:3, 3])}"
    rows = zip(classes.values, classes.names, classes.colours, strict=True)
    for place, (value, name, colour) in enumerate(row for row in rows if row[0] != 0):
        prefix = f"Segment{place}"
        yield f"{prefix}_ID:=Segment_{value}"
        yield f"{prefix}_Name:={_escaped(name)}"
        yield f"{prefix}_NameAutoGenerated:=0"
        yield f"{prefix}_Color:={' '.join(f'{part / 255:.6f}' for part in colour)}"
        yield f"{prefix}_ColorAutoGenerated:=0"
        yield f"{prefix}_LabelValue:={value}"
        yield f"{prefix}_Layer:=0"
        yield f"{prefix}_Extent:={_extent(ordered == value)}"
    yield "Segmentation_ContainedRepresentationNames:=Binary labelmap|"
    yield "Segmentation_MasterRepresentation:=Binary labelmap"
    yield "Segmentation_ReferenceImageExtentOffset:=0 0 0"


def _vector(numbers: NDArray[np.float64]) -> str:
    # 17 digits are the number itself.
    return f"({','.join(format(number, '.17g') for number in numbers.tolist())})"


def _escaped(name: str) -> str:
    """A name on one line: NRRD knows backslash and line end as escapes."""
    plain = "".join(letter if letter.isprintable() else " " for letter in name)
    return plain.replace("\\", "\\\\")


def _extent(mask: NDArray[np.bool_]) -> str:
    """First and last index of the segment along each axis of the file."""
    if not mask.any():
        return NO_EXTENT
    ends = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(mask.any(axis=others))
        ends += [int(found[0]), int(found[-1])]
    return " ".join(map(str, ends))


def _reads_back(path: Path, header: bytes, ordered: NDArray[Any], stored: np.dtype[Any]) -> bool:
    with io.FileIO(path) as file:
        if file.read(len(header)) != header:
            return False
        stream = DeflateStream(file, len(header))
        try:
            equal = all(next_bytes(stream, len(s)) == s for s in slabs(ordered, stored))
            return equal and stream.finish(0) == Rest()
        except VolumeError:
            return False
