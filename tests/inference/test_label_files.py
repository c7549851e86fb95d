"""Label files for viewers, read back by rules written out here."""

from __future__ import annotations

import json
import re
from pathlib import Path

from mim3d.data.classes import ClassTable
from mim3d.data.label_tables import read_label_table
from mim3d.data.regions import SCHEMES
from mim3d.inference.label_files import write_label_files

TABLE = ClassTable(
    (0, 3, 700),
    ("background", "right kidney", 'tumour "A"'),
    ((0, 0, 0), (230, 159, 0), (12, 34, 56)),
)


def test_labels_json_is_the_class_table(tmp_path: Path) -> None:
    write_label_files(tmp_path, TABLE)

    content = json.loads((tmp_path / "labels.json").read_text())
    assert ClassTable.from_json(content) == TABLE
    assert content["regions"] is None


def test_labels_json_names_the_region_scheme(tmp_path: Path) -> None:
    write_label_files(tmp_path, TABLE, SCHEMES["brats2023"])

    assert json.loads((tmp_path / "labels.json").read_text())["regions"] == "brats2023"


def test_itksnap_lines_hold_index_colour_opacity_and_quoted_name(tmp_path: Path) -> None:
    write_label_files(tmp_path, TABLE)

    text = (tmp_path / "labels.itksnap.txt").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    pattern = re.compile(
        r'\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+([\d.]+)\s+([01])\s+([01])\s+"([^"]*)"'
    )
    rows = [pattern.fullmatch(line).groups() for line in lines]  # type: ignore[union-attr]
    assert rows == [
        ("0", "0", "0", "0", "0", "0", "0", "background"),
        ("3", "230", "159", "0", "1", "1", "1", "right kidney"),
        ("700", "12", "34", "56", "1", "1", "1", "tumour 'A'"),
    ]


def test_slicer_rows_have_six_columns_without_blanks_in_names(tmp_path: Path) -> None:
    write_label_files(tmp_path, TABLE)

    text = (tmp_path / "labels.ctbl").read_text()
    rows = [line.split() for line in text.splitlines() if not line.startswith("#")]
    assert rows[0] == ["0", "background", "0", "0", "0", "0"]
    assert rows[1] == ["3", "right_kidney", "230", "159", "0", "255"]
    assert [len(row) for row in rows] == [6, 6, 6]


def test_a_name_of_several_lines_stays_one_row_in_every_file(tmp_path: Path) -> None:
    """A line break in a name ended ITK-SNAP's row within it, and no label was read."""
    classes = ClassTable.from_values((0, 1, 5), {1: "left\nlobe", 5: 'right\t"b"'})

    _, itksnap, slicer = write_label_files(tmp_path, classes)

    assert read_label_table(itksnap).names == {0: "background", 1: "left lobe", 5: "right 'b'"}
    assert len(slicer.read_text().splitlines()) == 5
