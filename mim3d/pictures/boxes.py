"""Box plots: how the cases lie, class by class, beside each other for several arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from numpy.typing import NDArray

from mim3d.data.palette import colour
from mim3d.foundation.errors import UserError
from mim3d.pictures.canvas import (
    INK,
    LARGE,
    NORMAL,
    SMALL,
    as_typed,
    axes_at,
    new_figure,
    plain_axes,
    save,
    write_at,
)
from mim3d.pictures.colours import unit
from mim3d.pictures.curves import TONES

ROW, ROOM = 0.26, 0.2
"""Inches of a box, and between two groups of boxes."""
WIDTH = 4.8
LONGEST_NAME = 26


def draw_boxes(
    path: Path | str,
    groups: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    quantity: str = "Dice",
    title: str = "",
    whole: tuple[float, float] | None = None,
) -> Path:
    """Draws a box an arm and group, one below the other, and every value as a dot over it.

    A box goes from the lower to the upper quartile with the median as a line in it, its whiskers
    to the last value within one and a half times its length (Tukey 1977).

    Args:
        path: PNG file.
        groups: name of a group (a class, say) to the values of each arm in it; an arm keeps its
            colour in all groups. Values that are not finite are left out.
        quantity: name of the axis of values.
        title: first line.
        whole: ends of the axis, drawn whole; None fits it to the values.

    Returns:
        The file.

    Raises:
        UserError: there is no value.
    """
    arms = list(dict.fromkeys(arm for values in groups.values() for arm in values))
    finite = {
        name: {arm: np.asarray(v, float)[np.isfinite(v)] for arm, v in values.items() if len(v)}
        for name, values in groups.items()
    }
    finite = {name: {arm: v for arm, v in one.items() if len(v)} for name, one in finite.items()}
    filled = {name: one for name, one in finite.items() if one}
    if not filled:
        raise UserError("a box plot needs at least one value", code="empty-curve")
    is_keyed = len(arms) > 1
    height = sum(ROW * len(one) + ROOM for one in filled.values())
    legend = 0.18 * -(-len(arms) // 2) + 0.1 if is_keyed else 0.0
    figure = new_figure(WIDTH, 0.45 + height + 0.55 + legend)
    left = 0.35 + 0.068 * min(max(len(name) for name in filled), LONGEST_NAME)
    axes = plain_axes(axes_at(figure, left, 0.4, WIDTH - left - 0.25, height))
    axes.grid(visible=False, axis="y")
    write_at(figure, 0.12, 0.1, title, size=LARGE, weight="bold")
    places, depth = [], ROOM / 2
    for values in filled.values():
        places.append(depth + ROW * len(values) / 2)
        for arm, numbers in values.items():
            tone = unit(colour(TONES[arms.index(arm) % 8]))
            middle = depth + ROW / 2
            _draw_box(axes, numbers, middle, tone)
            aside = _aside(len(numbers)) * 0.5 * ROW
            axes.plot(np.sort(numbers), middle + aside, "o", markersize=2.8, color=tone, alpha=0.7,
                      markeredgewidth=0)  # fmt: skip
            depth += ROW
        depth += ROOM
    axes.set_ylim(depth - ROOM / 2, 0)
    axes.set_xlim(*(_ends(filled) if whole is None else whole))
    axes.set_yticks(places)
    axes.set_yticklabels([as_typed(_short(name)) for name in filled])
    axes.set_xlabel(quantity, fontsize=NORMAL)
    if is_keyed:
        handles = [
            Patch(color=unit(colour(TONES[n % 8])), label=as_typed(_short(arm)))
            for n, arm in enumerate(arms)
        ]
        figure.legend(handles=handles, loc="lower left", ncols=2, fontsize=SMALL, frameon=False,
                      borderaxespad=0.3, handlelength=1.2)  # fmt: skip
    return save(figure, path)


def _draw_box(
    axes: Axes, values: NDArray[np.float64], middle: float, tone: tuple[float, float, float]
) -> None:
    """By hand: the argument of `Axes.boxplot` that lays it down has another name from 3.10 on."""
    low, median, high = np.percentile(values, (25, 50, 75))
    reach = 1.5 * (high - low)
    # A quartile between two values may lie beyond the last one that is not far out.
    first = min(low, values[values >= low - reach].min())
    last = max(high, values[values <= high + reach].max())
    for ends in ((first, low), (high, last)):
        axes.plot(ends, (middle, middle), color=tone, linewidth=0.9)
    for end in (first, last):
        axes.plot((end, end), (middle - 0.16 * ROW, middle + 0.16 * ROW), color=tone, linewidth=0.9)
    axes.barh(middle, high - low, left=low, height=0.7 * ROW, color=(*tone, 0.25), edgecolor=tone,
              linewidth=0.9)  # fmt: skip
    axes.plot((median, median), (middle - 0.35 * ROW, middle + 0.35 * ROW), color=INK,
              linewidth=1.4)  # fmt: skip


def _ends(groups: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> tuple[float, float]:
    """Lowest and highest value with some room."""
    values = np.concatenate([numbers for arms in groups.values() for numbers in arms.values()])
    low, high = float(values.min()), float(values.max())
    room = 0.04 * ((high - low) or abs(high) or 1.0)
    return low - room, high + room


def _aside(count: int) -> NDArray[np.float64]:
    """How far each dot is moved across its box, -0.5 to 0.5: spread evenly, the same each time."""
    golden = 0.6180339887498949
    places = np.arange(1, count + 1, dtype=np.float64)
    return np.asarray((places * golden) % 1.0 - 0.5, np.float64)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}\u2026"
