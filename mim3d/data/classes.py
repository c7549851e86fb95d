"""The class table of a cohort: index, value in files, name and colour of every class.

Stores and networks count classes by index; every file written carries the value. Needs NumPy alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim3d.data.palette import Rgb, colour
from mim3d.foundation.errors import UserError

IGNORE_INDEX = 255
"""Index of voxels that neither loss nor metric counts."""

MAX_CLASSES = IGNORE_INDEX
"""An index is one byte, and one of the 256 is taken."""

MAX_VALUE = 65535
"""Largest value of a label map."""


@dataclass(frozen=True)
class ClassTable:
    """Classes ordered by value, background first; a class's index is its place here.

    Args:
        values: what stands in label files; the first is 0, the background.
        names: what a person calls them.
        colours: red, green, blue, 0 to 255, of each.
        ignore_value: value in files of voxels that are left out of loss and metrics.

    Raises:
        UserError: no background, values out of order or range, too many, or lengths that differ.
    """

    values: tuple[int, ...]
    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    ignore_value: int | None = None

    def __post_init__(self) -> None:
        if not len(self.values) == len(self.names) == len(self.colours):
            raise UserError("a class table needs one name and one colour for each value")
        if not self.values or self.values[0] != 0 or list(self.values) != sorted(set(self.values)):
            raise UserError("classes must be ordered by value and begin with 0, the background")
        if self.values[-1] > MAX_VALUE:
            raise UserError(f"label value {self.values[-1]} is larger than {MAX_VALUE}")
        if self.count > MAX_CLASSES:
            raise UserError(
                f"{self.count} classes are more than the {MAX_CLASSES} that a store can hold",
                remedy="merge classes, or check that the label maps are no instance maps",
                code="too-many-classes",
            )

    @classmethod
    def from_values(
        cls,
        values: Iterable[int],
        names: Mapping[int, str] | None = None,
        ignore_value: int | None = None,
        colours: Mapping[int, Rgb] | None = None,
    ) -> ClassTable:
        """The table of these values, in any order; 0 is added where it is absent.

        Args:
            values: of the classes.
            names: by value; others are called after their value.
            ignore_value: is left out of the classes.
            colours: by value; others take the palette's, in the order of the values.
        """
        ordered = sorted({0, *(int(value) for value in values)} - {ignore_value})
        known = dict(names or {})
        called = [known.get(v, "background" if v == 0 else f"label {v}") for v in ordered]
        painted = dict(
            zip(ordered, ((0, 0, 0), *map(colour, range(len(ordered) - 1))), strict=True)
        )
        painted |= {value: rgb for value, rgb in (colours or {}).items() if value in painted}
        return cls(tuple(ordered), tuple(called), tuple(painted.values()), ignore_value)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> ClassTable:
        """The table that `as_json` described."""
        rows = stored["classes"]
        return cls(
            tuple(int(row["value"]) for row in rows),
            tuple(str(row["name"]) for row in rows),
            tuple((int(r), int(g), int(b)) for r, g, b in (row["colour"] for row in rows)),
            None if stored.get("ignore_value") is None else int(stored["ignore_value"]),
        )

    def as_json(self) -> dict[str, Any]:
        """What a store and a run write down."""
        rows = zip(self.values, self.names, self.colours, strict=True)
        return {
            "classes": [
                {"index": index, "value": value, "name": name, "colour": list(colour)}
                for index, (value, name, colour) in enumerate(rows)
            ],
            "ignore_value": self.ignore_value,
        }

    @property
    def count(self) -> int:
        """Number of classes, background included."""
        return len(self.values)

    @property
    def scored(self) -> tuple[tuple[int, str], ...]:
        """Value and name of every class but the background and what is left out."""
        rows = zip(self.values[1:], self.names[1:], strict=True)
        return tuple((value, name) for value, name in rows if value != self.ignore_value)

    def ignoring(self, value: int | None) -> ClassTable:
        """The same with a class that a run leaves out; what a store leaves out stays."""
        if value is None or self.ignore_value is not None:
            return self
        return replace(self, ignore_value=value)

    def to_index(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Replaces values by indices.

        Args:
            values: integers of any shape.

        Returns:
            The same shape; `IGNORE_INDEX` where the ignore value stood.

        Raises:
            UserError: values that are not in the table, with their number of voxels.
        """
        table = np.full(MAX_VALUE + 1, -1, np.int16)
        table[list(self.values)] = np.arange(self.count)
        if self.ignore_value is not None:
            table[self.ignore_value] = IGNORE_INDEX
        low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
        indices = table[values] if low >= 0 and high <= MAX_VALUE else None
        if indices is None or (indices < 0).any():
            raise self._foreign(values)
        return np.asarray(indices, np.uint8)

    def to_value(self, indices: NDArray[Any]) -> NDArray[Any]:
        """Replaces indices by values, in the smallest unsigned type that holds all of them.

        Voxels at `IGNORE_INDEX` become the ignore value, or background where there is none.
        """
        largest = max(self.values[-1], self.ignore_value or 0)
        table = np.zeros(256, np.uint8 if largest < 256 else np.uint16)
        table[: self.count] = self.values
        if self.count <= IGNORE_INDEX:
            table[IGNORE_INDEX] = self.ignore_value or 0
        looked_up: NDArray[Any] = table[indices]
        return looked_up

    def _foreign(self, values: NDArray[Any]) -> UserError:
        found, counts = np.unique(values, return_counts=True)
        known = {*self.values, self.ignore_value}
        foreign = {
            int(v): int(n) for v, n in zip(found, counts, strict=True) if int(v) not in known
        }
        listed = ", ".join(f"{v} in {n:,} voxels" for v, n in list(foreign.items())[:5])
        return UserError(
            f"label map has {len(foreign)} value(s) that are no class here, {listed} "
            f"of {values.size:,}; the {self.count} classes are {_ranges(self.values)}",
            remedy="correct the file, or name the value in the source's list of labels "
            "(as `ignore` where it should be left out)",
            code="foreign-label",
        )


def check_names(
    values: Iterable[int], names: Iterable[str], where: Path | str | None = None
) -> None:
    """Refuses two values of one name: results go by names.

    Args:
        values: of the classes.
        names: one each.
        where: what said it, for the message.

    Raises:
        UserError: as said.
    """
    known: dict[str, int] = {}
    for value, name in zip(values, names, strict=True):
        if known.setdefault(name, value) != value:
            raise UserError(
                f"the label values {known[name]} and {value} are both called `{name}`",
                where=None if where is None else str(where),
                remedy="give each a name of its own, or write one value for both into the "
                "label maps",
                code="same-name",
            )


def _ranges(values: tuple[int, ...]) -> str:
    """`0 to 2, 5`: consecutive values together."""
    parts: list[list[int]] = []
    for value in values:
        if parts and value == parts[-1][-1] + 1:
            parts[-1].append(value)
        else:
            parts.append([value])
    return ", ".join(f"{p[0]} to {p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)
