"""The reconstruction panel of pre-training: what was seen, what was guessed, how wrong it was.

Where no voxels are predicted, only what was seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim3d.foundation.errors import ShapeError
from mim3d.pictures.canvas import FAINT, LARGE, SMALL, axes_at, new_figure, save, write_at
from mim3d.pictures.colours import MASKED, grey_to_rgb, unit
from mim3d.pictures.slices import (
    NORMAL_AXIS,
    PLANES,
    Slice,
    Spacing,
    cut,
    grey_range,
    letter,
    said,
    show,
)

Array = NDArray[Any]

COLUMNS = ("original", "masked", "reconstructed", "with visible pasted in", "error")
WIDTH = 1.9
"""Inches of the widest column."""
GAP = 0.08


def draw_reconstruction(
    path: Path | str,
    *,
    original: Array,
    reconstructed: Array | None,
    mask: Array,
    spacing_mm: Spacing,
    step: int | None = None,
    loss: float | None = None,
    channel: int = 0,
    note: str | None = None,
) -> Path:
    """Draws the middle planes of one crop, original to error, and returns the file.

    Args:
        path: PNG file.
        original: `c x y z` or `x y z`, RAS+, what the encoder was asked about.
        reconstructed: the same shape, in the same units; None where no voxels are predicted.
        mask: `x y z`, True where voxels were hidden.
        spacing_mm: voxel size along x, y, z.
        step: for the title.
        loss: for the title.
        channel: which channel is drawn.
        note: one more line, for example that targets were de-normalised.

    Raises:
        ShapeError: the arrays do not lie on one grid.
    """
    original = _channel(original, channel)
    guessed = original if reconstructed is None else _channel(reconstructed, channel)
    if not original.shape == guessed.shape == mask.shape:
        raise ShapeError(
            f"the panel expects one grid, got {original.shape}, {guessed.shape}, {mask.shape}"
        )
    mask = mask.astype(bool)
    low, high = grey_range(original)

    def grey(volume: Array) -> Array:
        return grey_to_rgb(volume, low, high)

    hidden = grey(original)
    hidden[mask] = unit(MASKED)
    volumes: tuple[Array, ...] = (grey(original), hidden)
    top, decibels = 1.0, None
    below = [f"grey: {said((low, high))}"]
    if reconstructed is not None:
        pasted = np.where(mask, guessed, original)
        error = np.abs(guessed.astype(np.float64) - original)
        volumes += (grey(guessed), grey(pasted), error)
        top = float(np.percentile(error, 99.5)) or 1.0
        decibels = psnr(original, guessed, mask, high - low)
        below.append(f"error: 0 (black) to {top:.2g} (bright)")
    below += [f"channel {channel}"] if channel else []
    below += [note] if note else []
    title = _title(step, loss, decibels)
    return _lay_out(path, volumes, spacing_mm, top, title, ";  ".join(below))


def psnr(original: Array, reconstructed: Array, mask: Array, span: float) -> float | None:
    """Peak signal-to-noise ratio over masked voxels in decibels: 10 log10(span^2 / MSE).

    Returns:
        None where nothing is masked or the reconstruction is perfect.
    """
    if not mask.any():
        return None
    difference = original[mask].astype(np.float64) - reconstructed[mask]
    mean_square = float((difference**2).mean())
    return 10 * float(np.log10(span**2 / mean_square)) if mean_square else None


def _lay_out(
    path: Path | str,
    volumes: tuple[Array, ...],  # of the first so many `COLUMNS`
    spacing_mm: Spacing,
    top_error: float,
    title: str,
    below: str,
) -> Path:
    size = volumes[0].shape
    sides_mm = [count * side for count, side in zip(size, spacing_mm, strict=False)]
    inch = WIDTH / max(sides_mm[0], sides_mm[1])
    heights = [sides_mm[1 if plane == "axial" else 2] * inch for plane in PLANES]
    head, foot, left = 0.75, 0.3, 0.3
    width = left + len(volumes) * (WIDTH + GAP)
    figure = new_figure(width, head + sum(heights) + GAP * len(PLANES) + foot)
    write_at(figure, left, 0.12, title, size=LARGE, weight="bold")
    for column, name in enumerate(COLUMNS[: len(volumes)]):
        centre = left + column * (WIDTH + GAP) + WIDTH / 2
        write_at(figure, centre, head - 0.24, name, align="center")

    start = head
    for plane, height in zip(PLANES, heights, strict=True):
        index = size[NORMAL_AXIS[plane]] // 2
        for column, volume in enumerate(volumes):
            shown = _cut(volume, plane, index, spacing_mm)
            wide = shown.size_mm[1] * inch
            place = left + column * (WIDTH + GAP) + (WIDTH - wide) / 2
            axes = axes_at(figure, place, start, wide, height)
            style = {"cmap": "inferno", "vmin": 0.0, "vmax": top_error}
            show(axes, shown, **(style if shown.pixels.ndim == 2 else {}))
            if column == 0:
                letter(axes, plane)
        _row_name(figure, start + height / 2, plane)
        start += height + GAP
    write_at(figure, left, start + 0.06, below, size=SMALL, colour=FAINT)
    return save(figure, path)


def _cut(volume: Array, plane: Any, index: int, spacing_mm: Spacing) -> Slice:
    if volume.ndim == 3:
        return cut(volume, plane, index, spacing_mm)
    layers = [cut(volume[..., layer], plane, index, spacing_mm) for layer in range(3)]
    stacked = np.stack([layer.pixels for layer in layers], axis=-1)
    return Slice(stacked, plane, layers[0].pixel_mm)


def _row_name(figure: Any, middle: float, plane: str) -> None:
    width, height = figure.get_size_inches()
    figure.text(
        0.15 / width, 1 - middle / height, plane,
        rotation=90, ha="center", va="center", fontsize=SMALL + 1,
    )  # fmt: skip


def _channel(volume: Array, channel: int) -> Array:
    return volume if volume.ndim == 3 else volume[channel]


def _title(step: int | None, loss: float | None, decibels: float | None) -> str:
    parts = [
        None if step is None else f"step {step:,}",
        None if loss is None else f"loss {loss:.4g}",
        None if decibels is None else f"PSNR {decibels:.1f} dB on masked voxels",
    ]
    return "   ".join(part for part in parts if part) or "reconstruction"
