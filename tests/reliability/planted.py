"""A cohort in every format with names of patients planted wherever a file or a path has room."""

from __future__ import annotations

import csv
import gzip
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from mim3d.data.phantom import PhantomRule, make_volume
from tests.data.files.making import meta, nifti, nrrd
from tests.reliability.dicom_series import PIXELS, Elements, encoded

RULE = PhantomRule(shape=(26, 22, 14), spacing_mm=(0.8, 1.2, 2.5), organs=1)
AFFINE = np.diag([0.8, 1.2, 2.5, 1.0])
EXPLICIT = "1.2.840.10008.1.2.1"
IMAGES = ("scan.nii.gz", "scan.nii", "scan.nrrd", "scan.mha", "scan.nhdr", "scan.mhd", "dicom")
REFUSED = ("broken.nrrd", "broken.mha", "broken_dicom", "two_series", "cut.nii.gz")


def plant_cohort(folder: Path, names: Sequence[str]) -> Path:
    """Writes the cohort into folders that bear names.

    Args:
        folder: where to; made if absent.
        names: `FAMILY^GIVEN`, each planted in every kind of place.

    Returns:
        A table of all cases, two of them a validation list.
    """
    rows = []
    for number, file in enumerate((*IMAGES, IMAGES[0], *REFUSED)):
        place = folder / names[number % len(names)] / names[-1 - number % len(names)]
        place.mkdir(parents=True, exist_ok=True)
        voxels, labels = make_volume(3, number, RULE)
        image, label = place / f"{number}_{file}", place / f"{number}_label.nii.gz"
        own = names[number % len(names) :] + names[: number % len(names)]
        _write(image, voxels[0], own)
        label.write_bytes(zipped(with_texts(labels, own), own))
        part = "validation" if number in (6, 7) else "training"
        rows.append([f"case_{number}", *(str(p.relative_to(folder)) for p in (image, label)), part])
    table = folder / "cohort.csv"
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "image", "label", "list", "patient", names[0]])
        writer.writerows([*row, names[n % len(names)], "x"] for n, row in enumerate(rows))
    return table


def _write(path: Path, voxels: NDArray[Any], names: Sequence[str]) -> None:
    text = " ".join(names)
    name = path.name.partition("_")[2]
    if name == "scan.nii.gz":
        path.write_bytes(zipped(with_texts(voxels, names), names))
    elif name == "scan.nii":
        path.write_bytes(with_texts(voxels, names, version=2))
    elif name == "cut.nii.gz":
        path.write_bytes(zipped(with_texts(voxels, names), names)[:-200])
    elif name.endswith("nrrd"):
        extra = f"# {text}\nPatientName:={text}\n{names[0]}:=scan\ncontent: {text}\n"
        kind = {"type": names[0]} if name.startswith("broken") else {}
        head = nrrd(voxels, extra=extra, encoding="raw", space_origin="(0,0,0)", **kind)
        path.write_bytes(head)
    elif name == "scan.nhdr":
        data = path.with_name(f"{names[0]}.raw.gz")
        data.write_bytes(zipped(voxels.tobytes(order="F"), names))
        extra = f"# {text}\ndata file: {data.name}\n"
        head, _, _ = nrrd(voxels, extra=extra, space_origin="(0,0,0)").partition(b"\n\n")
        path.write_bytes(head + b"\n\n")
    elif name.endswith(("mha", "mhd")):
        _write_meta(path, voxels, names, broken=name.startswith("broken"))
    else:
        _write_dicom(path, voxels, names, name)


def _write_meta(path: Path, voxels: NDArray[Any], names: Sequence[str], *, broken: bool) -> None:
    text = " ".join(names)
    extra = f"Comment = {names[1]}\nPatientName = {text}\n{names[0]} = {text}\n"
    if broken:
        path.write_bytes(meta(voxels, extra=extra, ElementType=names[0]))
        return
    raw = meta(voxels, extra=extra, compressed=False, Offset="0 0 0")
    if path.suffix == ".mhd":
        data = path.with_name(f"{names[0]}.raw")
        data.write_bytes(voxels.tobytes(order="F"))
        head, _, _ = raw.partition(b"ElementDataFile")
        raw = head + f"ElementDataFile = {data.name}\n".encode()
    path.write_bytes(raw)


