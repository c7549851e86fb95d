"""One of several DICOM series in a folder, as a path that can stand wherever a volume's file can.

`scans/dicom_series_002` is the second series of `scans`, by the numbers that `--read.series` takes.
Identifiers of series are the hospital's and do not become part of a name.
"""

from __future__ import annotations

import re
from pathlib import Path

SERIES = re.compile(r"dicom_series_([0-9]{3,5})")


def series_path(folder: Path, number: int) -> Path:
    """The path of a series, numbered from 1."""
    return folder / f"dicom_series_{number:03d}"


def series_of(path: Path) -> tuple[Path, int] | None:
    """The folder and number that a path stands for; None for other paths."""
    matched = SERIES.fullmatch(path.name)
    if matched is None or path.exists() or not path.parent.is_dir():
        return None
    return path.parent, int(matched[1])
