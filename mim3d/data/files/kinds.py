"""What a file is, by its content; its name is only compared with that.

A wrong or missing ending is a note. What is no volume at all (a web page, a Git LFS pointer, an
archive) is named, since that is what downloads leave behind.
"""

from __future__ import annotations

import struct
from enum import Enum
from pathlib import Path

from mim3d.data.files.archive_rows import archive_of
from mim3d.data.files.deflate import GZIP_MAGIC, DeflateStream
from mim3d.data.files.dicom_paths import series_of
from mim3d.data.files.nifti import find_byte_order, header_of_pair
from mim3d.data.files.streams import open_regular, read_all
from mim3d.data.volume import Note
from mim3d.foundation.errors import VolumeError

LOOK = 512


class Kind(Enum):
    """The formats that are read, with the name a person knows them by."""

    NIFTI = "NIfTI"
    NRRD = "NRRD"
    META = "MetaImage"
    DICOM = "DICOM"
    ARCHIVE = "NumPy archive"


ENDINGS = {
    Kind.NIFTI: (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz"),
    Kind.NRRD: (".nrrd", ".nhdr"),
    Kind.META: (".mha", ".mhd"),
}
FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer instead of the file itself",
        "fetch the file with `git lfs pull`",
    ),
    (b"PK\x03\x04", "a zip archive", "unpack it first"),
    (b"\x89HDF", "an HDF5 file", "convert it to NIfTI"),
    (b"\x93NUMPY", "a NumPy file", "convert it to NIfTI"),
    (b"MINC", "a MINC file", "convert it to NIfTI"),
    (b"CDF", "a NetCDF file", "convert it to NIfTI"),
    (b"BZh", "a bzip2 file", "unpack it first"),
    (b"\xfd7zXZ", "an xz file", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstandard file", "unpack it first"),
    (b"%PDF", "a PDF document", "get the volume itself"),
    (b"\x89PNG", "a PNG picture", "convert it to NIfTI"),
    (b"\xff\xd8\xff", "a JPEG picture", "convert it to NIfTI"),
)


def kind_of(path: Path) -> tuple[Kind, list[Note]]:
    """The format of a file, and a note where its name says something else; folders are DICOM.

    Raises:
        VolumeError: absent, unreadable, empty, or none of the formats.
    """
    if path.is_dir() or series_of(path) is not None:
        return Kind.DICOM, []
    if archive_of(path) is not None:
        return Kind.ARCHIVE, []
    partner = header_of_pair(path)
    with open_regular(partner or path) as file:
        start = file.read(LOOK)
        zipped = start[:2] == GZIP_MAGIC
        if zipped:
            try:
                start = read_all(DeflateStream(file), 348)
            except VolumeError as error:
                # An archive or a damaged stream: the stream's own words are the better ones.
                raise error from None
    kind = _by_content(start)
    if kind is None:
        raise _unknown(start, zipped)
    if zipped and kind is not Kind.NIFTI:
        raise VolumeError(
            f"it is a {kind.value} file inside gzip, which is not read",
            remedy="unpack it first",
            code="format",
        )
    return kind, _name_notes(path.name.lower(), kind, zipped)


def looks_like_dicom(start: bytes) -> bool:
    """Whether the first 132 bytes are those of a DICOM file (PS3.10, 7.1)."""
    return start[128:132] == b"DICM"


def _by_content(start: bytes) -> Kind | None:
    if start[:4] == b"NRRD":
        return Kind.NRRD
    if looks_like_dicom(start):
        return Kind.DICOM
    if _is_nifti(start):
        return Kind.NIFTI
    first = start.split(b"\n", 1)[0]
    if first.partition(b"=")[0].strip() in (b"ObjectType", b"NDims", b"Comment"):
        return Kind.META
    return None


def _is_nifti(start: bytes) -> bool:
    if len(start) < 4 or (found := find_byte_order(start)) is None:
        return False
    # A number alone is weak evidence; dim[0] must make sense, too, in the same byte order.
    version, order = found
    return version == 2 or len(start) < 42 or 0 < struct.unpack_from(f"{order}h", start, 40)[0] < 8


def _name_notes(name: str, kind: Kind, zipped: bool) -> list[Note]:
    if kind is Kind.DICOM:
        expected = not any(name.endswith(e) for ends in ENDINGS.values() for e in ends)
    else:
        expected = any(name.endswith(ending) for ending in ENDINGS[kind])
        if kind is Kind.NIFTI:
            expected = expected and name.endswith(".gz") == zipped
    if expected:
        return []
    content = f"{kind.value}{' inside gzip' if zipped else ''}"
    return [Note("name", f"its name does not end as {content} does: it was read by its content")]


def _unknown(start: bytes, zipped: bool) -> VolumeError:
    if not start:
        what = "a gzip stream of nothing" if zipped else "empty"
        return VolumeError(f"it is {what}", remedy="get the file again", code="empty")
    for magic, name, remedy in FOREIGN:
        if start.startswith(magic):
            return VolumeError(f"it is {name}", remedy=remedy, code="format")
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return VolumeError(
            "it is a web page, probably the error page of a failed download",
            remedy="download the file again, logged in if the site asks for it",
            code="format",
        )
    return VolumeError(
        "it is no NIfTI, NRRD, MetaImage or DICOM file",
        remedy="convert it to NIfTI, or leave it out",
        code="format",
    )
