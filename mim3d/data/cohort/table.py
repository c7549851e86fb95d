"""A cohort as a table: a CSV with one row a case.

Columns: `image`, or `image_<contrast>` for each channel; and, where wanted, `case`, `label`,
`subject`, `list` (training, validation, test) and `target_<name>`, a number to predict. Paths are
relative to the file; a row of an archive has one, `archive.npz/train_00017`.
"""

from __future__ import annotations

from pathlib import Path

from mim3d.data.cohort.cases import Case, Cohort, Part, listed, remarks_on_subjects, stem
from mim3d.foundation.documents import DocumentError
from mim3d.foundation.errors import UserError
from mim3d.foundation.tables import Row, number, read_rows

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
    columns, rows = _rows(path)
    images = _images(columns)
    if not images:
        raise _wrong(path, "it needs the column `image` or `image_<contrast>`")
    if "image" in images and len(images) > 1:
        raise _wrong(path, "it has both `image` and `image_<contrast>`")
    cases = [_checked(row, line, images, path) for line, row in rows]
    unknown = [c for c in columns if c not in (*KNOWN, *images) and not c.startswith("target_")]
    remarks = remarks_on_subjects(cases)
    if unknown:
        remarks = (*remarks, f"columns not used: {listed(unknown)}")
    names = None if images == ["image"] else tuple(c.removeprefix("image_") for c in images)
    has_validation = any(case.part == "validation" for case in cases)
    return Cohort(
        path.stem, tuple(cases), "a table", names, None, has_validation, remarks, str(path)
    )


def read_target_table(path: Path) -> tuple[Case, ...]:
    """The cases of a table for the sake of their targets: it may name cases instead of images.

    Raises:
        UserError: columns or cells that cannot be understood, with the line; a case twice.
    """
    columns, rows = _rows(path)
    images = _images(columns)
    if "case" not in columns and not images:
        raise _wrong(path, "it needs the column `case`, `image` or `image_<contrast>`")
    cases: dict[str, Case] = {}
    for line, row in rows:
        case = _checked(row, line, images, path)
        if cases.setdefault(case.case_id, case) is not case:
            raise _wrong(path, f"line {line} has the case `{case.case_id}` again")
    return tuple(cases.values())


def _rows(path: Path) -> tuple[list[str], list[Row]]:
    try:
        return read_rows(path, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    except DocumentError as error:
        raise _wrong(path, str(error)) from None


def _images(columns: list[str]) -> list[str]:
    return [column for column in columns if column == "image" or column.startswith("image_")]


def _checked(row: dict[str, str], line: int, images: list[str], path: Path) -> Case:
    try:
        return _case(row, line, images, path)
    except DocumentError as error:
        raise _wrong(path, str(error)) from None


def _case(row: dict[str, str], line: int, images: list[str], path: Path) -> Case:
    cells = {column: cell.strip() for column, cell in row.items()}
    empty = [column for column in images if not cells[column]]
    if empty:
        raise DocumentError(f"line {line} has no `{empty[0]}`")
    files = tuple(path.parent / cells[column] for column in images)
    case_id = cells.get("case") or (stem(files[0]) if files else "")
    if not files and not case_id:
        raise DocumentError(f"line {line} has no `case`")
    label = cells.get("label")
    part = cells.get("list", "").lower()
    if part not in LISTS:
        raise DocumentError(f"line {line} has the list `{part}`, not training, validation or test")
    return Case(
        case_id,
        cells.get("subject") or case_id,
        files,
        path.parent / label if label else None,
        LISTS[part],
        {
            column.removeprefix("target_"): number(cell, column, line)
            for column, cell in cells.items()
            if column.startswith("target_") and cell
        },
    )


def _wrong(path: Path, reason: str) -> UserError:
    return UserError(
        f"`{path.name}` cannot be used: {reason}",
        where=str(path),
        remedy="columns: case, image or image_<contrast>, label, subject, list, target_<name>",
        code="table",
    )
