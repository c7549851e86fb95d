"""Names and colours of label values, as other programs write them beside label maps.

ITK-SNAP's label descriptions, 3D Slicer's colour tables and FreeSurfer's (both: index, name, red,
green, blue, opacity), BIDS's `dseg.tsv`, and the `labels.json` that `mim3d predict` writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mim3d.data.classes import MAX_VALUE, ClassTable, check_names
from mim3d.data.palette import Rgb
from mim3d.foundation.documents import DocumentError, bounded, parsed
from mim3d.foundation.errors import UserError
from mim3d.foundation.tables import read_rows

MOST_BYTES = 1 << 22
ITKSNAP = re.compile(r'\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+[\d.]+\s+\d\s+\d\s+"(.*)"\s*')
COLOUR_TABLE = re.compile(r"\s*(\d+)\s+(\S+)\s+(\d+)\s+(\d+)\s+(\d+)(?:\s+[\d.]+)?\s*")
HEXADECIMAL = re.compile(r"#?([0-9A-Fa-f]{2})([0-9A-Fa-f]{2})([0-9A-Fa-f]{2})")
BESIDE = ("labels.json", "labels.ctbl", "labels.itksnap.txt", "dseg.tsv")
"""Names that are looked for beside label maps; and `*.ctbl`, `*_dseg.tsv` where there is one."""


@dataclass(frozen=True)
class LabelTable:
    """What a file says of label values.

    Attributes:
        names: by value.
        colours: by value; not every value need have one.
        ignore_value: value that is no class, or None.
    """

    names: Mapping[int, str]
    colours: Mapping[int, Rgb] = field(default_factory=dict)
    ignore_value: int | None = None

    def as_classes(self, where: Path | None = None) -> ClassTable:
        """The class table of these values.

        Args:
            where: the file that said it, for messages.

        Raises:
            UserError: two values of one name: results go by names.
        """
        table = ClassTable.from_values(self.names, self.names, self.ignore_value, self.colours)
        check_names(table.values, table.names, where)
        return table


def label_tables(folders: Iterable[Path]) -> Iterator[Path]:
    """The files of names and colours that may count, the first folder's first."""
    for folder in folders:
        named = [folder / name for name in BESIDE if (folder / name).is_file()]
        yield from named
        others = {*folder.glob("*.ctbl"), *folder.glob("*_dseg.tsv")}.difference(named)
        if len(others) == 1:
            yield from others


def read_label_table(path: Path) -> LabelTable | None:
    """The values, names and colours of a file; None of another program's `labels.json`.

    Raises:
        UserError: it is none of the kinds, or names a value twice.
    """
    try:
        name = path.name.lower()
        if name.endswith(".json"):
            return _of_json(parsed(bounded(path, MOST_BYTES)))
        if name.endswith(".tsv"):
            return _of_bids(path)
        return _of_lines(bounded(path, MOST_BYTES).decode("utf-8", "replace").splitlines())
    except (DocumentError, OSError, LookupError, TypeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(
            f"`{path.name}` is no table of labels: {reason}",
            where=str(path),
            remedy="correct it, or move it away: values are then called `label 1`, `label 2`, ...",
            code="label-table",
        ) from None


def colour_of(said: Any) -> Rgb | None:
    """`[r, g, b]` of 0 to 255, or `#rrggbb`; None for anything else."""
    if isinstance(said, str) and (matched := HEXADECIMAL.fullmatch(said.strip())):
        red, green, blue = (int(part, 16) for part in matched.groups())
        return red, green, blue
    if isinstance(said, list) and len(said) == 3:
        red, green, blue = said
        if all(type(part) is int and 0 <= part <= 255 for part in said):
            return red, green, blue
    return None


def colours_by_value(said: Any, names: Mapping[int, str]) -> dict[int, Rgb]:
    """The colours of a mapping from values or names; what is no colour is left out."""
    if not isinstance(said, dict):
        return {}
    values = {name: value for value, name in names.items()} | {str(v): v for v in names}
    found = {values[str(key)]: colour_of(c) for key, c in said.items() if str(key) in values}
    return {value: rgb for value, rgb in found.items() if rgb is not None}


def _of_json(content: Any) -> LabelTable | None:
    """What `write_label_files` writes; None where no value is named in its way."""
    listed = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(listed, list):
        return None
    if not any(isinstance(row, dict) and "value" in row for row in listed):
        return None
    rows: list[tuple[int, str, Rgb | None]] = []
    for number, row in enumerate(listed, 1):
        if not isinstance(row, dict) or not {"value", "name"} <= row.keys():
            raise DocumentError(f"entry {number} of `classes` lacks `value` or `name`")
        rows.append((int(row["value"]), str(row["name"]), colour_of(row.get("colour"))))
    ignore = content.get("ignore_value")
    return _table(rows, None if ignore is None else int(ignore))


def _of_bids(path: Path) -> LabelTable:
    """BIDS: columns `index`, `name`, and perhaps `color` as `#rrggbb`."""
    columns, rows = read_rows(path, delimiter="\t")
    if not {"index", "name"} <= set(columns):
        raise DocumentError("it needs the columns `index` and `name`")
    return _table([(int(row["index"]), row["name"].strip(), colour_of(row.get("color", "")))
                   for _, row in rows])  # fmt: skip


def _of_lines(lines: list[str]) -> LabelTable:
    """ITK-SNAP's label descriptions, or a colour table of 3D Slicer or FreeSurfer."""
    rows: list[tuple[int, str, Rgb | None]] = []
    is_itksnap = any("ITK-SnAP" in line for line in lines[:20])
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if is_itksnap and (matched := ITKSNAP.fullmatch(line)):
            value, red, green, blue, name = matched.groups()
        elif matched := COLOUR_TABLE.fullmatch(line):
            value, name, red, green, blue = matched.groups()
            name = name.replace("_", " ")
        else:
            raise DocumentError(f"line {number} is neither ITK-SNAP's nor 3D Slicer's")
        rgb = colour_of([int(red), int(green), int(blue)])
        rows.append((int(value), "background" if value == "0" else name, rgb))
    return _table(rows)


def _table(rows: list[tuple[int, str, Rgb | None]], ignore: int | None = None) -> LabelTable:
    if not rows:
        raise DocumentError("it names no value")
    names = {value: name for value, name, _ in rows}
    if len(names) < len(rows):
        raise DocumentError("it names a value twice")
    if any(not 0 <= value <= MAX_VALUE for value in names):
        raise DocumentError(f"values lie within 0 to {MAX_VALUE}")
    colours = {value: rgb for value, _, rgb in rows if rgb is not None and value != 0}
    names.pop(ignore, None)  # type: ignore[arg-type]
    return LabelTable(names, colours, ignore)
