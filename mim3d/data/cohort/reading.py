"""One door for every kind of source: `read_cohort`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from mim3d.data.cohort.archive import read_archive
from mim3d.data.cohort.cases import Case, Cohort, stem
from mim3d.data.cohort.dataset_json import read_dataset_json
from mim3d.data.cohort.folders import is_dicom_folder, read_folder, read_pattern
from mim3d.data.cohort.table import read_table
from mim3d.foundation.errors import UserError


def read_cohort(source: Path | str, pattern: str | None = None) -> Cohort:
    """The cases of a source.

    A source is an MSD `dataset.json` or the folder that holds it, an nnU-Net raw folder, a folder
    of images (with labels beside them or in a folder of their own, or without), a folder or tree of
    folders of DICOM series, a CSV, a NumPy archive of MedMNIST's form, or one file.

    Args:
        source: a file or folder.
        pattern: glob of the images below a folder, for example `sub-*/**/*_T1w.nii.gz`; labels
            are not looked for then.

    Raises:
        UserError: nothing there, no case in it, ids that occur twice, files out of the source, or
            lists that cannot be understood.
    """
    path = Path(source)
    remarks: tuple[str, ...] = ()
    raw = os.environ.get("nnUNet_raw")  # noqa: SIM112 - nnU-Net spells it so
    if not path.exists() and raw and (Path(raw) / path).is_dir():
        path = Path(raw) / path
        remarks = (f"`{source}` was found by the environment variable nnUNet_raw",)
    if not path.exists():
        raise UserError(f"`{source}` does not exist", remedy="check the path", code="no-source")
    cohort = _read(path, pattern)
    return replace(cohort, remarks=(*remarks, *cohort.remarks))


def _read(path: Path, pattern: str | None) -> Cohort:
    if path.is_file():
        ending = path.suffix.lower()
        if ending == ".json":
            return read_dataset_json(path)
        if ending in (".csv", ".tsv"):
            return read_table(path)
        if ending == ".npz":
            return read_archive(path)
        return _single(path, "a single file")
    if pattern is not None:
        return read_pattern(path, pattern)
    if (path / "dataset.json").is_file():
        return read_dataset_json(path / "dataset.json")
    if is_dicom_folder(path):
        return _single(path, "a DICOM folder")
    return read_folder(path)


def _single(path: Path, kind: str) -> Cohort:
    name = stem(path) or "case"
    return Cohort("", (Case(name, name, (path,)),), kind, source=str(path))