def _write_dicom(folder: Path, voxels: NDArray[Any], names: Sequence[str], kind: str) -> None:
    folder.mkdir()
    (folder / f"{names[1]}.txt").write_text(names[2])
    for k in range(voxels.shape[2]):
        series = f"1.2.{k % 2 if kind == 'two_series' else 3}"
        elements = _elements(voxels[:, :, k].T, k, names, series)
        raw = encoded(elements, EXPLICIT)
        if kind == "broken_dicom" and k == 4:
            raw = raw[: len(raw) // 2]
        (folder / f"{names[0]}_{k:03}.dcm").write_bytes(raw)


def _elements(pixels: NDArray[Any], k: int, names: Sequence[str], series: str) -> Elements:
    rows, columns = pixels.shape
    name, text = names[0].encode(), " ".join(names).encode()[:60]
    return {
        (0x0008, 0x0060): ("CS", b"MR"),
        (0x0008, 0x0080): ("LO", text),
        (0x0008, 0x0090): ("PN", name),
        (0x0008, 0x103E): ("LO", text),
        (0x0009, 0x0010): ("LO", text),
        (0x0009, 0x1001): ("LO", text),
        (0x0010, 0x0010): ("PN", name),
        (0x0010, 0x0020): ("LO", text),
        (0x0010, 0x4000): ("LT", " ".join(names).encode()),
        (0x0018, 0x0050): ("DS", b"2.5"),
        (0x0018, 0x1030): ("LO", text),
        (0x0020, 0x000E): ("UI", series.encode()),
        (0x0020, 0x0032): ("DS", b"0\\0\\%g" % (2.5 * k)),
        (0x0020, 0x0037): ("DS", b"-1\\0\\0\\0\\-1\\0"),
        (0x0020, 0x4000): ("LT", text),
        (0x0028, 0x0002): ("US", struct.pack("<H", 1)),
        (0x0028, 0x0004): ("CS", b"MONOCHROME2"),
        (0x0028, 0x0010): ("US", struct.pack("<H", rows)),
        (0x0028, 0x0011): ("US", struct.pack("<H", columns)),
        (0x0028, 0x0030): ("DS", b"1.2\\0.8"),
        (0x0028, 0x0100): ("US", struct.pack("<H", 16)),
        (0x0028, 0x0101): ("US", struct.pack("<H", 16)),
        (0x0028, 0x0102): ("US", struct.pack("<H", 15)),
        (0x0028, 0x0103): ("US", struct.pack("<H", 1)),
        PIXELS: ("OW", pixels.astype("<i2").tobytes()),
    }


def with_texts(voxels: NDArray[Any], names: Sequence[str], version: int = 1) -> bytes:
    """A NIfTI with names in every field that holds text, and in two extensions."""
    name, text = names[0].encode(), " ".join(names).encode()

    def change(header: Any) -> None:
        header["descrip"] = text[:79]
        header["aux_file"] = name[:23]
        header["intent_name"] = name[:15]
        for field in ("db_name", "data_type"):
            if field in header.structarr.dtype.names:
                header[field] = name[: 17 if field == "db_name" else 9]

    raw = nifti(voxels, AFFINE, version=version, change=change)
    size, offset = (348, 108) if version == 1 else (540, 168)
    block = text + bytes(-len(text) % 16 + 8)
    extension = struct.pack("<2i", len(block) + 8, 6) + block
    dicom = struct.pack("<2i", 32, 2) + name[:24].ljust(24, b"\0")
    whole = bytearray(raw[:size]) + b"\1\0\0\0" + extension + dicom
    whole += bytes(-len(whole) % 16)
    form = "<f" if version == 1 else "<q"
    struct.pack_into(form, whole, offset, len(whole))
    # The voxels begin where the header without extensions said.
    return bytes(whole) + raw[size + 4 :]


def zipped(raw: bytes, names: Sequence[str]) -> bytes:
    """One gzip member with names in its header: extra field, file name, comment."""
    text = " ".join(names).encode("latin-1")
    extra = b"PN" + struct.pack("<H", len(text)) + text
    head = b"\x1f\x8b\x08\x1c" + bytes(4) + b"\0\xff" + struct.pack("<H", len(extra)) + extra
    head += names[0].encode("latin-1") + b".nii\0" + text + b"\0"
    pressed = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = pressed.compress(raw) + pressed.flush()
    whole = head + body + struct.pack("<2I", zlib.crc32(raw), len(raw) & 0xFFFFFFFF)
    assert gzip.decompress(whole) == raw
    assert nibabel.Nifti1Header.sizeof_hdr == 348
    return whole
