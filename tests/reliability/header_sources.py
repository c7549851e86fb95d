"""Good files of the four ways to write a header, divided into header and voxels."""

from __future__ import annotations

import functools
import gzip
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.data.files.making import SHAPE, meta, nifti, nrrd, scan
from tests.reliability.header_oracle import Said, meta_says, nifti_says, nrrd_says


@dataclass(frozen=True)
class Form:
    """A way to write volumes.

    Args:
        name: of the file with the header.
        header: its bytes, uncompressed.
        data: the voxels' bytes as they lie behind the header or beside it.
        beside: the file that holds them where they lie beside it.
        is_zipped: whether the file with the header is compressed as a whole.
        says: header and voxels of the whole mutated file, and the file beside it, to what they say.
    """

    name: str
    header: bytes
    data: bytes
    says: Callable[[bytes, bytes], Said]
    beside: str = ""
    is_zipped: bool = False

    def put(self, folder: Path, header: bytes) -> Path:
        """Writes the file with another header."""
        path = folder / self.name
        raw = header if self.beside else header + self.data
        if self.beside:
            (folder / self.beside).write_bytes(self.data)
        path.write_bytes(gzip.compress(raw, 1, mtime=0) if self.is_zipped else raw)
        return path

    def said(self, header: bytes) -> Said:
        """What the file says by the oracle."""
        return self.says(header if self.beside else header + self.data, self.data)


@functools.cache
def forms(path: str) -> tuple[Form, ...]:
    """The forms of a reader's path: `NIfTI-1`, `NIfTI-2`, `NRRD`, `MetaImage`.

    The last slices of every volume are zero, as the surroundings of a brain often are: a header
    that leaves them out must be found out all the same.
    """
    makers = {"NIfTI-1": _nifti, "NIfTI-2": _nifti, "NRRD": _nrrd, "MetaImage": _meta}
    return tuple(makers[path](path))


def voxels_of(kind: str, shape: tuple[int, ...] = SHAPE) -> Any:
    """Voxels of a type whose last two slices are zero."""
    values = np.abs(scan(shape)).clip(1, 127).astype(kind)
    values[:, :, -2:] = 0
    return values


def _nifti(path: str) -> list[Form]:
    version = 1 if path == "NIfTI-1" else 2
    length = 352 if version == 1 else 544
    found = []
    for kind, order, shape in (
        ("i2", "<", SHAPE),
        ("u1", "<", SHAPE),
        ("f4", ">", SHAPE),
        ("i2", ">", (5, 6, 7, 3)),
        ("f8", "<", (9, 8)),
    ):
        flat = scan(shape).astype(kind) if len(shape) == 2 else voxels_of(kind, shape)
        raw = nifti(flat, version=version, order=order)
        header, data = raw[:length], raw[length:]
        found.append(Form("x.nii", header, data, _one_file))
        found.append(Form("y.nii.gz", header, data, _one_file, is_zipped=True))
    header, data = found[0].header, found[0].data
    found.append(Form("z.nii", _extended(header, version), data, _one_file))
    found.append(Form("p.hdr", _of_pair(header, version), data, nifti_says, "p.img"))
    return found


def _extended(header: bytes, version: int) -> bytes:
    at, form = (108, "<f") if version == 1 else (168, "<q")
    more = struct.pack("<2i", 32, 6) + b"a comment" + bytes(15)
    edited = bytearray(header[:-4] + b"\1\0\0\0" + more)
    struct.pack_into(form, edited, at, len(edited))
    return bytes(edited)


def _of_pair(header: bytes, version: int) -> bytes:
    at, form, magic = (108, "<f", 344) if version == 1 else (168, "<q", 4)
    edited = bytearray(header)
    struct.pack_into(form, edited, at, 0)
    edited[magic : magic + 2] = b"ni"
    return bytes(edited)


def _one_file(raw: bytes, _: bytes) -> Said:
    return nifti_says(raw, raw)


def _nrrd(_: str) -> list[Form]:
    vectors = "(0.8,0,0) (0,1.2,0) (0,0,2.5)"
    found = []
    for encoding, kind, more in (
        ("raw", "i2", {}),
        ("gzip", "i2", {}),
        ("ascii", "i2", {}),
        ("gzip", "f4", {"space": "RAS", "space_directions": vectors}),
        ("raw", "u1", {"space": "", "space_directions": "", "spacings": "0.8 1.2 2.5",
                       "space_origin": "", "kinds": "domain domain domain"}),
    ):  # fmt: skip
        raw = nrrd(voxels_of(kind), encoding=encoding, **more)
        at = raw.index(b"\n\n") + 2
        found.append(Form("x.nrrd", raw[:at], raw[at:], nrrd_file_says))
    plain = voxels_of("i2")
    detached = nrrd(plain, encoding="raw", data_file="x.raw").split(b"\n\n")[0] + b"\n"
    found.append(Form("x.nhdr", detached, plain.tobytes(order="F"), nrrd_file_says, "x.raw"))
    four = nrrd(voxels_of("i2", (5, 6, 7, 3)), kinds="space space space list",
                space_directions="(-0.8,0,0) (0,-1.2,0) (0,0,2.5) none")  # fmt: skip
    at = four.index(b"\n\n") + 2
    found.append(Form("x.nrrd", four[:at], four[at:], nrrd_file_says))
    return found


def nrrd_file_says(raw: bytes, beside: bytes) -> Said:
    """Of a whole file, or of a header and the file beside it."""
    end = re.search(rb"\n\r*\n", raw)
    header, data = (raw[: end.start()], raw[end.end() :]) if end else (raw, b"")
    is_detached = re.search(rb"(?mi)^\s*data ?file\s*:[^=]", header) is not None
    return nrrd_says(header, beside if is_detached else data)


def _meta(_: str) -> list[Form]:
    found = []
    for kind, more in (
        ("i2", {"compressed": False}),
        ("i2", {}),
        ("f4", {"CompressedDataSize": ""}),
        ("u1", {"DistanceUnits": "cm"}),
        ("i2", {"compressed": False, "BinaryDataByteOrderMSB": "True"}),
    ):
        raw = meta(voxels_of(kind), **more)
        at = raw.index(b"LOCAL\n") + 6
        found.append(Form("x.mha", raw[:at], raw[at:], meta_file_says))
    plain = voxels_of("i2")
    header = meta(plain, ElementDataFile="x.zraw").split(b"x.zraw")[0] + b"x.zraw\n"
    data = zlib.compress(plain.tobytes(order="F"))
    found.append(Form("x.mhd", header, data, meta_file_says, "x.zraw"))
    header = meta(
        plain[:5].reshape(5, 13, 7),
        compressed=False,
        DimSize="13 7",
        NDims="2",
        ElementNumberOfChannels="5",
        TransformMatrix="-1 0 0 -1",
        Offset="11 -6.5",
        ElementSpacing="0.8 1.2",
    )
    at = header.index(b"LOCAL\n") + 6
    found.append(Form("x.mha", header[:at], header[at:], meta_file_says))
    return found


def meta_file_says(raw: bytes, beside: bytes) -> Said:
    """Of a whole file, or of a header and the file beside it."""
    last = re.search(rb"(?m)^[ \t\r\f\v]*ElementDataFile[ \t\f\v]*=([^\n]*)\n?", raw)
    assert last is not None
    is_local = last.group(1).strip().upper() == b"LOCAL"
    return meta_says(raw[: last.end()], raw[last.end() :] if is_local else beside)
