"""MetaImage headers (`.mha`, and `.mhd` with its data beside it), by own code.

Source: itk.org/Wiki/ITK/MetaIO/Documentation and MetaIO's own behaviour in ITK 5.4. The frame is
LPS; `TransformMatrix` holds the direction of one axis after the other; `AnatomicalOrientation` is
a comment. ITK adds whatever fields a program put into its dictionary: a field of an unknown name is
passed over, but only where every field that decides about voxels and place is there, since it
might be one of those, misspelt.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim3d.config.read import ReadConfig
from mim3d.data.files.deflate import GZIP_MAGIC, DeflateStream
from mim3d.data.files.geometry import Grid, lps_grid
from mim3d.data.files.layout import Axes, Layout, check_size, plain_axes, positive_sizes
from mim3d.data.files.streams import PlainStream, Stream, neighbour, open_regular, skip
from mim3d.data.files.texts import (
    bad_header,
    data_file_name,
    header_lines,
    real_numbers,
    whole_numbers,
)
from mim3d.data.volume import Note
from mim3d.foundation.errors import VolumeError

TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2",
    "MET_INT": "i4", "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
SAME = {
    "Rotation": "TransformMatrix",
    "Orientation": "TransformMatrix",
    "Position": "Offset",
    "Origin": "Offset",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}
TEXTS = {
    "ObjectType", "ObjectSubType", "TransformType", "Name", "AcquisitionDate",
    "AnatomicalOrientation", "DistanceUnits", "Modality", "ElementType", "ElementDataFile",
}  # fmt: skip
FIELDS = TEXTS | {
    "NDims", "ID", "ParentID", "Comment", "Color", "BinaryData", "BinaryDataByteOrderMSB",
    "CompressedData", "CompressedDataSize", "CompressionLevel", "TransformMatrix", "Offset",
    "CenterOfRotation", "ElementSpacing", "ElementSize", "DimSize", "HeaderSize",
    "HeaderSizePerSlice", "SequenceID", "ElementMin", "ElementMax", "ElementNumberOfChannels",
    "ElementToIntensityFunctionSlope", "ElementToIntensityFunctionOffset",
}  # fmt: skip
DECIDING = ("TransformMatrix", "Offset", "ElementSpacing", "BinaryDataByteOrderMSB")
LONGEST_TEXT = 255
"""MetaIO's own buffers end here; what is longer was not written by it."""
UNITS = {"mm": 1.0, "cm": 10.0, "um": 0.001, "?": 1.0}


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
        if fields["ElementDataFile"].upper() != "LOCAL":
            beside = neighbour(path, data_file_name(fields["ElementDataFile"]))
            file = stack.enter_context(open_regular(beside, follow=False))
            start = 0
        yield layout, _stream(file, start, fields, layout, config)


def parse(file: io.FileIO) -> tuple[dict[str, str], int]:
    """The fields up to `ElementDataFile`, and where the bytes behind it begin.

    Raises:
        VolumeError: an unknown form, a field given twice, or no end of the header.
    """
    fields: dict[str, str] = {}
    unknown = 0
    for number, line, start in header_lines(file):
        name, equals, value = line.partition("=")
        name = SAME.get(name.strip(), name.strip())
        if not line.strip():
            continue
        if not equals:
            raise bad_header(f"line {number} is no field")
        if name not in FIELDS:
            unknown = unknown or number
            continue
        if name in fields:
            raise bad_header(f"`{name}` is given twice")
        if name in TEXTS and len(value) > LONGEST_TEXT:
            raise bad_header(f"`{name}` is longer than {LONGEST_TEXT} letters")
        fields[name] = value.strip()
        if name == "ElementDataFile":
            if unknown and not all(name in fields for name in DECIDING):
                raise bad_header(f"line {unknown} is no known field")
            return fields, start
    raise bad_header("`ElementDataFile` is missing")


def data_file(path: Path) -> Path | None:
    """The file beside a header that holds its voxels; None where the header's own file does.

    Raises:
        VolumeError: the header breaks a rule.
    """
    with open_regular(path) as file:
        fields, _ = parse(file)
    name = fields["ElementDataFile"]
    return None if name.upper() == "LOCAL" else neighbour(path, data_file_name(name))


def to_layout(fields: dict[str, str]) -> Layout:
    """Judges the fields by the rules.

    Raises:
        VolumeError: type, axes or geometry cannot be used.
    """
    for name in ("NDims", "DimSize", "ElementType"):
        if name not in fields:
            raise bad_header(f"`{name}` is missing")
    if fields.get("ObjectType", "Image") != "Image":
        raise VolumeError("it is a MetaIO object other than an image", code="format")
    _refuse_scaling(fields)
    (dimension,) = whole_numbers(fields["NDims"], 1, "NDims")
    if not 2 <= dimension <= 5:
        raise bad_header(f"`NDims` is {dimension}, 2 to 5 are possible")
    sizes = whole_numbers(fields["DimSize"], dimension, "DimSize")
    (channels,) = whole_numbers(
        fields.get("ElementNumberOfChannels", "1"), 1, "ElementNumberOfChannels"
    )
    positive_sizes([channels, *sizes])
    axes = plain_axes(sizes)
    if channels > 1:
        if axes.channel is not None:
            plain_axes([*sizes, channels])
        # Channels are interleaved: they are the fastest axis.
        axes = Axes((channels, *axes.dims), 0)
    return Layout(_stored_type(fields), axes, tuple(sizes), _grid(fields, dimension))


