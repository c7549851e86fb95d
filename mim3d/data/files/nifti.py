"""NIfTI-1, NIfTI-2 and Analyze 7.5 headers, by `struct` and nothing else.

Sources: nifti1.h and nifti2.h of the NIfTI Data Format Working Group; for Analyze, its dbh.h. A
single file holds header, extensions and voxels; a pair keeps the header in `.hdr` and the voxels in
`.img`, each possibly with `.gz`.
"""

from __future__ import annotations

import contextlib
import io
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mim3d.config.read import ReadConfig
from mim3d.data.files.deflate import GZIP_MAGIC, DeflateStream
from mim3d.data.files.geometry import Grid, NiftiForms, nifti_grid, unknown_orientation
from mim3d.data.files.layout import Layout, plain_axes
from mim3d.data.files.streams import (
    LONGEST_SKIP,
    PlainStream,
    Stream,
    neighbour,
    open_regular,
    read_all,
    skip,
)
from mim3d.data.files.values import Scaling
from mim3d.data.volume import NiftiFields, Note
from mim3d.foundation.errors import VolumeError

SCALARS = {
    2: "u1", 256: "i1", 4: "i2", 512: "u2", 8: "i4", 768: "u4",
    1024: "i8", 1280: "u8", 16: "f4", 64: "f8",
}  # fmt: skip
REFUSED = {
    0: "none", 1: "bit", 32: "complex64", 128: "rgb24", 1536: "float128", 1792: "complex128",
    2048: "complex256", 2304: "rgba32",
}  # fmt: skip
HEADER_BYTES = {1: 348, 2: 540}
MOST_EXTENSIONS = 10_000
"""In a row; a squeezed stream could hold millions of them."""


@dataclass(frozen=True)
class Header:
    """The fields of a header that are looked at, as they stand there."""

    version: int
    is_analyze: bool
    is_pair: bool
    byte_order: str
    dim: tuple[int, ...]
    datatype: int
    bitpix: int
    pixdim: tuple[float, ...]
    offset: float
    slope: float
    intercept: float
    units: int
    qform_code: int
    sform_code: int
    quaternion: tuple[float, ...]
    rows: tuple[float, ...]
    fields: NiftiFields


def find_byte_order(start: bytes) -> tuple[int, str] | None:
    """Version and byte order by `sizeof_hdr` in the first four bytes, or None."""
    for order in "<>":
        (size,) = struct.unpack(f"{order}i", start[:4])
        for version, expected in HEADER_BYTES.items():
            if size == expected:
                return version, order
    return None


@contextlib.contextmanager
def opened(path: Path, config: ReadConfig) -> Iterator[tuple[Layout, Stream]]:
    """Opens a single file or a pair by either of its names; the stream stands at the voxels.

    Raises:
        VolumeError: the header breaks a rule, or a file of the pair is missing.
    """
    with contextlib.ExitStack() as stack:
        path = header_of_pair(path) or path
        stream = _stream(stack.enter_context(open_regular(path)))
        header = parse(stream)
        layout = to_layout(header, config)
        if header.is_pair:
            _read_to_end(stream)
            image = data_file(path)
            assert image is not None
            stream = _stream(stack.enter_context(open_regular(image, follow=False)))
            skip(stream, _whole_offset(header))
        else:
            _skip_to_voxels(stream, header)
        yield layout, stream


def parse(stream: Stream) -> Header:
    """Reads a header from the front of a stream.

    Raises:
        VolumeError: it ends within the header, or this is no header.
    """
    start = read_all(stream, 348)
    kind = find_byte_order(start) if len(start) >= 4 else None
    if kind is None:
        raise VolumeError("its header is not one of NIfTI or Analyze", code="format")
    version, order = kind
    if version == 2:
        start += read_all(stream, HEADER_BYTES[2] - len(start))
    if len(start) < HEADER_BYTES[version]:
        raise VolumeError(
            "it ends within the header", remedy="copy or download it again", code="cut-short"
        )
    return _parse_first(start, order) if version == 1 else _parse_second(start, order)


def to_layout(header: Header, config: ReadConfig) -> Layout:
    """Judges a header by the rules.

    Raises:
        VolumeError: type, axes, scaling or geometry cannot be used.
    """
    notes: list[Note] = []
    stored = _stored_type(header, notes)
    count = header.dim[0]
    if not 1 <= count <= 7:
        raise VolumeError(f"its header has {count} axes, 1 to 7 are possible", code="size")
    dims = tuple(header.dim[1 : count + 1])
    axes = plain_axes(list(dims))
    scaling = _scaling(header, notes)
    if not header.is_pair and header.offset == 0:
        notes.append(Note("offset-0", "vox_offset is 0: voxels are read from behind the header"))
    grid = _grid(header, axes.shape, count, config)
    return Layout(stored, axes, dims, grid, scaling, tuple(notes), header.fields)


