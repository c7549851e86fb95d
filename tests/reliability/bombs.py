"""Small files that unpack to far more than their headers tell of."""

from __future__ import annotations

import functools
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from tests.data.files.making import meta, nifti, nrrd, zipped

UNIT = 16 << 20


def bomb(draw: np.random.Generator, voxels: NDArray[np.int16]) -> tuple[str, bytes, int]:
    """A file's name, its bytes, and how many bytes its header tells of (0: it declares a lie)."""
    units = int(draw.choice([1, 2, 8, 64, 640]))
    filling = int(draw.choice([0, 0, 7, 255]))
    raw = nifti(voxels)
    held = len(raw)
    kind = ["behind", "member", "declared", "nrrd", "mha"][int(draw.integers(5))]
    if kind == "behind":
        return "x.nii.gz", _stream(raw, units, filling), held
    if kind == "member":
        return "x.nii.gz", zipped(raw) + _stream(b"", units, filling), held
    if kind == "declared":
        lie = bytearray(raw)
        lie[42:48] = struct.pack("<3h", *(int(size) for size in draw.integers(1300, 32767, 3)))
        return "x.nii.gz", _stream(bytes(lie), 1, filling), held
    data = voxels.tobytes(order="F")
    if kind == "nrrd":
        header = nrrd(voxels).split(b"\n\n")[0] + b"\n\n"
        return "x.nrrd", header + _stream(data, units, filling), held
    header = meta(voxels, CompressedDataSize="").split(b"LOCAL\n")[0] + b"LOCAL\n"
    return "x.mha", header + b"\x78\x9c" + _deflated(data, units, filling) + bytes(4), held


def _stream(front: bytes, units: int, filling: int) -> bytes:
    """A gzip member; its check value stands so far behind that nobody should get there."""
    return b"\x1f\x8b\x08\0" + bytes(6) + _deflated(front, units, filling) + bytes(8)


def _deflated(front: bytes, units: int, filling: int) -> bytes:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = squeeze.compress(front) + squeeze.flush(zlib.Z_FULL_FLUSH)
    return head + _unit(filling) * units + squeeze.flush()


@functools.cache
def _unit(filling: int) -> bytes:
    """Blocks that look back at nothing before them, so that they may be repeated."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    return squeeze.compress(bytes([filling]) * UNIT) + squeeze.flush(zlib.Z_FULL_FLUSH)
