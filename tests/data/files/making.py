"""Files of volumes made from scratch, and what they must read as."""

from __future__ import annotations

import gzip
import itertools
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from mim3d.data.files import ReadWarning, read_volume
from mim3d.data.volume import Volume

SHAPE = (11, 13, 7)
SPACING = (0.8, 1.2, 2.5)
OFFSET = (-11.0, 6.5, 31.25)
AFFINE = np.array(
    [[0.8, 0, 0, -11.0], [0, 1.2, 0, 6.5], [0, 0, 2.5, 31.25], [0, 0, 0, 1]], dtype=np.float64
)
RLE = "1.2.840.10008.1.2.5"
ORDERS = [
    "".join(letters)
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for letters in itertools.product(*axes)
]


def scan(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    """int16 `x y z` (or `x y z c`) that is equal to itself under no flip or turn."""
    i = np.indices(shape)
    ramp = sum((3 + 4 * axis) * index for axis, index in enumerate(i))
    noise = np.random.default_rng(seed).integers(0, 9, shape)
    return (ramp + noise - 100).astype(np.int16)


def nifti(
    voxels: np.ndarray,
    affine: np.ndarray = AFFINE,
    *,
    version: int = 1,
    order: str = "<",
    sform: int = 1,
    qform: int = 1,
    change: Callable[[Any], None] | None = None,
) -> bytes:
    """The bytes of a single-file NIfTI, written by nibabel; `change` gets its header last."""
    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    header = kind.header_class(endianness=order)
    header.set_data_dtype(voxels.dtype.newbyteorder(order))
    image = kind(voxels, affine, header)
    image.set_sform(affine if sform else None, sform)
    image.set_qform(affine if qform else None, qform)
    raw = bytearray(image.to_bytes())
    if change is not None:
        size = 348 if version == 1 else 540
        edited = kind.header_class(bytes(raw[:size]), endianness=order, check=False)
        change(edited)
        raw[:size] = edited.binaryblock
    return bytes(raw)


def zipped(raw: bytes, level: int = 6) -> bytes:
    """One gzip member."""
    return gzip.compress(raw, level, mtime=0)


def nrrd(voxels: np.ndarray, *, encoding: str = "gzip", extra: str = "", **fields: str) -> bytes:
    """An NRRD in LPS; `fields` replace, or remove where they are empty."""
    names = {"i": "int", "u": "uint", "f": "float"}
    kind = names[voxels.dtype.kind] + ("" if voxels.dtype.kind == "f" else f"{voxels.itemsize * 8}")
    lines = {
        "type": kind,
        "dimension": str(voxels.ndim),
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, voxels.shape)),
        "space directions": "(-0.8,0,0) (0,-1.2,0) (0,0,2.5)",
        "endian": "little",
        "encoding": encoding,
        "space origin": "(11,-6.5,31.25)",
    } | {name.replace("_", " "): value for name, value in fields.items()}
    header = "NRRD0004\n" + "".join(f"{k}: {v}\n" for k, v in lines.items() if v) + extra + "\n"
    data = voxels.tobytes(order="F")
    if encoding == "gzip":
        data = zipped(data)
    if encoding == "ascii":
        data = b"\n".join(b"%d" % value for value in voxels.ravel(order="F"))
    return header.encode("latin-1") + data


def meta(voxels: np.ndarray, *, compressed: bool = True, extra: str = "", **fields: str) -> bytes:
    """An MHA in LPS; `fields` replace, or remove where they are empty."""
    data = voxels.tobytes(order="F")
    if compressed:
        data = zlib.compress(data)
    kinds = {"u1": "UCHAR", "i2": "SHORT", "u2": "USHORT", "i4": "INT", "f4": "FLOAT"}
    lines = {
        "ObjectType": "Image",
        "NDims": str(voxels.ndim),
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": str(compressed),
        "CompressedDataSize": str(len(data)) if compressed else "",
        "TransformMatrix": "-1 0 0 0 -1 0 0 0 1",
        "Offset": "11 -6.5 31.25",
        "ElementSpacing": "0.8 1.2 2.5",
        "DimSize": " ".join(map(str, voxels.shape)),
        "ElementType": f"MET_{kinds[voxels.dtype.str[1:]]}",
        "ElementDataFile": "LOCAL",
    } | fields
    last = lines.pop("ElementDataFile")
    header = "".join(f"{name} = {value}\n" for name, value in lines.items() if value)
    return f"{header}{extra}ElementDataFile = {last}\n".encode("latin-1") + data