def _parse_first(raw: bytes, order: str) -> Header:
    def at(form: str, place: int) -> tuple[Any, ...]:
        return struct.unpack_from(order + form, raw, place)

    magic = raw[344:348]
    is_analyze = magic == b"\0\0\0\0"
    if not is_analyze and magic not in (b"n+1\0", b"ni1\0"):
        raise VolumeError("its header has an unknown magic text", code="format")
    # dbh.h: no forms; SPM keeps a factor where NIfTI has scl_slope.
    fields = NiftiFields(
        1,
        order,
        raw[76:92],
        b"\2" if is_analyze else raw[123:124],
        bytes(76) if is_analyze else raw[252:328],
    )
    return Header(
        version=1,
        is_analyze=is_analyze,
        is_pair=magic != b"n+1\0",
        byte_order=order,
        dim=at("8h", 40),
        datatype=at("h", 70)[0],
        bitpix=at("h", 72)[0],
        pixdim=at("4f", 76),
        offset=at("f", 108)[0],
        slope=at("f", 112)[0],
        intercept=0.0 if is_analyze else at("f", 116)[0],
        units=2 if is_analyze else raw[123],
        qform_code=0 if is_analyze else at("h", 252)[0],
        sform_code=0 if is_analyze else at("h", 254)[0],
        quaternion=at("6f", 256),
        rows=at("12f", 280),
        fields=fields,
    )


def _parse_second(raw: bytes, order: str) -> Header:
    def at(form: str, place: int) -> tuple[Any, ...]:
        return struct.unpack_from(order + form, raw, place)

    magic = raw[4:12]
    if magic[:4] not in (b"n+2\0", b"ni2\0") or magic[4:] != b"\r\n\x1a\n":
        raise VolumeError("its header has an unknown magic text", code="format")
    return Header(
        version=2,
        is_analyze=False,
        is_pair=magic[:4] == b"ni2\0",
        byte_order=order,
        dim=at("8q", 16),
        datatype=at("h", 12)[0],
        bitpix=at("h", 14)[0],
        pixdim=at("4d", 104),
        offset=float(at("q", 168)[0]),
        slope=at("d", 176)[0],
        intercept=at("d", 184)[0],
        units=at("i", 500)[0],
        qform_code=at("i", 344)[0],
        sform_code=at("i", 348)[0],
        quaternion=at("6d", 352),
        rows=at("12d", 400),
        fields=NiftiFields(2, order, raw[104:136], raw[500:504], raw[344:496]),
    )


def _stored_type(header: Header, notes: list[Note]) -> np.dtype[Any]:
    if header.datatype not in SCALARS:
        name = REFUSED.get(header.datatype, "unknown")
        raise VolumeError(
            f"its voxels have the type {header.datatype} ({name}), which is no scalar intensity",
            remedy="convert it to a volume of integers or floats",
            code="voxel-type",
        )
    stored = np.dtype(header.byte_order + SCALARS[header.datatype])
    if header.bitpix != 8 * stored.itemsize:
        text = f"bitpix {header.bitpix} contradicts the voxel type, which decides"
        notes.append(Note("bitpix", text))
    return stored


def _scaling(header: Header, notes: list[Note]) -> Scaling | None:
    slope, intercept = header.slope, header.intercept
    if slope == 0:
        return None
    if math.isnan(slope):
        notes.append(Note("slope-nan", "scl_slope is NaN: the voxels are taken unscaled"))
        return None
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise VolumeError(
            "scl_slope or scl_inter is not finite",
            remedy="correct the header with a tool you trust",
            code="scaling",
        )
    if slope == 1 and intercept == 0:
        return None
    if header.is_analyze:
        notes.append(Note("analyze-scaled", "SPM's factor in the Analyze header was applied"))
    return Scaling(slope, intercept)


def _grid(header: Header, shape: tuple[int, int, int], count: int, config: ReadConfig) -> Grid:
    qfac, *spacing = header.pixdim
    if header.is_analyze:
        return unknown_orientation((spacing[0], spacing[1], spacing[2]), [])
    forms = NiftiForms(
        spatial_axes=min(count, 3),
        pixdim=(qfac, spacing[0], spacing[1], spacing[2]),
        unit=header.units & 7,
        qform_code=header.qform_code,
        sform_code=header.sform_code,
        quaternion=header.quaternion[:3],  # type: ignore[arg-type]
        quaternion_offset=header.quaternion[3:],  # type: ignore[arg-type]
        rows=np.array(header.rows, dtype=np.float64).reshape(3, 4),
    )
    return nifti_grid(forms, shape, config.geometry)


