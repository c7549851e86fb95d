"""Charts of a convergence benchmark: Dice against steps, and final Dice against labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from mim3d.data.palette import colour
from mim3d.foundation.errors import UserError
from mim3d.pictures.canvas import (
    FAINT,
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

Tone = str | tuple[float, float, float]
Dashes = Literal["-", "--", ":"]
TONES: tuple[Tone, ...] = tuple(unit(colour(place)) for place in (4, 5, 2, 6, 0, 1))
"""Okabe and Ito's colours without yellow and grey, too faint for lines on white; black is kept for
arms from scratch."""
MARKS = ("o", "s", "^", "D", "v", "P", "X")
STYLES: tuple[Dashes, ...] = ("-", "--", ":")
TARGET: dict[str, Any] = {"color": FAINT, "linewidth": 0.9, "linestyle": (0, (6, 3))}
WIDTH, HEIGHT = 4.2, 3.2
LEGEND = 1.8


@dataclass(frozen=True)
class Band:
    """One line of a chart.

    Attributes:
        at: places along the x axis, growing.
        mean: heights.
        low: lower edge of the band.
        high: upper edge.
    """

    at: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """One chart among several.

    Attributes:
        title: above it.
        lines: by arm; arms that are missing here keep their colour elsewhere.
        target: height of a horizontal line; None for no line.
        target_name: what the legend calls that line.
    """

    title: str
    lines: Mapping[str, Band]
    target: float | None = None
    target_name: str = ""


@dataclass(frozen=True)
class Look:
    """How an arm's line is drawn, the same in every chart."""

    tone: Tone
    mark: str
    dashes: Dashes


def draw_convergence(
    path: Path | str, panels: Sequence[Panel], arms: Mapping[str, str], *, title: str = ""
) -> Path:
    """Draws Dice against steps, one panel a label fraction, steps on a logarithmic axis.

    Step 0, which has no place on that axis, stands left of a gap and is joined by a dotted line.

    Args:
        path: PNG file.
        panels: at least one, with at least one line.
        arms: kind of each arm, in the order of the legend: `scratch` is black, `contrastive`
            dashed.
        title: first line.

    Raises:
        UserError: there is no curve.
    """
    if not any(panel.lines for panel in panels):
        raise UserError("learning curves need at least one arm with a curve", code="empty-curve")
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    # An empty place among the panels holds the legend.
    is_beside = across * down == len(panels)
    room = 0.6 + across * (WIDTH + 0.45)
    figure = new_figure(room + LEGEND * is_beside, 0.75 + down * (HEIGHT + 0.75))
    write_at(figure, 0.12, 0.1, title, size=LARGE, weight="bold")
    low, high = _heights(panels)
    looks = _looks(arms)
    for place, panel in enumerate(panels):
        row, column = divmod(place, across)
        left, top = 0.6 + column * (WIDTH + 0.45), 0.7 + row * (HEIGHT + 0.75)
        axes = plain_axes(axes_at(figure, left, top, WIDTH, HEIGHT))
        _draw_panel(axes, panel, looks)
        axes.set_ylim(low, high)
        write_at(figure, left, top - 0.22, panel.title, size=NORMAL, weight="bold")
        if column == 0:
            axes.set_ylabel("Dice", fontsize=NORMAL)
        if place + across >= len(panels):
            axes.set_xlabel("step of fine-tuning", fontsize=NORMAL)
    corner = (room - 0.2, 0.6) if is_beside else (room - WIDTH, 1.0 + (down - 1) * (HEIGHT + 0.75))
    _legend(figure, looks, panels, *corner)
    return save(figure, path)


