"""The contact sheet: one slice of every case, so that a case that lies wrong is seen at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from mim3d.foundation.errors import UserError
from mim3d.pictures.canvas import (
    DPI,
    FAINT,
    LARGE,
    SMALL,
    as_typed,
    axes_at,
    new_figure,
    save,
    write_at,
)
from mim3d.pictures.colours import Paint, grey_to_rgb, unit
from mim3d.pictures.slices import (
    LETTERS,
    Plane,
    Slice,
    Spacing,
    cut,
    fullest,
    grey_range,
    thick_plane,
)

Array = NDArray[Any]
Row = NDArray[np.intp]

CELL = 200
"""Pixels of a cell's side; a slice keeps its proportions within it."""
GUTTER = 6
NAME_HEIGHT = 26
"""Pixels below a cell for the case's name."""


@dataclass(frozen=True, eq=False)
class SheetEntry:
    """One case on the sheet; small enough to collect a cohort.

    Attributes:
        case_id: written below the slice.
        image: the slice, ready to be shown.
        labels: the same slice of the label map, or None.
        grey: intensities shown black and white.
        field_mm: the volume's extent along x, y, z, written below the name.
    """

    case_id: str
    image: Slice
    labels: Array | None
    grey: tuple[float, float]
    field_mm: tuple[float, float, float]


def sheet_entry(
    case_id: str, image: Array, labels: Array | None, spacing_mm: Spacing
) -> SheetEntry:
    """Picks the slice of a case: the fullest of its labels, or the middle one.

    Args:
        case_id: the case's name.
        image: `x y z` in RAS+.
        labels: `x y z`, label values or indices, or None.
        spacing_mm: voxel size along x, y, z.
    """
    plane = thick_plane(spacing_mm)
    labelled = np.zeros(image.shape, bool) if labels is None else labels != 0
    index = fullest(labelled, plane)
    x, y, z = (count * side for count, side in zip(image.shape, spacing_mm, strict=True))
    return SheetEntry(
        case_id,
        cut(image, plane, index, spacing_mm),
        None if labels is None else cut(labels, plane, index, spacing_mm).pixels.copy(),
        grey_range(image),
        (x, y, z),
    )


def draw_contact_sheet(
    path: Path | str,
    entries: Sequence[SheetEntry],
    table: Mapping[int, Paint],
    *,
    title: str = "",
    columns: int | None = None,
) -> Path:
    """Draws all cases on one sheet, labels as outlines, and returns the file.

    Every slice fills its cell in its own scale; the extent in millimetres stands below it.

    Args:
        path: PNG file.
        entries: the cases, in the order of the sheet.
        table: name and colour of each value in the label maps.
        title: first line.
        columns: cells in a row; None makes the sheet about as wide as high.

    Raises:
        UserError: there are no cases.
    """
    if not entries:
        raise UserError("a contact sheet needs at least one case", code="empty-cohort")
    columns = columns or min(len(entries), max(4, int(np.ceil(np.sqrt(len(entries))))))
    rows = -(-len(entries) // columns)
    step = (CELL + NAME_HEIGHT + GUTTER, CELL + GUTTER)
    sheet = np.ones((rows * step[0], columns * step[1], 3))
    head = 0.34
    height, width = sheet.shape[0] / DPI, sheet.shape[1] / DPI
    figure = new_figure(width, height + head)
    axes = axes_at(figure, 0, head, width, height)
    write_at(figure, 0.05, 0.08, title, size=LARGE, weight="bold")
    for place, entry in enumerate(entries):
        top, left = (n * s for n, s in zip(divmod(place, columns), step, strict=True))
        cell = sheet[top : top + CELL, left : left + CELL]
        cell[:] = 0.0
        _paint(cell, entry, table)
        _words(axes, entry, top, left)
    axes.imshow(sheet, extent=(0, sheet.shape[1], sheet.shape[0], 0), interpolation="nearest")
    axes.set_axis_off()
    return save(figure, path)


def _paint(cell: Array, entry: SheetEntry, table: Mapping[int, Paint]) -> None:
    """Draws the slice into the middle of its cell, and the labels' outlines over it."""
    height, width = entry.image.size_mm
    scale = CELL / max(height, width)
    rows = _sampled(entry.image.pixels.shape[0], max(1, round(height * scale)))
    columns = _sampled(entry.image.pixels.shape[1], max(1, round(width * scale)))
    top, left = (CELL - len(rows)) // 2, (CELL - len(columns)) // 2
    inner = cell[top : top + len(rows), left : left + len(columns)]
    inner[:] = grey_to_rgb(entry.image.pixels[np.ix_(rows, columns)], *entry.grey)
    if entry.labels is None:
        return
    labels = entry.labels[np.ix_(rows, columns)]
    for value, paint in table.items():
        inner[_outline(labels == value)] = unit(paint.colour)


def _sampled(count: int, pixels: int) -> Row:
    """The nearest of `count` voxels for each of `pixels` pixels."""
    return ((np.arange(pixels) + 0.5) * count / pixels).astype(np.intp)


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a mask at its edge."""
    framed = np.pad(mask, 1)
    inside = framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    return mask & ~inside


def _words(axes: Any, entry: SheetEntry, top: int, left: int) -> None:
    plane: Plane = entry.image.plane
    names = dict(zip(("left", "right", "top", "bottom"), LETTERS[plane], strict=True))
    middle, edge = CELL / 2, 4
    places = {
        "left": (edge, middle, "left", "center"),
        "right": (CELL - edge, middle, "right", "center"),
        "top": (middle, edge, "center", "top"),
        "bottom": (middle, CELL - edge, "center", "bottom"),
    }
    for side, (x, y, align, vertical) in places.items():
        axes.text(
            left + x, top + y, names[side], ha=align, va=vertical, fontsize=SMALL - 1,
            color="white", weight="bold",
            path_effects=[withStroke(linewidth=1.2, foreground="black")],
        )  # fmt: skip
    x_mm, y_mm, z_mm = entry.field_mm
    name = as_typed(_short(entry.case_id))
    axes.text(left, top + CELL + 2, name, fontsize=SMALL - 1.5, va="top")
    axes.text(
        left, top + CELL + 14, f"{x_mm:.3g} x {y_mm:.3g} x {z_mm:.3g} mm",
        fontsize=SMALL - 2, va="top", color=FAINT,
    )  # fmt: skip


def _short(name: str, letters: int = 26) -> str:
    return name if len(name) <= letters else f"{name[: letters - 9]}…{name[-8:]}"
