"""Folders that hold several DICOM series: each series becomes a case candidate of its own."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from mim3d.data.cohort.cases import Case, Cohort
from mim3d.data.files.dicom import SeriesSummary, list_series
from mim3d.data.files.dicom_paths import series_path
from mim3d.foundation.errors import VolumeError

SHOWN = 40
"""Series of the table; of more only their number is told."""


def with_each_series(cohort: Cohort) -> Cohort:
    """The cohort with a case for each series, where a case was a folder of several.

    Cases of several files, and those with a label map, keep their folder: which series is meant
    must be said (`--read.series`).
    """
    cases: list[Case] = []
    rows: list[str] = []
    folders = 0
    for case in cohort.cases:
        folder = case.images[0]
        several = () if len(case.images) > 1 or case.label is not None else _series(folder)
        if len(several) < 2:
            cases.append(case)
            continue
        folders += 1
        for number, series in enumerate(several, 1):
            case_id = f"{case.case_id}-series{number}"
            subject = case.case_id if case.subject_id == case.case_id else case.subject_id
            images = (series_path(folder, number),)
            cases.append(replace(case, case_id=case_id, subject_id=subject, images=images))
            rows.append(f"  {case_id}: {series_text(series)}")
    if not folders:
        return cohort
    rows = rows[:SHOWN] + ([f"  and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else [])
    line = (f"{folders} folder(s) hold several DICOM series: each is a case; `--read.series` takes "
            "one of each folder, by number, modality or as `largest`")  # fmt: skip
    return replace(cohort, cases=tuple(cases), found=(*cohort.found, line, *rows))


def series_text(series: SeriesSummary) -> str:
    """`MR, 25 slices of 256 x 256`."""
    size = f"{series.slices} slice(s) of {series.columns} x {series.rows}"
    return f"{series.modality or 'unknown modality'}, {size}"


def _series(folder: Path) -> tuple[SeriesSummary, ...]:
    """The series of a folder; none where it is a file, or cannot be listed: reading it says why."""
    if not folder.is_dir():
        return ()
    with os.scandir(folder) as entries:
        if sum(entry.is_file() for entry in entries) < 2:
            return ()
    try:
        return list_series(folder)
    except VolumeError:
        return ()