def _stored_type(fields: dict[str, str]) -> np.dtype[Any]:
    kind = TYPES.get(fields["ElementType"])
    if kind is None:
        raise VolumeError(
            "its voxels have a type that is no scalar intensity",
            remedy="convert it to a volume of integers or floats",
            code="voxel-type",
        )
    if not _truth(fields, "BinaryData", True):
        raise VolumeError(
            "its voxels are written as text, which is not read",
            remedy="write it again in binary form",
            code="encoding",
        )
    if "BinaryDataByteOrderMSB" not in fields and int(kind[1]) > 1:
        raise bad_header("`BinaryDataByteOrderMSB` is missing")
    return np.dtype((">" if _truth(fields, "BinaryDataByteOrderMSB", False) else "<") + kind)


def _truth(fields: dict[str, str], name: str, default: bool) -> bool:
    word = fields.get(name, str(default)).lower()
    if word not in ("true", "false", "1", "0"):
        raise bad_header(f"`{name}` is neither True nor False")
    return word in ("true", "1")


def _refuse_scaling(fields: dict[str, str]) -> None:
    """MetaIO defines a slope that ITK, hence every viewer, ignores: neither reading is safe."""
    for name, neutral in (("Slope", 1.0), ("Offset", 0.0)):
        field = f"ElementToIntensityFunction{name}"
        if field in fields and real_numbers(fields[field], 1, field) != [neutral]:
            raise VolumeError(
                f"`{field}` is set, and programs disagree on whether it counts",
                remedy="write it again with the factor applied to the voxels",
                code="scaling",
            )


def _grid(fields: dict[str, str], dimension: int) -> Grid:
    notes: list[Note] = []
    unit = fields.get("DistanceUnits", "mm")
    if unit not in UNITS:
        raise bad_header("`DistanceUnits` is none that is known (mm, cm, um)")
    scale = UNITS[unit]
    if scale != 1:
        notes.append(Note("units-converted", f"lengths are in {unit} and were converted to mm"))
    spacing = _spacing(fields, dimension, notes) * scale
    directions = np.eye(dimension)
    if "TransformMatrix" in fields:
        numbers = real_numbers(fields["TransformMatrix"], dimension**2, "TransformMatrix")
        directions = np.array(numbers).reshape(dimension, dimension).T
    else:
        text = "TransformMatrix is missing: axes are taken as left, posterior, superior"
        notes.append(Note("no-matrix", text))
    offset = np.zeros(dimension)
    if "Offset" in fields:
        offset = np.array(real_numbers(fields["Offset"], dimension, "Offset")) * scale
    else:
        notes.append(Note("no-origin", "the place of the first voxel is missing: taken as 0"))
    three, place = _in_space(directions, spacing, offset, notes)
    return lps_grid(three, place, (-1.0, -1.0, 1.0), notes)


def _spacing(fields: dict[str, str], dimension: int, notes: list[Note]) -> NDArray[np.float64]:
    name = "ElementSpacing"
    if name not in fields and "ElementSize" in fields:
        name = "ElementSize"
        notes.append(Note("no-spacing", "ElementSpacing is missing: ElementSize was taken"))
    if name not in fields:
        raise VolumeError(
            "its header does not say how large a voxel is",
            remedy="add `ElementSpacing` to the header",
            code="spacing",
        )
    spacing = np.array(real_numbers(fields[name], dimension, name))
    if not (spacing[:3] > 0).all():
        raise VolumeError(f"`{name}` is not positive", code="spacing")
    return spacing


def _in_space(
    directions: NDArray[np.float64],
    spacing: NDArray[np.float64],
    offset: NDArray[np.float64],
    notes: list[Note],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Columns in mm and origin in three dimensions, from two to five of them."""
    dimension = len(spacing)
    columns = np.eye(3)
    place = np.zeros(3)
    kept = min(dimension, 3)
    columns[:kept, :kept] = directions[:kept, :kept] * spacing[:kept]
    place[:kept] = offset[:kept]
    if dimension == 2:
        notes.append(Note("thickness", "a flat image without thickness: taken as 1 mm"))
    if dimension > 3 and (directions[3:, :3].any() or directions[:3, 3:].any()):
        raise bad_header("`TransformMatrix` mixes space with a further axis")
    return columns, place


def _stream(
    file: io.FileIO, start: int, fields: dict[str, str], layout: Layout, config: ReadConfig
) -> Stream:
    (header_size,) = whole_numbers(fields.get("HeaderSize", "0"), 1, "HeaderSize")
    if "HeaderSizePerSlice" in fields or header_size < -1:
        raise bad_header("`HeaderSize` is impossible")
    if not _truth(fields, "CompressedData", False):
        stream: Stream = PlainStream(file, start)
        check_size(layout, stream.most(), False, config.max_bytes)
        spare = stream.most() - layout.stored_bytes
        skip(stream, spare if header_size < 0 else header_size)
        return stream
    if header_size:
        raise bad_header("`HeaderSize` is impossible beside compression")
    file.seek(0, 2)
    held = file.tell() - start
    if "CompressedDataSize" in fields:
        (declared,) = whole_numbers(fields["CompressedDataSize"], 1, "CompressedDataSize")
        if declared != held:
            raise VolumeError(
                f"its header declares {declared} compressed bytes, the file holds {held}",
                remedy="copy or download the file again",
                code="cut-short" if held < declared else "more-data",
            )
    file.seek(start)
    wrapper = "gzip" if file.read(2) == GZIP_MAGIC else "zlib"
    stream = DeflateStream(file, start, wrapper)
    check_size(layout, stream.most(), True, config.max_bytes)
    return stream
