"""Planes of a volume as they are shown: which way round, how high, with letters at the edges.

The display is **radiological**: one looks at the patient from the feet and from the front, so the
patient's right is on the left of axial and coronal planes, and the letters say so. Anterior is at
the top of axial planes and on the left of sagittal ones; superior is at the top.

| plane    | across (left to right) | down (top to bottom) |
|----------|------------------------|----------------------|
| axial    | R to L                 | A to P               |
| coronal  | R to L                 | S to I               |
| sagittal | A to P                 | S to I               |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from mim3d.pictures.canvas import NORMAL

Plane = Literal["axial", "coronal", "sagittal"]
Spacing = tuple[float, float, float]
Letters = tuple[str, str, str, str]

PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
NORMAL_AXIS: dict[Plane, int] = {"axial": 2, "coronal": 1, "sagittal": 0}
"""The axis of RAS+ that a plane is perpendicular to."""
LETTERS: dict[Plane, Letters] = {
    "axial": ("R", "L", "A", "P"),
    "coronal": ("R", "L", "S", "I"),
    "sagittal": ("A", "P", "S", "I"),
}
"""At the left, right, top and bottom edge."""


@dataclass(frozen=True, eq=False)
class Slice:
    """One plane, ready to be shown.

    Attributes:
        pixels: `rows columns`, first row at the top.
        plane: which one.
        pixel_mm: height and width of a pixel.
    """

    pixels: NDArray[Any]
    plane: Plane
    pixel_mm: tuple[float, float]

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width."""
        rows, columns = self.pixels.shape[:2]
        return rows * self.pixel_mm[0], columns * self.pixel_mm[1]


def cut(volume: NDArray[Any], plane: Plane, index: int, spacing_mm: Spacing) -> Slice:
    """One plane of a volume.

    Args:
        volume: `x y z` in RAS+.
        plane: axial, coronal or sagittal.
        index: voxel along the axis that the plane is perpendicular to.
        spacing_mm: voxel size along x, y, z.
    """
    axis = NORMAL_AXIS[plane]
    flat = np.take(volume, index, axis=axis)
    across, down = (side for place, side in enumerate(spacing_mm) if place != axis)
    # Both remaining axes of RAS+ run against the display: right to left, bottom to top.
    return Slice(np.flip(flat.T), plane, (down, across))


def thick_plane(spacing_mm: Spacing) -> Plane:
    """The plane of the slices as they were taken: across the largest spacing, axial if equal."""
    largest = max(spacing_mm)
    for plane in PLANES:
        if spacing_mm[NORMAL_AXIS[plane]] >= largest * 0.999:
            return plane
    raise AssertionError("one axis has the largest spacing")


def fullest(mask: NDArray[np.bool_], plane: Plane) -> int:
    """The slice of a plane with the most voxels of `mask`; the middle one where there are none."""
    axis = NORMAL_AXIS[plane]
    others = tuple(place for place in range(3) if place != axis)
    counts = mask.sum(axis=others)
    return int(counts.argmax()) if counts.any() else mask.shape[axis] // 2


def grey_range(image: NDArray[Any]) -> tuple[float, float]:
    """Grey values for black and white: the 1st and 99.5th percentile of the finite voxels.

    Voxels equal to the smallest value are left out where they are many, for padding and masked air
    would otherwise be all that the percentiles see.
    """
    values = image[np.isfinite(image)].astype(np.float64)
    if not values.size:
        return 0.0, 1.0
    inside = values[values > values.min()]
    if inside.size > values.size // 50:
        values = inside
    low, high = np.percentile(values, (1.0, 99.5))
    return float(low), float(high) if high > low else float(low) + 1.0


def said(limits: tuple[float, float]) -> str:
    """Grey values in words: `-160 to 240`, `0.012 to 0.74`, `4,934 to 32,390`."""
    return " to ".join(f"{end:,.0f}" if abs(end) >= 100 else f"{end:.2g}" for end in limits)


def show(axes: Axes, shown: Slice, **style: Any) -> None:
    """Draws a slice with its true proportions, without ticks, on black."""
    height, width = shown.size_mm
    axes.imshow(
        shown.pixels, extent=(0, width, height, 0), aspect="equal", interpolation="nearest", **style
    )
    axes.set_facecolor("black")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def letter(axes: Axes, plane: Plane, size: float = NORMAL) -> None:
    """Writes the orientation letters at the four edges."""
    left, right, top, bottom = LETTERS[plane]
    places = (
        (0.015, 0.5, left, "left", "center"),
        (0.985, 0.5, right, "right", "center"),
        (0.5, 0.985, top, "center", "top"),
        (0.5, 0.015, bottom, "center", "bottom"),
    )
    for across, up, text, align, vertical in places:
        axes.text(
            across, up, text,
            transform=axes.transAxes, ha=align, va=vertical, fontsize=size, color="white",
            weight="bold", path_effects=[withStroke(linewidth=1.6, foreground="black")],
        )  # fmt: skip