def _whole_offset(header: Header) -> int:
    """`vox_offset` as a whole number; 0 in a single file means right behind the header."""
    offset = header.offset
    if not math.isfinite(offset) or offset != int(offset) or offset < 0:
        raise VolumeError(f"its voxels would begin at byte {offset:g}", code="offset")
    first = 0 if header.is_pair else HEADER_BYTES[header.version] + 4
    if 0 < offset < first:
        raise VolumeError(
            f"its voxels would begin at byte {offset:g}, within the header", code="offset"
        )
    return max(int(offset), first)


def _skip_to_voxels(stream: Stream, header: Header) -> None:
    """Leaves the stream of a single file at its first voxel."""
    head = HEADER_BYTES[header.version]
    left = _whole_offset(header) - head
    if left - 4 > min(stream.most(), LONGEST_SKIP):
        raise VolumeError("its voxels would begin beyond its end", code="offset")
    extender = read_all(stream, 4)
    left -= 4
    if extender[:1] not in (b"\0", b""):
        if left < 16:
            raise VolumeError(
                "it says that header extensions follow, and leaves no room for them",
                code="extension",
            )
        left = _skip_extensions(stream, left, header.byte_order)
    skip(stream, left)


def _skip_extensions(stream: Stream, left: int, order: str) -> int:
    """Walks the chain of extensions; returns how many bytes are left before the voxels."""
    count = 0
    while left >= 8:
        count += 1
        (size,) = struct.unpack(f"{order}i", read_all(stream, 8)[:4].rjust(4, b"\xff"))
        if size < 8 or size > left or count > MOST_EXTENSIONS:
            raise VolumeError(
                f"header extension {count} claims {size} bytes of {left}", code="extension"
            )
        skip(stream, size - 8)
        left -= size
    return left


def _read_to_end(stream: Stream) -> None:
    """Reads what follows the header of a pair, so that the check value is compared."""
    buffer = bytearray(1 << 16)
    total = 0
    while got := stream.fill(memoryview(buffer)):
        total += got
        if total > LONGEST_SKIP:
            raise VolumeError("its header file is far too long", code="more-data")


def _stream(file: io.FileIO) -> DeflateStream | PlainStream:
    magic = file.read(2)
    return DeflateStream(file) if magic == GZIP_MAGIC else PlainStream(file)


def _split_name(path: Path) -> tuple[str, str, str]:
    """Stem, ending and `.gz` of a name of a pair, the latter two as written there."""
    name, zipped = path.name, ""
    if name.lower().endswith(".gz"):
        name, zipped = name[:-3], name[-3:]
    return name[: -len(".hdr")], name[-len(".hdr") :], zipped


def header_of_pair(path: Path) -> Path | None:
    """The header that belongs to an `.img`; None if the path is no `.img` or has no header."""
    stem, ending, zipped = _split_name(path)
    if ending.lower() != ".img":
        return None
    return _partner(path, stem, ".hdr", zipped, upper=ending.isupper())


def image_of_pair(path: Path) -> Path | None:
    """The voxels that belong to the header of a pair, or None."""
    stem, ending, zipped = _split_name(path)
    if ending.lower() not in (".hdr", ".nii"):
        stem, ending, zipped = path.name, "", ""
    return _partner(path, stem, ".img", zipped, upper=ending.isupper())


def _partner(path: Path, stem: str, ending: str, zipped: str, *, upper: bool) -> Path | None:
    zips = [zipped, "" if zipped else ".gz"]
    endings = [ending.upper(), ending] if upper else [ending, ending.upper()]
    for candidate in (path.with_name(stem + e + z) for e in endings for z in zips):
        if candidate.is_file():
            return candidate
    return None


def data_file(path: Path) -> Path | None:
    """The `.img` of a pair's header; None for a single file.

    Raises:
        VolumeError: it is missing, or the header is none.
    """
    with open_regular(path) as file:
        is_pair = parse(_stream(file)).is_pair
    if not is_pair:
        return None
    partner = image_of_pair(path)
    if partner is None:
        stem, ending, _ = _split_name(path)
        missing = f"{stem if ending.lower() in ('.hdr', '.nii') else path.name}.img"
        raise VolumeError(
            f"the other file of the pair, `{missing}`, is missing",
            remedy="put both files into one folder",
            code="missing",
        )
    return neighbour(path, partner.name)
