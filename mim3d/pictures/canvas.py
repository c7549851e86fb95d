"""Figures without a window system: made by hand, written whole, the same on every machine."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mim3d.foundation.atomic import whole_file

DPI = 150
SMALL, NORMAL, LARGE = 7.0, 8.5, 10.0
"""Sizes of letters in points."""
INK = "#222222"
FAINT = "#888888"


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure of `width` x `height` inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def axes_at(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches from the figure's upper left corner."""
    whole_width, whole_height = figure.get_size_inches()
    box = (
        left / whole_width,
        1 - (top + height) / whole_height,
        width / whole_width,
        height / whole_height,
    )
    return figure.add_axes(box)


def as_typed(text: str) -> str:
    """A name as it is drawn: `$` is no formula, and what is no letter (a byte of a name) is `?`."""
    return text.encode("utf-8", "replace").decode().replace("$", r"\$")


def write_at(
    figure: Figure,
    left: float,
    top: float,
    text: str,
    *,
    size: float = NORMAL,
    colour: str = INK,
    align: str = "left",
    weight: str = "normal",
) -> None:
    """Writes a line whose upper edge is `top` inches below the figure's upper edge."""
    width, height = figure.get_size_inches()
    figure.text(
        left / width, 1 - top / height, as_typed(text),
        fontsize=size, color=colour, ha=align, va="top", weight=weight,
    )  # fmt: skip


def plain_axes(axes: Axes) -> Axes:
    """Axes of a chart: two spines, faint grid, small letters."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=SMALL, colors=INK)
    return axes


def save(figure: Figure, path: Path | str) -> Path:
    """Writes the figure as PNG, whole or not at all, and returns where it is."""
    path = Path(path)
    with whole_file(path) as temporary:
        # Without the software field equal pictures are equal files.
        figure.savefig(temporary, format="png", metadata={"Software": None})
    return path
