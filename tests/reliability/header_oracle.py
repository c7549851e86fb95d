"""What a header says, read a second time: for files that the reader accepted, and so lenient.

NIfTI by nibabel's record of the header and its quaternions; NRRD and MetaImage by splitting lines.
A reading is compared voxel by voxel at its place in millimetres, whatever order it lies in.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from mim3d.data.volume import Volume

NRRD_TYPES = {
    "signed char": "i1", "int8": "i1", "int8_t": "i1", "uchar": "u1", "unsigned char": "u1",
    "uint8": "u1", "uint8_t": "u1", "short": "i2", "short int": "i2", "signed short": "i2",
    "signed short int": "i2", "int16": "i2", "int16_t": "i2", "ushort": "u2",
    "unsigned short": "u2", "unsigned short int": "u2", "uint16": "u2", "uint16_t": "u2",
    "int": "i4", "signed int": "i4", "int32": "i4", "int32_t": "i4", "uint": "u4",
    "unsigned int": "u4", "uint32": "u4", "uint32_t": "u4", "longlong": "i8", "long long": "i8",
    "long long int": "i8", "signed long long": "i8", "signed long long int": "i8", "int64": "i8",
    "int64_t": "i8", "ulonglong": "u8", "unsigned long long": "u8",
    "unsigned long long int": "u8", "uint64": "u8", "uint64_t": "u8", "float": "f4",
    "double": "f8",
}  # fmt: skip
quat2mat: Any = nibabel.quaternions.quat2mat
META_TYPES = {
    "CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4",
    "LONG": "i4", "ULONG": "u4", "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4",
    "DOUBLE": "f8",
}  # fmt: skip
LPS = np.array([-1.0, -1.0, 1.0])
FRAMES = {"l": -1.0, "r": 1.0, "p": -1.0, "a": 1.0, "s": 1.0}


@dataclass(frozen=True)
class Said:
    """Voxels `x y z c` in the order of the file, as float64, and where they lie in mm RAS+."""

    voxels: NDArray[np.float64]
    affine: NDArray[np.float64]


def agrees(volume: Volume, said: Said) -> bool:
    """Whether each voxel has the value and the place that the header tells of."""
    index = np.linalg.solve(said.affine, volume.affine)
    turn = np.rint(index[:3, :3]).astype(int)
    grid = np.indices(volume.shape).reshape(3, -1)
    exact = index[:3, :3] @ grid + index[:3, 3:]
    shift = np.rint(index[:3, 3]).astype(int)
    place = turn @ grid + shift[:, None]
    inside = (place >= 0).all() and (place.max(axis=1) < said.voxels.shape[:3]).all()
    if not inside or np.abs(exact - place).max() > 0.01:
        return False
    if said.voxels[..., 0].size != grid.shape[1] or said.voxels.shape[3] != volume.channels:
        return False
    expected = np.moveaxis(said.voxels[tuple(place)], -1, 0).reshape(volume.voxels.shape)
    return bool((volume.voxels == _contained(expected, volume.voxels.dtype)).all())


def _contained(values: NDArray[np.float64], kept: np.dtype[Any]) -> NDArray[Any]:
    with np.errstate(invalid="ignore"):
        good = np.abs(values) <= 1e9
        high = values > 1e9
    inside = values[good]
    return np.where(good, values, np.where(high, inside.max(), inside.min())).astype(kept)


def _shaped(data: bytes, kind: np.dtype[Any], sizes: list[int], channel: int | None) -> Any:
    """Bytes as `x y z c`; there must be exactly as many as are told of."""
    count = 1
    for size in sizes:
        count *= size
    if len(data) != count * kind.itemsize:
        raise ValueError(f"{len(data)} bytes are no {count} voxels of {kind}")
    array = np.frombuffer(data, kind).astype(np.float64).reshape(sizes, order="F")
    return array[..., None] if channel is None else np.moveaxis(array, channel, -1)


def nifti_says(header: bytes, data: bytes) -> Said:
    """Of the bytes from `sizeof_hdr` on, and those of the file that holds the voxels."""
    order = "<" if struct.unpack("<i", header[:4])[0] in (348, 540) else ">"
    version = 1 if struct.unpack(f"{order}i", header[:4])[0] == 348 else 2
    form: Any = nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header
    length = 348 if version == 1 else 540
    fields = form(header[:length], endianness=order, check=False)
    magic = bytes(np.asarray(fields["magic"]).tobytes())
    is_analyze = version == 1 and magic.strip(b"\0") == b""
    is_single = magic[:2] == b"n+"
    offset = int(fields["vox_offset"]) or (length + 4 if is_single else 0)
    kind = form._data_type_codes.dtype[int(fields["datatype"])].newbyteorder(order)
    dims = [int(size) for size in fields["dim"][1 : int(fields["dim"][0]) + 1]]
    sizes = [*dims, 1, 1, 1][:3] + [size for size in dims[3:] if size > 1]
    voxels = _shaped(data[offset:], kind, sizes, 3 if len(sizes) > 3 else None)
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope and not np.isnan(slope):
        with np.errstate(over="ignore", invalid="ignore"):
            voxels = voxels * slope + (0 if is_analyze else intercept)
    return Said(voxels, _nifti_affine(fields, is_analyze))


def _nifti_affine(fields: Any, is_analyze: bool) -> NDArray[np.float64]:
    unit = {1: 1000.0, 3: 0.001}.get(int(fields["xyzt_units"]) & 7, 1.0)
    spacing = [float(size) for size in fields["pixdim"][1:4]]
    for axis in range(int(fields["dim"][0]), 3):
        spacing[axis] = spacing[axis] if spacing[axis] > 0 else 1.0
    if is_analyze:
        return np.diag([*spacing, 1.0])
    affine = np.eye(4)
    if int(fields["sform_code"]) > 0:
        affine[:3] = [fields[f"srow_{axis}"] for axis in "xyz"]
        if _is_regular(affine):
            affine[:3] *= unit
            return affine
    if int(fields["qform_code"]) > 0:
        affine = np.eye(4)
        affine[:3, :3] = quat2mat(fields.get_qform_quaternion()) * spacing
        affine[:3, 2] *= -1 if float(fields["pixdim"][0]) < 0 else 1
        affine[:3, 3] = [float(fields[f"qoffset_{axis}"]) for axis in "xyz"]
        affine[:3] *= unit
        return affine
    return np.diag([*(size * unit for size in spacing), 1.0])


def _is_regular(affine: NDArray[np.float64]) -> bool:
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        volume = abs(np.linalg.det(affine[:3, :3] / lengths))
    whole = np.isfinite(affine).all() and np.isfinite(lengths).all() and (lengths > 0).all()
    return bool(whole and volume > 1e-3)


def nrrd_says(header: bytes, data: bytes) -> Said:
    """Of the lines up to the empty one, and the bytes of the voxels behind them."""
    fields: dict[str, str] = {}
    for line in re.split(r"\r?\n", header.decode("latin-1"))[1:]:
        name, colon, value = line.partition(":")
        if colon and not line.startswith("#") and not value.startswith("="):
            key = {"datafile": "data file", "byteskip": "byte skip", "lineskip": "line skip"}
            plain = name.strip().lower()
            fields[key.get(plain, plain)] = value.strip()
    kind = np.dtype(NRRD_TYPES[fields["type"].lower()])
    kind = kind.newbyteorder(">" if fields.get("endian", "").lower() == "big" else "<")
    sizes = [int(size) for size in fields["sizes"].split()]
    content = _nrrd_content(fields, data, kind, sizes)
    vectors = re.findall(r"\(([^)]*)\)|(none)", fields.get("space directions", ""))
    columns = [None if none else [float(n) for n in text.split(",")] for text, none in vectors]
    spacings = [float(size) for size in fields.get("spacings", "").split()]
    space = _nrrd_space(fields, sizes, columns, spacings)
    channels = [axis for axis in range(len(sizes)) if axis not in space and sizes[axis] > 1]
    kept = [axis for axis in range(len(sizes)) if axis in space or axis in channels]
    channel = kept.index(channels[0]) if channels else None
    voxels = _shaped(content, kind, [sizes[axis] for axis in kept], channel)
    voxels = voxels if len(space) == 3 else voxels[:, :, None]
    chosen = [columns[axis] for axis in space] if columns else []
    return Said(voxels, _nrrd_affine(fields, chosen, [spacings[axis] for axis in space]
                                     if spacings else []))  # fmt: skip


def _nrrd_space(
    fields: dict[str, str], sizes: list[int], columns: list[Any], spacings: list[float]
) -> list[int]:
    if columns:
        return [axis for axis, column in enumerate(columns) if column is not None]
    kinds = fields.get("kinds", "").lower().split()
    spatial = {"domain", "space", "none", "???"}
    if any(kind not in spatial for kind in kinds):
        return [axis for axis, kind in enumerate(kinds) if kind in spatial]
    if np.isnan(spacings).any():
        return [axis for axis, size in enumerate(spacings) if not np.isnan(size)]
    return list(range(min(3, len(sizes))))


def _nrrd_content(
    fields: dict[str, str], data: bytes, kind: np.dtype[Any], sizes: list[int]
) -> bytes:
    for _ in range(int(fields.get("line skip", "0"))):
        data = data.split(b"\n", 1)[1]
    encoding = fields["encoding"].lower()
    if encoding in ("ascii", "text", "txt"):
        convert = float if kind.kind == "f" else int
        return np.array([convert(word) for word in data.split()]).astype(kind).tobytes()
    if encoding in ("gz", "gzip"):
        data = zlib.decompressobj(31).decompress(data)
    skipped = int(fields.get("byte skip", "0"))
    return data[-int(np.prod(sizes)) * kind.itemsize :] if skipped < 0 else data[skipped:]


def _nrrd_affine(
    fields: dict[str, str], columns: list[Any], spacings: list[float]
) -> NDArray[np.float64]:
    words = re.findall(r'"([^"]*)"', fields.get("space units", ""))
    unit = {"m": 1000.0, "cm": 10.0, "um": 0.001}.get((words or ["mm"])[0].strip(), 1.0)
    letters = "".join(word[0] for word in re.split(r"[-]", fields.get("space", "").lower()) if word)
    frame = fields.get("space", "").lower() if len(fields.get("space", "")) == 3 else letters
    affine = np.eye(4)
    if frame in ("ras", "las", "lps"):
        signs = np.array([FRAMES[letter] for letter in frame])
        three = columns if len(columns) == 3 else [*columns, _normal(columns)]
        affine[:3, :3] = np.array(three).T
        if len(columns) < 3:
            affine[:3, 2] /= unit if unit else 1
        origin = fields.get("space origin", "(0,0,0)").strip("() ")
        affine[:3, 3] = [float(number) for number in origin.split(",")]
        affine[:3] *= signs[:, None]
        affine[:3] *= unit
        return affine
    sizes = spacings or [float(np.linalg.norm(column)) for column in columns]
    lengths = [*sizes, 1.0][:3]
    return np.diag([*(size * unit for size in lengths), 1.0])


def _normal(columns: list[Any]) -> NDArray[np.float64]:
    normal = np.cross(columns[0], columns[1])
    return np.asarray(normal / np.linalg.norm(normal), np.float64)


def meta_says(header: bytes, data: bytes) -> Said:
    """Of the lines up to `ElementDataFile`, and the bytes of the voxels behind them."""
    fields: dict[str, str] = {}
    for line in header.decode("latin-1").split("\n"):
        name, _, value = line.partition("=")
        fields[name.strip()] = value.strip()

    def first(*names: str, default: str = "") -> str:
        return next((fields[name] for name in names if name in fields), default)

    msb = first("BinaryDataByteOrderMSB", "ElementByteOrderMSB", default="False").lower()
    kind = np.dtype(META_TYPES[fields["ElementType"].removeprefix("MET_")])
    kind = kind.newbyteorder(">" if msb in ("true", "1") else "<")
    sizes = [int(size) for size in fields["DimSize"].split()]
    space = [*sizes, 1][:3] + [size for size in sizes[3:] if size > 1]
    channels = int(first("ElementNumberOfChannels", default="1"))
    channel = 3 if len(space) > 3 else None
    if channels > 1:
        shape, channel = [channels, *space], 0
    else:
        shape = space
    if first("CompressedData", default="False").lower() in ("true", "1"):
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else zlib.decompress(data)
    else:
        size = int(first("HeaderSize", default="0"))
        count = int(np.prod(shape)) * kind.itemsize
        data = data[-count:] if size < 0 else data[size:]
    voxels = _shaped(data, kind, shape, channel)
    return Said(voxels, _meta_affine(first, len(sizes)))


def _meta_affine(first: Any, count: int) -> NDArray[np.float64]:
    unit = {"cm": 10.0, "um": 0.001}.get(first("DistanceUnits"), 1.0)
    spacing = [float(size) for size in first("ElementSpacing", "ElementSize").split()]
    matrix = first("TransformMatrix", "Rotation", "Orientation")
    numbers = [float(number) for number in matrix.split()] or np.eye(count).ravel()
    rows = np.array(numbers).reshape(count, count)
    offset = [float(number) for number in first("Offset", "Position", "Origin").split()]
    affine = np.eye(4)
    kept = min(count, 3)
    for axis in range(kept):
        affine[:kept, axis] = rows[axis, :kept] * spacing[axis] * unit
    affine[:kept, 3] = np.array([*offset, *[0.0] * count][:kept]) * unit
    affine[:3] *= LPS[:, None]
    return affine
