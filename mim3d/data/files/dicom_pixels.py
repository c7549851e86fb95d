"""The pixels of DICOM slices: native ones by NumPy, compressed ones by SimpleITK.

SimpleITK (GDCM) decodes the compressed frame alone: it is handed a small file in memory that holds
the sizes checked before and the frame, so it sees no foreign header, applies no rescale and inverts
nothing. Runs in the reading process only.
"""

from __future__ import annotations

import importlib
import os
import struct
import tempfile
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mim3d.data.files.dicom_series import Series
from mim3d.data.files.dicom_tags import BIG, Tags
from mim3d.data.files.streams import open_regular
from mim3d.data.volume import Note
from mim3d.foundation.errors import VolumeError


def read_slices(series: Series, dtype: np.dtype[Any]) -> tuple[NDArray[Any], list[Note]]:
    """All slices of a series, rescaled in float64, as `slices rows columns`.

    Args:
        series: checked.
        dtype: what `describe` announced.

    Raises:
        VolumeError: a frame cannot be decoded, or two different slices share a place.
    """
    columns, rows, count = series.shape
    voxels = np.empty((count, rows, columns), dtype=dtype)
    dropped = 0
    for index, (first, *others) in enumerate(series.places):
        voxels[index] = _rescaled(first)
        for other in others:
            if not np.array_equal(_rescaled(first), _rescaled(other)):
                raise VolumeError(
                    f"its slices `{first.path.name}` and `{other.path.name}` differ at one place",
                    remedy="keep the slices of one acquisition in the folder",
                    code="duplicate-slice",
                )
            dropped += 1
    text = f"{dropped} slices were there twice, identical: taken once"
    return voxels, [Note("duplicate-slice", text)] if dropped else []


def _rescaled(tags: Tags) -> NDArray[Any]:
    stored = _native(tags) if tags.is_native else _decoded(tags)
    slope = (tags.several("slope", 1) or [1.0])[0]
    intercept = (tags.several("intercept", 1) or [0.0])[0]
    if (slope, intercept) == (1.0, 0.0):
        return stored
    return stored.astype(np.float64) * slope + intercept


def _native(tags: Tags) -> NDArray[Any]:
    """Pixels as they lie in the file, the bits above those stored cut off."""
    bits, signed = tags.whole("bits_allocated"), tags.whole("signed")
    rows, columns = tags.whole("rows"), tags.whole("columns")
    order = ">" if tags.text("syntax") == BIG else "<"
    raw = _bytes(tags)[: rows * columns * (bits // 8)]
    unsigned = np.frombuffer(raw, dtype=f"{order}u{bits // 8}").astype(f"u{bits // 8}")
    spare = bits - tags.whole("bits_stored")
    # Old files keep overlays in the spare bits: shifted out, and back with the sign.
    values = (unsigned << spare).view(f"i{bits // 8}" if signed else f"u{bits // 8}") >> spare
    return values.reshape(rows, columns)


def _bytes(tags: Tags) -> bytes:
    with open_regular(tags.path) as file:
        parts = []
        for start, length in tags.pixels or []:
            file.seek(start)
            parts.append(file.read(length))
    return b"".join(parts)


def _decoded(tags: Tags) -> NDArray[Any]:
    # Here and not above: only compressed series need it, and it takes a second to load.
    try:
        SimpleITK: Any = importlib.import_module("SimpleITK")
    except ImportError:
        raise VolumeError(
            "its pixels are compressed and their decoder, SimpleITK, cannot be loaded",
            remedy="free some memory, or convert the series to NIfTI (`dcm2niix`)",
            code="decoder",
        ) from None
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    SimpleITK.ProcessObject.GlobalWarningDisplayOff()
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    with _InMemory(_plain_file(tags)) as name:
        reader.SetFileName(name)
        try:
            array = SimpleITK.GetArrayFromImage(reader.Execute())
        except RuntimeError:
            raise VolumeError(
                f"the compressed pixels of its slice `{tags.path.name}` cannot be decoded",
                remedy="export the series again, without compression if possible",
                code="damaged",
            ) from None
    rows, columns = tags.whole("rows"), tags.whole("columns")
    if array.size != rows * columns:
        raise VolumeError(
            f"its slice `{tags.path.name}` decodes to another size than its header says",
            code="damaged",
        )
    bits, signed = tags.whole("bits_allocated"), tags.whole("signed")
    kind = np.dtype(f"{'i' if signed else 'u'}{bits // 8}")
    return np.asarray(array.reshape(rows, columns).astype(kind))


def _plain_file(tags: Tags) -> bytes:
    """A DICOM file of nothing but the checked sizes and the compressed frame."""
    kind, instance = b"1.2.840.10008.5.1.4.1.1.7\0", b"1.2.3.4\0"

    def element(group: int, number: int, form: bytes, value: bytes) -> bytes:
        value += b"\0" * (len(value) % 2)
        head = struct.pack("<HH", group, number) + form
        if form in (b"OB", b"UN"):
            return head + struct.pack("<HI", 0, len(value)) + value
        return head + struct.pack("<H", len(value)) + value

    def short(number: int, value: int) -> bytes:
        return element(0x0028, number, b"US", struct.pack("<H", value))

    meta = (
        element(0x0002, 0x0001, b"OB", b"\0\1")
        + element(0x0002, 0x0002, b"UI", kind)
        + element(0x0002, 0x0003, b"UI", instance)
        + element(0x0002, 0x0010, b"UI", tags.text("syntax").encode("latin-1"))
        + element(0x0002, 0x0012, b"UI", instance)
    )
    body = (
        element(0x0008, 0x0016, b"UI", kind)
        + element(0x0008, 0x0018, b"UI", instance)
        + short(0x0002, 1)
        + element(0x0028, 0x0004, b"CS", b"MONOCHROME2 ")
        + short(0x0010, tags.whole("rows"))
        + short(0x0011, tags.whole("columns"))
        + short(0x0100, tags.whole("bits_allocated"))
        + short(0x0101, tags.whole("bits_stored"))
        + short(0x0102, tags.whole("bits_stored") - 1)
        + short(0x0103, tags.whole("signed"))
    )
    frame = _bytes(tags)
    frame += b"\0" * (len(frame) % 2)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    item += struct.pack("<HHI", 0xFFFE, 0xE000, len(frame)) + frame
    pixels = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    length = element(0x0002, 0x0000, b"UL", struct.pack("<I", len(meta)))
    return bytes(128) + b"DICM" + length + meta + body + pixels + item + end


class _InMemory:
    """A file with a name that never reaches a disk, where the system has such; else a temporary."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __enter__(self) -> str:
        self._file: IO[bytes]
        if hasattr(os, "memfd_create"):
            self._file = os.fdopen(os.memfd_create("slice"), "wb")
            name = f"/proc/self/fd/{self._file.fileno()}"
        else:
            self._file = tempfile.NamedTemporaryFile(suffix=".dcm")
            name = self._file.name
        self._file.write(self._content)
        self._file.flush()
        return name

    def __exit__(self, *_: object) -> None:
        self._file.close()
