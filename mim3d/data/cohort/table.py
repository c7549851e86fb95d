"""A cohort as a table: a CSV with one row a case.

Columns: `image`, or `image_<contrast>` for each channel; and, where wanted, `case`, `label`,
`subject`, `list` (training, validation, test) and `target_<name>`, a number to predict. Paths are
relative to the file; a row of an archive has one, `archive.npz/train_00017`.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

from mim3d.data.cohort.cases import Case, Cohort, Part, listed, remarks_on_subjects, stem
from mim3d.foundation.errors import UserError

MAX_BYTES = 256 * 2**20
LISTS: dict[str, Part] = {
    "": "training",
    "train": "training",
    "training": "training",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
KNOWN = ("case", "image", "label", "subject", "list")


def read_table(path: Path) -> Cohort:
    """The cohort of a CSV or, by its ending, of a table with tabs.

    Raises:
        UserError: columns or cells that cannot be understood, with the line.
    """
    if path.stat().st_size > MAX_BYTES:
        raise _wrong(path, f"it is larger than {MAX_BYTES >> 20} MiB")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            rows = [(reader.line_num, row) for row in reader]
            columns = list(reader.fieldnames or [])
    except (csv.Error, UnicodeDecodeError) as error:
        raise _wrong(path, f"it is no table of UTF-8 text ({error})") from None
    images = [c for c in columns if c == "image" or c.startswith("image_")]
    if not images or len(set(columns)) < len(columns):
        raise _wrong(path, "it needs the column `image` or `image_<contrast>`, and no column twice")
    if "image" in images and len(images) > 1:
        raise _wrong(path, "it has both `image` and `image_<contrast>`")
    cases = [_case(row, line, images, path) for line, row in rows]
    unknown = [c for c in columns if c not in (*KNOWN, *images) and not c.startswith("target_")]
    remarks = remarks_on_subjects(cases)
    if unknown:
        remarks = (*remarks, f"columns not used: {listed(unknown)}")
    names = None if images == ["image"] else tuple(c.removeprefix("image_") for c in images)
    has_validation = any(case.part == "validation" for case in cases)
    return Cohort(
        path.stem, tuple(cases), "a table", names, None, has_validation, remarks, str(path)
    )


def _case(row: dict[str, str], line: int, images: list[str], path: Path) -> Case:
    if None in row or None in row.values():
        raise _wrong(path, f"line {line} has another number of cells than the first")
    cells = {column: cell.strip() for column, cell in row.items()}
    empty = [column for column in images if not cells[column]]
    if empty:
        raise _wrong(path, f"line {line} has no `{empty[0]}`")
    files = tuple(path.parent / cells[column] for column in images)
    case_id = cells.get("case") or stem(files[0])
    label = cells.get("label")
    part = cells.get("list", "").lower()
    if part not in LISTS:
        raise _wrong(path, f"line {line} has the list `{part}`, not training, validation or test")
    return Case(
        case_id,
        cells.get("subject") or case_id,
        files,
        path.parent / label if label else None,
        LISTS[part],
        {
            column.removeprefix("target_"): _number(cell, column, line, path)
            for column, cell in cells.items()
            if column.startswith("target_") and cell
        },
    )


def _number(cell: str, column: str, line: int, path: Path) -> float:
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _wrong(path, f"line {line} has `{cell}` as `{column}`, which is no number")
    return number


def _wrong(path: Path, reason: str) -> UserError:
    return UserError(
        f"`{path.name}` cannot be used: {reason}",
        where=str(path),
        remedy="columns: case, image or image_<contrast>, label, subject, list, target_<name>",
        code="table",
    )
