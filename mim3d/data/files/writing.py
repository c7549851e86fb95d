"""Label maps and volumes written back on the grid of the file they belong to, as NIfTI.

The header is made anew: sizes, type, and the geometry fields of the source byte for byte (its own
version and byte order, too). Nothing else of a source's header is carried over. The file is written
beside its name, read back and compared, and only then renamed.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mim3d.data.files.deflate import DEFLATE, MOST_GROWTH, DeflateStream
from mim3d.data.files.geometry import RIGHT_ANGLE
from mim3d.data.files.nifti import HEADER_BYTES, SCALARS
from mim3d.data.files.streams import PlainStream, Rest, Stream
from mim3d.data.files.values import INTEGERS, LARGEST_LABEL
from mim3d.data.volume import NiftiFields, Origin, Volume, spacing_of, to_file_order
from mim3d.foundation import atomic
from mim3d.foundation.disk import unlike
from mim3d.foundation.errors import ShapeError, UserError, VolumeError

CODES = {name: code for code, name in SCALARS.items()}
LONGEST_FIRST = 32767
"""The largest size that NIfTI-1 can store."""
LEVEL = getattr(DEFLATE, "ISAL_DEFAULT_COMPRESSION", 1)
GZIP_HEAD = b"\x1f\x8b\x08\0" + bytes(4) + b"\0\xff"
"""No name, no time, no system: equal voxels give equal bytes."""


def write_label(path: str | os.PathLike[str], labels: NDArray[Any], like: Volume) -> None:
    """Writes a label map on the grid of the file that `like` was read from.

    Args:
        path: ends in `.nii.gz` or `.nii`; replaced whole if it exists.
        labels: `x y z` in RAS+, whole numbers from 0 to 65535; stored in the smallest unsigned
            type that holds them.
        like: the volume the labels belong to.

    Raises:
        ShapeError: the labels are not on the grid of `like`.
        ValueError: they are no whole numbers or beyond 0 to 65535.
        DiskError: it cannot be written, or does not read back; the older file is untouched.
    """
    if labels.ndim != 3:
        raise ShapeError(f"write_label expects `x y z`, got the shape {labels.shape}")
    if labels.dtype.kind not in "biu":
        raise ValueError(f"labels are whole numbers, got {labels.dtype}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > LARGEST_LABEL:
        raise ValueError(f"labels lie within 0 to {LARGEST_LABEL}, got {low} to {high}")
    smallest = next(kind for kind in INTEGERS if high <= np.iinfo(kind).max)
    _write(Path(path), labels[None], np.dtype(smallest), like)


def write_volume(path: str | os.PathLike[str], voxels: NDArray[Any], like: Volume) -> None:
    """Writes voxels on the grid of the file that `like` was read from.

    Args:
        path: ends in `.nii.gz` or `.nii`; replaced whole if it exists.
        voxels: `c x y z` or `x y z` in RAS+; integers keep their type, floats become float32.
        like: the volume they belong to; its channels do not matter.

    Raises:
        ShapeError: the voxels are not on the grid of `like`.
        DiskError: it cannot be written, or does not read back; the older file is untouched.
    """
    if voxels.ndim == 3:
        voxels = voxels[None]
    name = f"{voxels.dtype.kind}{voxels.dtype.itemsize}"
    stored = np.dtype(np.uint8) if name == "b1" else np.dtype(np.float32)
    if voxels.dtype.kind in "iu":
        stored = np.dtype(name)
    _write(Path(path), voxels, stored, like)


def nifti_fields(origin: Origin) -> NiftiFields:
    """The geometry fields to write: the source's own, or made from its affine.

    Both forms get code 1 where the axes are orthogonal, the sform alone where they are slightly
    sheared, none where the source had no orientation.
    """
    if origin.nifti is not None:
        return origin.nifti
    spacing = np.array(spacing_of(origin.affine))
    rotation = origin.affine[:3, :3] / spacing
    qfac = -1.0 if np.linalg.det(rotation) < 0 else 1.0
    rotation = rotation * [1.0, 1.0, qfac]
    orthogonal = np.abs(rotation.T @ rotation - np.eye(3)).max() <= RIGHT_ANGLE
    known = int(origin.has_orientation)
    quaternion = _quaternion(rotation) if orthogonal else (0.0, 0.0, 0.0)
    forms = struct.pack(
        "<2h18f",
        known * int(orthogonal),
        known,
        *(known * part for part in quaternion),
        *(known * origin.affine[:3, 3]),
        *(known * origin.affine[:3]).ravel(),
    )
    pixdim = struct.pack("<4f", qfac, *spacing)
    return NiftiFields(1, "<", pixdim, b"\x02", forms)


def _write(path: Path, voxels: NDArray[Any], stored: np.dtype[Any], like: Volume) -> None:
    name = path.name.lower()
    if not name.endswith((".nii", ".nii.gz")):
        raise UserError(
            "volumes are written as `.nii.gz` or `.nii` only", where=os.fspath(path), code="name"
        )
    ordered = to_file_order(voxels, like.origin)
    fields = nifti_fields(like.origin)
    stored = stored.newbyteorder(fields.byte_order)  # type: ignore[arg-type]
    flat = len(like.origin.dims) == 2
    header = _header(fields, ordered.shape, stored, flat=flat)
    is_zipped = name.endswith(".gz")
    plain = len(header) + ordered.size * stored.itemsize
    # The least that deflate can make of it; how much it really is shows only in the end.
    need = plain // MOST_GROWTH if is_zipped else plain
    with atomic.whole_file(path, need=need) as temporary:
        with open(temporary, "wb") as file:
            if is_zipped:
                write_gzip(file, header, ordered, stored)
            else:
                file.write(header)
                for slab in slabs(ordered, stored):
                    file.write(slab)
        if not _reads_back(temporary, header, ordered, stored, zipped=is_zipped):
            raise unlike(path)


def _header(
    fields: NiftiFields, shape: tuple[int, ...], stored: np.dtype[Any], *, flat: bool
) -> bytes:
    channels, *space = shape
    dims = space[:2] if flat and space[2] == 1 and channels == 1 else list(space)
    if channels > 1:
        dims.append(channels)
    dim = [len(dims), *dims, *([1] * (7 - len(dims)))]
    code = CODES[f"{stored.kind}{stored.itemsize}"]
    order = fields.byte_order
    if fields.version == 1 and max(dim) <= LONGEST_FIRST:
        raw = bytearray(HEADER_BYTES[1] + 4)
        struct.pack_into(f"{order}i", raw, 0, HEADER_BYTES[1])
        raw[38:39] = b"r"
        struct.pack_into(f"{order}8h", raw, 40, *dim)
        struct.pack_into(f"{order}2h", raw, 70, code, 8 * stored.itemsize)
        raw[76:92] = fields.pixdim
        struct.pack_into(f"{order}4f", raw, 92, 1, 1, 1, 1)
        struct.pack_into(f"{order}3f", raw, 108, len(raw), 1, 0)
        raw[123:124] = fields.units
        raw[252:328] = fields.forms
        raw[344:348] = b"n+1\0"
        return bytes(raw)
    return _second_header(fields if fields.version == 2 else _widened(fields), dim, code, stored)


def _second_header(fields: NiftiFields, dim: list[int], code: int, stored: np.dtype[Any]) -> bytes:
    order = fields.byte_order
    raw = bytearray(HEADER_BYTES[2] + 4)
    struct.pack_into(f"{order}i", raw, 0, HEADER_BYTES[2])
    raw[4:12] = b"n+2\0\r\n\x1a\n"
    struct.pack_into(f"{order}2h", raw, 12, code, 8 * stored.itemsize)
    struct.pack_into(f"{order}8q", raw, 16, *dim)
    raw[104:136] = fields.pixdim
    struct.pack_into(f"{order}4d", raw, 136, 1, 1, 1, 1)
    struct.pack_into(f"{order}q2d", raw, 168, len(raw), 1, 0)
    raw[344:496] = fields.forms
    raw[500:504] = fields.units
    return bytes(raw)


def _widened(fields: NiftiFields) -> NiftiFields:
    """The geometry fields of NIfTI-1 as NIfTI-2 has them."""
    order = fields.byte_order
    forms = struct.unpack(f"{order}2h18f", fields.forms)
    return NiftiFields(
        2,
        order,
        struct.pack(f"{order}4d", *struct.unpack(f"{order}4f", fields.pixdim)),
        struct.pack(f"{order}i", fields.units[0]),
        struct.pack(f"{order}2i18d", *forms),
    )


def slabs(ordered: NDArray[Any], stored: np.dtype[Any]) -> Iterator[bytes]:
    """The voxels of `c i j k` as they stand in a file: i fastest, channel slowest."""
    for channel in ordered:
        for k in range(channel.shape[2]):
            yield channel[:, :, k].T.astype(stored).tobytes()


def write_gzip(file: BinaryIO, header: bytes, ordered: NDArray[Any], stored: np.dtype[Any]) -> None:
    """Writes a header and the voxels behind it as one gzip member."""
    deflate = DEFLATE.compressobj(LEVEL, zlib.DEFLATED, -15)
    check, size = 0, 0
    file.write(GZIP_HEAD)
    for part in itertools.chain([header], slabs(ordered, stored)):
        check, size = DEFLATE.crc32(part, check), size + len(part)
        file.write(deflate.compress(part))
    file.write(deflate.flush())
    file.write(struct.pack("<2I", check, size & 0xFFFFFFFF))


def _reads_back(
    path: Path, header: bytes, ordered: NDArray[Any], stored: np.dtype[Any], *, zipped: bool
) -> bool:
    """Whether a file holds what was to be written, and its check values agree."""
    with io.FileIO(path) as file:
        stream: Stream = DeflateStream(file) if zipped else PlainStream(file)
        try:
            equal = next_bytes(stream, len(header)) == header and all(
                next_bytes(stream, len(slab)) == slab for slab in slabs(ordered, stored)
            )
            return equal and stream.finish(0) == Rest()
        except VolumeError:
            return False


def next_bytes(stream: Stream, count: int) -> bytes:
    """The next bytes of a stream; none where it is shorter."""
    buffer = bytearray(count)
    return bytes(buffer) if stream.fill(memoryview(buffer)) == count else b""


def _quaternion(rotation: NDArray[np.float64]) -> tuple[float, float, float]:
    """b, c, d of a proper rotation, a taken as not negative (nifti1.h, method 2)."""
    # Bar-Itzhack 2000: the eigenvector of the largest eigenvalue, stable at every angle.
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation.tolist()
    matrix = np.array(
        [
            [xx - yy - zz, xy + yx, xz + zx, zy - yz],
            [xy + yx, yy - xx - zz, yz + zy, xz - zx],
            [xz + zx, yz + zy, zz - xx - yy, yx - xy],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    b, c, d, a = np.linalg.eigh(matrix)[1][:, -1].tolist()
    sign = math.copysign(1.0, a)
    return (sign * b, sign * c, sign * d)
