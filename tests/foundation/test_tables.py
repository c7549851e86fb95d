"""Tables of text: what comes back, and what is refused in half a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from mim3d.foundation import tables
from mim3d.foundation.documents import DocumentError


def write(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


def test_rows_come_with_their_lines_and_cells_by_column(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeffcase,note\na,"two\nlines"\nb,\n')

    columns, rows = tables.read_rows(path)

    assert columns == ["case", "note"]
    assert rows == [(3, {"case": "a", "note": "two\nlines"}), (4, {"case": "b", "note": ""})]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a,b\n1\n", "line 2 has another number of cells"),
        ("a,b\n1,2,3\n", "line 2 has another number of cells"),
        ("a,a\n1,2\n", "no column twice"),
        ('a,b\n"1,2\n', "no table of UTF-8 text"),
        ("a,b\n\udcff,2\n", "no table of UTF-8 text"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason):
        tables.read_rows(write(tmp_path, text))


def test_a_table_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_BYTES", 1 << 20)

    with pytest.raises(DocumentError, match="larger than 1 MiB"):
        tables.read_rows(write(tmp_path, "a\n" + "1\n" * (1 << 19)))


@pytest.mark.parametrize("cell", ["", "nan", "inf", "two", "1,5"])
def test_a_cell_without_a_number_is_named(cell: str) -> None:
    assert tables.number("-2.5e3", "age", 4) == -2500

    with pytest.raises(DocumentError, match=r"line 4 has `.*` as `age`"):
        tables.number(cell, "age", 4)
