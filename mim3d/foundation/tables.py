"""Tables of text that are read back: bounded before they are parsed, with rows of one length."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from mim3d.foundation.documents import DocumentError

MAX_BYTES = 256 * 2**20

Row = tuple[int, dict[str, str]]
"""The number of a line, and its cells by column."""


def read_rows(path: Path, *, delimiter: str = ",") -> tuple[list[str], list[Row]]:
    """The columns of a table whose first line names them, and its rows.

    Args:
        path: a file of UTF-8 text, perhaps with a byte-order mark.
        delimiter: between cells.

    Raises:
        DocumentError: it is larger than 256 MiB, no such table, has a column twice, or a row of
            another length.
        OSError: it cannot be read.
    """
    if path.stat().st_size > MAX_BYTES:
        raise DocumentError(f"it is larger than {MAX_BYTES >> 20} MiB")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            rows = [(reader.line_num, row) for row in reader]
            columns = list(reader.fieldnames or [])
    except (csv.Error, UnicodeDecodeError) as error:
        raise DocumentError(f"it is no table of UTF-8 text ({error})") from None
    if len(set(columns)) < len(columns):
        raise DocumentError("its first line may name no column twice")
    for line, row in rows:
        if None in row or None in row.values():
            raise DocumentError(f"line {line} has another number of cells than the first")
    return columns, rows


def number(cell: str, column: str, line: int) -> float:
    """The finite number in a cell.

    Raises:
        DocumentError: it holds none.
    """
    try:
        found = float(cell)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise DocumentError(f"line {line} has `{cell}` as `{column}`, which is no number")
    return found
