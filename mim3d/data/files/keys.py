"""The key of a source: what its bytes are, whatever its name, date or folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from mim3d.data.files import meta_image, nifti, nrrd
from mim3d.data.files.archive_rows import archive_of, row_content
from mim3d.data.files.dicom import series_files
from mim3d.data.files.dicom_paths import series_of
from mim3d.data.files.dicom_series import dicom_files
from mim3d.data.files.kinds import Kind, kind_of
from mim3d.data.files.streams import open_regular
from mim3d.foundation.errors import VolumeError

PIECE = 1 << 22


def content_key(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of all bytes that a volume is read from, in hexadecimal.

    A file's own; for a pair or a header with its data beside it, that of both keys in this order;
    for a folder of DICOM, or one of its series, that of its slices' keys, sorted, so that renaming
    changes nothing. For a row of an archive that of the row alone.

    Raises:
        VolumeError: a file is absent or cannot be read.
    """
    path = Path(path)
    try:
        if archive_of(path) is not None:
            return hashlib.sha256(row_content(path)).hexdigest()
        if (numbered := series_of(path)) is not None:
            return _joined(sorted(map(_file_key, series_files(*numbered))))
        if path.is_dir():
            slices, _ = dicom_files(path)
            return _joined(sorted(map(_file_key, slices)))
        files = _files_of(path)
        return _file_key(path) if len(files) == 1 else _joined([_file_key(file) for file in files])
    except OSError as error:
        reason = error.strerror or "the device failed"
        raise VolumeError(
            f"it cannot be read: {reason}", where=os.fspath(path), code="unreadable"
        ) from None
    except VolumeError as error:
        error.where = error.where or os.fspath(path)
        raise


def _files_of(path: Path) -> list[Path]:
    """The files that belong to a volume; the path alone where that cannot be told."""
    finders = {
        Kind.NIFTI: nifti.data_file,
        Kind.NRRD: nrrd.data_file,
        Kind.META: meta_image.data_file,
    }
    try:
        kind, _ = kind_of(path)
        header = nifti.header_of_pair(path) or path
        beside = finders[kind](header) if kind in finders else None
    except VolumeError:
        return [path]
    return [header] if beside is None else [header, beside]


def _file_key(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _joined(keys: list[str]) -> str:
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()
