"""One door for every kind of source: `read_cohort`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mim3d.data.cohort.archive import read_archive
from mim3d.data.cohort.bids import is_bids, read_bids
from mim3d.data.cohort.cases import Case, Cohort, stem
from mim3d.data.cohort.dataset_json import read_dataset_json
from mim3d.data.cohort.folders import is_dicom_folder, read_folder, read_pattern
from mim3d.data.cohort.named_labels import with_named_labels
from mim3d.data.cohort.series import with_each_series
from mim3d.data.cohort.table import read_table
from mim3d.foundation.errors import UserError


def read_cohort(
    source: Path | str,
    pattern: str | None = None,
    *,
    contrasts: Sequence[str] | None = None,
    labels: str | None = None,
    series: str | None = None,
) -> Cohort:
    """The cases of a source.

    A source is an MSD `dataset.json` or the folder that holds it, an nnU-Net raw folder, a BIDS
    data set, a folder of images (with labels beside them or in a folder of their own, or without),
    a folder or tree of folders of DICOM series, a CSV, a NumPy archive of MedMNIST's form, or one
    file.

    Args:
        source: a file or folder.
        pattern: glob of the images below a folder, for example `sub-*/**/*_T1w.nii.gz`; labels
            are not looked for then.
        contrasts: of a BIDS data set, what becomes channels; None is what every session has.
        labels: glob of the label maps of a BIDS data set, or beside `pattern`.
        series: `ReadConfig.series`: without it each of several series in a folder is a case.

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
    if not (path.is_file() or path.is_dir()):
        raise UserError(
            f"`{source}` is neither a file nor a folder", remedy="check the path", code="no-source"
        )
    described = path / "dataset.json"
    cohort = _listed(described if pattern is None and described.is_file() else path)
    if cohort is None:
        cohort = _of_folder(path, pattern, contrasts, labels)
        # Who lists cases says which files they are; a folder is looked through.
        cohort = with_each_series(cohort) if series is None else cohort
    cohort = with_named_labels(cohort, path)
    return replace(cohort, remarks=(*remarks, *cohort.remarks))


def _listed(path: Path) -> Cohort | None:
    """The cohort of a file; None of a folder."""
    if not path.is_file():
        return None
    ending = path.suffix.lower()
    if ending == ".json":
        return read_dataset_json(path)
    if ending in (".csv", ".tsv"):
        return read_table(path)
    if ending == ".npz":
        return read_archive(path)
    return _single(path, "a single file")


def _of_folder(
    path: Path, pattern: str | None, contrasts: Sequence[str] | None, labels: str | None
) -> Cohort:
    if pattern is not None:
        return read_pattern(path, pattern, labels)
    if is_dicom_folder(path):
        return _single(path, "a DICOM folder")
    if is_bids(path):
        return read_bids(path, contrasts, labels)
    return read_folder(path)


def _single(path: Path, kind: str) -> Cohort:
    name = stem(path) or "case"
    return Cohort("", (Case(name, name, (path,)),), kind, source=str(path))
