"""The overlay panel: prediction as a fill, truth as a contour, and where the two disagree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from mim3d.foundation.errors import ShapeError
from mim3d.pictures.canvas import (
    FAINT,
    LARGE,
    SMALL,
    as_typed,
    axes_at,
    new_figure,
    save,
    write_at,
)
from mim3d.pictures.colours import (
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    WRONG_CLASS,
    Paint,
    fill,
    grey_to_rgb,
    unit,
)
from mim3d.pictures.slices import (
    NORMAL_AXIS,
    Plane,
    Slice,
    Spacing,
    cut,
    fullest,
    grey_range,
    letter,
    said,
    show,
    thick_plane,
)

Array = NDArray[Any]

PANEL = 2.4
"""Inches of the longer side of a slice."""
GAP = 0.06
MARGIN_MM = 20.0
"""What stays in view around the labelled voxels, or half of their extent where that is more."""
LEGEND_COLUMNS = 5
ERRORS: dict[int, Paint] = {
    1: Paint("predicted, not true", FALSE_POSITIVE),
    2: Paint("true, not predicted", FALSE_NEGATIVE),
    3: Paint("other class", WRONG_CLASS),
}


@dataclass(frozen=True, eq=False)
class _Scene:
    """What one overlay shows; all arrays `x y z` on one grid, cut to the view."""

    image: Array
    prediction: Array
    truth: Array | None
    plane: Plane
    spacing_mm: Spacing
    table: Mapping[int, Paint]
    grey: tuple[float, float]

    def part(self, volume: Array, index: int) -> Slice:
        return cut(volume, self.plane, index, self.spacing_mm)


def draw_overlay(
    path: Path | str,
    *,
    image: Array,
    prediction: Array,
    truth: Array | None = None,
    spacing_mm: Spacing,
    table: Mapping[int, Paint],
    title: str = "",
    grey: tuple[float, float] | None = None,
) -> Path:
    """Draws the slice with the most labelled voxels and one on either side of it.

    The plane is the one the slices were taken in (across the largest spacing). Rows: the image,
    the labels over it and, where the truth is known, the errors.

    Args:
        path: PNG file.
        image: `x y z` in RAS+.
        prediction: `x y z`, label values.
        truth: `x y z`, label values, or None.
        spacing_mm: voxel size along x, y, z.
        table: name and colour of each label value.
        title: first line.
        grey: intensities shown black and white; None takes percentiles.

    Returns:
        The file.

    Raises:
        ShapeError: the arrays do not lie on one grid.
    """
    if any(other is not None and other.shape != image.shape for other in (prediction, truth)):
        raise ShapeError(f"image of {image.shape} and its labels do not lie on one grid")
    plane = thick_plane(spacing_mm)
    labelled = (prediction != 0) if truth is None else (truth != 0) | (prediction != 0)
    leading = labelled if truth is None or not truth.any() else truth != 0
    view = _view(labelled, plane, spacing_mm)
    scene = _Scene(
        image[view],
        prediction[view],
        None if truth is None else truth[view],
        plane,
        spacing_mm,
        table,
        grey or grey_range(image),
    )
    return _draw(scene, _three(leading, plane), title, path)


def _draw(scene: _Scene, indices: tuple[int, ...], title: str, path: Path | str) -> Path:
    sides = scene.part(scene.image, indices[0]).size_mm
    height, width = (side * PANEL / max(sides) for side in sides)
    rows = 2 if scene.truth is None else 3
    entries = _legend(scene, indices)
    head, foot = 0.6, 0.28 + 0.145 * -(-len(entries) // LEGEND_COLUMNS)
    figure = new_figure(max(3 * (width + GAP) + 0.2, 6.4), head + rows * (height + GAP) + foot)
    columns = len(indices)
    left = (float(figure.get_size_inches()[0]) - columns * (width + GAP) + GAP) / 2
    write_at(figure, 0.12, 0.1, title, size=LARGE, weight="bold")
    for column, index in enumerate(indices):
        at = left + column * (width + GAP)
        name = f"slice {index}"
        write_at(figure, at + width / 2, head - 0.19, name, size=SMALL, align="center")
        for row in range(rows):
            axes = axes_at(figure, at, head + row * (height + GAP), width, height)
            _panel(axes, scene, index, row)
    bottom = head + rows * (height + GAP)
    caption = f"{scene.plane} slices, radiological; grey: {said(scene.grey)}"
    write_at(figure, 0.12, bottom + 0.03, caption, size=SMALL, colour=FAINT)
    _place_legend(figure, entries)
    return save(figure, path)


def _panel(axes: Axes, scene: _Scene, index: int, row: int) -> None:
    """One slice: row 0 the image, row 1 the labels over it, row 2 the errors."""
    grey = scene.part(scene.image, index)
    picture = grey_to_rgb(grey.pixels, *scene.grey)
    truth = None if scene.truth is None else scene.part(scene.truth, index)
    guess = scene.part(scene.prediction, index).pixels
    if row == 1:
        picture = fill(picture, guess, scene.table, 0.5)
    elif row == 2 and truth is not None:
        picture = fill(picture, _errors(guess, truth.pixels), ERRORS, 0.8)
    show(axes, Slice(picture, scene.plane, grey.pixel_mm))
    if row == 0:
        letter(axes, scene.plane)
    elif row == 1 and truth is not None:
        _contours(axes, truth, scene.table)


def _contours(axes: Axes, truth: Slice, table: Mapping[int, Paint]) -> None:
    height, width = truth.size_mm
    rows, columns = truth.pixels.shape
    across = (np.arange(columns) + 0.5) * width / columns
    down = (np.arange(rows) + 0.5) * height / rows
    for value, paint in table.items():
        mask = truth.pixels == value
        if mask.any() and min(mask.shape) > 1:
            for colour, thick in (("white", 1.8), (unit(paint.colour), 1.0)):
                axes.contour(across, down, mask, levels=(0.5,), colors=(colour,), linewidths=thick)


def _errors(prediction: Array, truth: Array) -> NDArray[np.uint8]:
    """1 predicted only, 2 true only, 3 another class, 0 agreement."""
    errors = np.zeros(truth.shape, np.uint8)
    errors[(prediction != 0) & (truth == 0)] = 1
    errors[(prediction == 0) & (truth != 0)] = 2
    errors[(prediction != 0) & (truth != 0) & (prediction != truth)] = 3
    return errors


def _three(mask: NDArray[np.bool_], plane: Plane) -> tuple[int, ...]:
    """The fullest slice and one on either side of it, a quarter of the labelled extent away."""
    axis = NORMAL_AXIS[plane]
    best = fullest(mask, plane)
    others = tuple(place for place in range(3) if place != axis)
    extent = int(mask.any(axis=others).sum())
    stride, last = max(1, extent // 4), mask.shape[axis] - 1
    # At an end of the volume both neighbours lie on the same side.
    aside = 1 if best < stride else -1 if best + stride > last else 0
    places = [best + stride * (step + aside) for step in (-1, 0, 1)]
    return tuple(sorted({min(max(place, 0), last) for place in places}))


def _view(mask: NDArray[np.bool_], plane: Plane, spacing_mm: Spacing) -> tuple[slice, slice, slice]:
    """The box of the labelled voxels with a margin, whole along the axis across the plane."""
    view = [slice(0, size) for size in mask.shape]
    if mask.any():
        for axis in set(range(3)) - {NORMAL_AXIS[plane]}:
            others = tuple(place for place in range(3) if place != axis)
            places = np.flatnonzero(mask.any(axis=others))
            first, last = int(places[0]), int(places[-1])
            margin = max(round(MARGIN_MM / spacing_mm[axis]), (last - first + 1) // 2)
            view[axis] = slice(max(0, first - margin), min(mask.shape[axis], last + margin + 1))
    return view[0], view[1], view[2]


def _legend(scene: _Scene, indices: tuple[int, ...]) -> list[Patch | Line2D]:
    """Entries for the labels in these slices, the truth's contour and the errors."""
    sides = [side for side in (scene.prediction, scene.truth) if side is not None]
    occurring = {
        value
        for side in sides
        for index in indices
        for value in np.unique(scene.part(side, index).pixels).tolist()
    }
    entries: list[Patch | Line2D] = [
        Patch(color=unit(paint.colour), label=as_typed(paint.name))
        for value, paint in scene.table.items()
        if value in occurring
    ]
    if scene.truth is not None:
        errors = list(ERRORS.values())[: 3 if len(scene.table) > 1 else 2]
        entries.append(Line2D([], [], color="#555555", linewidth=1.0, label="outline: truth"))
        entries += [Patch(color=unit(paint.colour), label=as_typed(paint.name)) for paint in errors]
    return entries


def _place_legend(figure: Figure, entries: list[Patch | Line2D]) -> None:
    figure.legend(
        handles=entries, loc="lower left", ncols=LEGEND_COLUMNS, fontsize=SMALL, frameon=False,
        borderaxespad=0.2, handlelength=1.2, columnspacing=1.2, labelspacing=0.35,
    )  # fmt: skip
