"""Sources of cohorts on disk, made of empty files."""

from __future__ import annotations

import json
from pathlib import Path

from mim3d.data.cohort import Cohort


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def dicom(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(128) + b"DICM")


def described(folder: Path, **content) -> Path:
    path = folder / "dataset.json"
    path.write_text(json.dumps(content))
    return path


def rows(cohort: Cohort) -> list[tuple]:
    return [
        (c.case_id, [p.name for p in c.images], c.label and c.label.name, c.part)
        for c in cohort.cases
    ]