def draw_label_efficiency(
    path: Path | str,
    lines: Mapping[str, Band],
    arms: Mapping[str, str],
    *,
    names: Mapping[float, str],
    title: str = "",
) -> Path:
    """Draws final Dice against the number of labelled subjects, on a logarithmic axis.

    Args:
        path: PNG file.
        lines: by arm; the band is drawn as a bar at each point.
        arms: kind of each arm, in the order of the legend: `scratch` is black, `contrastive`
            dashed.
        names: what to write under each number of subjects.
        title: first line.

    Raises:
        UserError: there is no point.
    """
    if not any(len(line.at) for line in lines.values()):
        raise UserError("a chart of labels needs at least one point", code="empty-curve")
    panel = Panel("", lines)
    figure = new_figure(0.7 + 4.6 + 0.45 + LEGEND, 4.35)
    write_at(figure, 0.12, 0.1, title, size=LARGE, weight="bold")
    axes = plain_axes(axes_at(figure, 0.7, 0.5, 4.6, 3.15))
    axes.set_xscale("log")
    # Side by side within 0.4 of the narrowest gap, so that bars do not cover each other.
    gaps = np.diff(np.log(sorted(names)))
    step = min(float(gaps.min()) if len(gaps) else 1.0, 1.0) * 0.4 / max(len(arms), 2)
    axes.grid(visible=False, axis="x")
    for count in names:
        edge = np.exp((len(arms) / 2 + 0.3) * step)
        axes.axvspan(count / edge, count * edge, color="#f2f2f2", linewidth=0, zorder=0)
    looks = _looks(arms)
    for place, (arm, look) in enumerate(looks.items()):
        if arm in lines:
            _draw_bars(axes, lines[arm], look, (place - (len(arms) - 1) / 2) * step)
    axes.xaxis.set_major_locator(FixedLocator(sorted(names)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([names[count] for count in sorted(names)])
    axes.set_xlim(min(names) * np.exp(-0.35), max(names) * np.exp(0.35))
    axes.set_xlabel("labels (subjects with labels)", fontsize=NORMAL)
    axes.set_ylabel("Dice after the last step", fontsize=NORMAL)
    _legend(figure, looks, [panel], 0.7 + 4.6 + 0.25, 0.6)
    return save(figure, path)


def _draw_panel(axes: Axes, panel: Panel, looks: Mapping[str, Look]) -> None:
    positive = [step for line in panel.lines.values() for step in line.at if step > 0]
    first = min(positive, default=1.0)
    nought = first / 2.2
    axes.set_xscale("log")
    for arm, look in looks.items():
        if arm in panel.lines:
            _draw_line(axes, panel.lines[arm], look, nought)
    if panel.target is not None:
        axes.axhline(panel.target, **TARGET)
    _name_steps(axes, first, max(positive, default=1.0), nought)


def _draw_line(axes: Axes, line: Band, look: Look, nought: float) -> None:
    at, mean, low, high = (
        np.asarray(row, float) for row in (line.at, line.mean, line.low, line.high)
    )
    tone, mark = look.tone, look.mark
    later = at > 0
    axes.plot(at[later], mean[later], color=tone, linestyle=look.dashes, linewidth=1.3, marker=mark,
              markersize=3, markeredgewidth=0)  # fmt: skip
    if (high > low).any():
        axes.fill_between(at[later], low[later], high[later], color=tone, alpha=0.1, linewidth=0)
    if not later[0]:
        axes.plot((nought, at[later][0]) if later.any() else (nought,),
                  mean[:2] if later.any() else mean[:1],
                  color=tone, linestyle=(0, (1, 2)), linewidth=0.8)  # fmt: skip
        axes.plot((nought,), mean[:1], color=tone, marker=mark, markersize=3, markeredgewidth=0)


def _draw_bars(axes: Axes, line: Band, look: Look, aside: float) -> None:
    at = np.asarray(line.at, float) * np.exp(aside)
    mean = np.asarray(line.mean, float)
    spread = np.stack([mean - np.asarray(line.low, float), np.asarray(line.high, float) - mean])
    axes.errorbar(
        at, mean, yerr=np.maximum(spread, 0), color=look.tone, linestyle=look.dashes, linewidth=1.1,
        marker=look.mark, markersize=3.6, markeredgewidth=0, elinewidth=0.7,
    )  # fmt: skip


def _name_steps(axes: Axes, first: float, last: float, nought: float) -> None:
    """Ticks at 0, then at 1, 2, 5 times powers of ten that lie at least a third apart."""
    decades = range(int(np.floor(np.log10(first))), int(np.ceil(np.log10(last))) + 1)
    wide = last / first > 300
    ticks = [k * 10.0**d for d in decades for k in ((1, 3) if wide else (1, 2, 5))]
    ticks = [tick for tick in ticks if 0.95 * first <= tick <= 1.05 * last]
    axes.xaxis.set_major_locator(FixedLocator([nought, *ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels(["0", *(f"{tick:g}" for tick in ticks)])
    axes.set_xlim(nought / 1.25, last * 1.15)


def _heights(panels: Sequence[Panel]) -> tuple[float, float]:
    """Limits of the y axis that hold every band of every panel."""
    lines = [line for panel in panels for line in panel.lines.values()]
    low = min(min(line.low) for line in lines)
    high = max(max(line.high) for line in lines)
    room = 0.04 * max(high - low, 0.02)
    return low - room, high + room


def _looks(arms: Mapping[str, str]) -> dict[str, Look]:
    """The look of each arm by its kind and its place among its like; no two alike up to 42."""
    looks: dict[str, Look] = {}
    black = coloured = 0
    for arm, kind in arms.items():
        if kind == "scratch":
            looks[arm] = Look(INK, MARKS[black % len(MARKS)], STYLES[black % len(STYLES)])
            black += 1
        else:
            turn = coloured // len(TONES)
            tone, mark = TONES[coloured % len(TONES)], MARKS[(coloured + 1 + 2 * turn) % len(MARKS)]
            looks[arm] = Look(tone, mark, "--" if kind == "contrastive" else "-")
            coloured += 1
    return looks


def _legend(
    figure: Figure, looks: Mapping[str, Look], panels: Sequence[Panel], left: float, top: float
) -> None:
    handles = []
    for arm, look in looks.items():
        if any(arm in panel.lines for panel in panels):
            name = arm if len(arm) <= 22 else f"{arm[:21]}\u2026"
            handles.append(
                Line2D([], [], color=look.tone, marker=look.mark, linestyle=look.dashes,
                       linewidth=1.3, markersize=4, markeredgewidth=0, label=as_typed(name))
            )  # fmt: skip
    for name in dict.fromkeys(one.target_name for one in panels if one.target is not None):
        handles.append(Line2D([], [], label=name, **TARGET))
    width, height = figure.get_size_inches()
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(left / width, 1 - top / height),
        fontsize=SMALL, frameon=False, handlelength=3.2, borderaxespad=0,
    )  # fmt: skip
