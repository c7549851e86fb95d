"""How labels and errors are coloured, and how a colour is laid over a grey image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mim3d.data.classes import ClassTable
from mim3d.data.palette import Rgb

FALSE_POSITIVE: Rgb = (212, 17, 89)
FALSE_NEGATIVE: Rgb = (26, 133, 255)
WRONG_CLASS: Rgb = (255, 194, 10)
MASKED: Rgb = (58, 66, 92)
"""Voxels that were hidden from the encoder."""


@dataclass(frozen=True)
class Paint:
    """How a label is shown.

    Attributes:
        name: in the legend.
        colour: red, green, blue, 0 to 255.
    """

    name: str
    colour: Rgb


def paints(classes: ClassTable) -> dict[int, Paint]:
    """Paint for every class but the background, by label value."""
    rows = zip(classes.values, classes.names, classes.colours, strict=True)
    return {value: Paint(name, rgb) for value, name, rgb in rows if value != 0}


def unit(rgb: Rgb) -> tuple[float, float, float]:
    """The colour as matplotlib wants it, 0 to 1."""
    return rgb[0] / 255, rgb[1] / 255, rgb[2] / 255


def grey_to_rgb(image: NDArray[np.floating], low: float, high: float) -> NDArray[np.float64]:
    """A grey image as `rows columns 3`, 0 at `low` and 1 at `high`."""
    grey = np.clip((image.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1)
    return np.repeat(grey[..., None], 3, axis=-1)


def fill(
    rgb: NDArray[np.float64],
    labels: NDArray[np.integer],
    table: Mapping[int, Paint],
    opacity: float,
) -> NDArray[np.float64]:
    """Lays the colours of a label image over an RGB image of the same size."""
    mixed = rgb.copy()
    for value, paint in table.items():
        inside = labels == value
        mixed[inside] = (1 - opacity) * mixed[inside] + opacity * np.array(unit(paint.colour))
    return mixed