def dicom_slice(pixels: np.ndarray, position: tuple[float, float, float], **changes: Any) -> bytes:
    """One CT slice (`rows columns`, int16), explicit little endian; None removes an element."""
    rows, columns = pixels.shape
    elements: dict[tuple[int, int], tuple[str, Any]] = {
        (0x0008, 0x0016): ("UI", "1.2.840.10008.5.1.4.1.1.2"),
        (0x0008, 0x0060): ("CS", "CT"),
        (0x0010, 0x0010): ("PN", "PLANTED^NAME"),
        (0x0018, 0x0050): ("DS", changes.pop("thickness", "2.5")),
        (0x0020, 0x000E): ("UI", changes.pop("series", "1.2.3")),
        (0x0020, 0x0032): ("DS", "\\".join(f"{value:g}" for value in position)),
        (0x0020, 0x0037): ("DS", changes.pop("orientation", "1\\0\\0\\0\\1\\0")),
        (0x0028, 0x0002): ("US", changes.pop("samples", 1)),
        (0x0028, 0x0004): ("CS", changes.pop("photometric", "MONOCHROME2")),
        (0x0028, 0x0008): ("IS", changes.pop("frames", None)),
        (0x0028, 0x0010): ("US", changes.pop("rows", rows)),
        (0x0028, 0x0011): ("US", columns),
        (0x0028, 0x0030): ("DS", changes.pop("spacing", "1.2\\0.8")),
        (0x0028, 0x0100): ("US", 16),
        (0x0028, 0x0101): ("US", changes.pop("bits", 16)),
        (0x0028, 0x0102): ("US", changes.pop("high_bit", 15)),
        (0x0028, 0x0103): ("US", changes.pop("signed", 1)),
        (0x0028, 0x1052): ("DS", changes.pop("intercept", None)),
        (0x0028, 0x1053): ("DS", changes.pop("slope", None)),
    }
    is_rle = changes.pop("rle", False)
    syntax = changes.pop("syntax", RLE if is_rle else "1.2.840.10008.1.2.1")
    assert not changes, changes
    body = b"".join(_element(*tag, *value) for tag, value in elements.items())
    data = pixels.astype("<i2").tobytes()
    if is_rle:
        body += struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
        body += _item(b"") + _item(_rle(data)) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    else:
        body += struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, len(data)) + data
    head = _element(2, 0x0002, "UI", "1.2.840.10008.5.1.4.1.1.2") + _element(
        2, 0x0010, "UI", syntax
    )
    length = struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(head))
    return bytes(128) + b"DICM" + length + head + body


def _item(value: bytes) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(value)) + value


def _rle(data: bytes) -> bytes:
    """PS3.5, annex G: one segment for the high bytes, one for the low; literal runs only."""
    segments = []
    for plane in (data[1::2], data[0::2]):
        runs = [plane[at : at + 128] for at in range(0, len(plane), 128)]
        packed = b"".join(bytes([len(run) - 1]) + run for run in runs)
        segments.append(packed + b"\0" * (len(packed) % 2))
    offsets = [2, 64, 64 + len(segments[0])]
    return struct.pack("<16I", *offsets, *([0] * 13)) + b"".join(segments)


def _element(group: int, number: int, form: str, value: Any) -> bytes:
    if value is None:
        return b""
    raw = struct.pack("<H", value) if form == "US" else str(value).encode()
    raw += (b"\0" if form == "UI" else b" ") * (len(raw) % 2)
    return struct.pack("<HH2sH", group, number, form.encode(), len(raw)) + raw


def dicom_folder(folder: Path, count: int = 5, **changes: Any) -> np.ndarray:
    """A good series of `count` slices; returns its voxels `x y z` in the file's order."""
    folder.mkdir(parents=True, exist_ok=True)
    voxels = scan((9, 8, count))
    for k in range(count):
        raw = dicom_slice(voxels[:, :, k].T, (11, -6.5, 31.25 + 2.5 * k), **changes)
        (folder / f"IM{k:03d}.dcm").write_bytes(raw)
    return voxels


def reoriented(voxels: np.ndarray, affine: np.ndarray, order: str) -> tuple[np.ndarray, np.ndarray]:
    """The same volume stored with its axes towards three letters, by nibabel."""
    codes = nibabel.orientations.axcodes2ornt(tuple(order))
    turned = nibabel.orientations.apply_orientation(voxels, codes_from_ras(codes))
    back = nibabel.orientations.inv_ornt_aff(codes_from_ras(codes), voxels.shape)
    return np.ascontiguousarray(turned), affine @ back


def codes_from_ras(codes: np.ndarray) -> np.ndarray:
    """nibabel's transform from RAS+ to an orientation."""
    ras = nibabel.orientations.axcodes2ornt(("R", "A", "S"))
    return nibabel.orientations.ornt_transform(ras, codes)


def quietly(path: Path, **options: Any) -> Volume:
    """Reads a volume whose notes are looked at rather than warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReadWarning)
        return read_volume(path, **options)


def codes(volume: Volume) -> set[str]:
    """The codes of a volume's notes."""
    return {note.code for note in volume.notes}


def put(folder: Path, name: str, raw: bytes) -> Path:
    """Writes a file and gives its path."""
    path = folder / name
    path.write_bytes(raw)
    return path
