"""Charts of numbers: learning curves with bands over seeds, and Dice case by case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

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

Curve = tuple[Sequence[float], Sequence[float]]
"""Steps and values."""
WORST = 5
TONES = (4, 5, 2, 6, 0, 1, 7, 3)
"""Colours of the palette in the order in which lines take them."""


@dataclass(frozen=True)
class Panel:
    """A small chart of one quantity over the steps of a run.

    Args:
        title: the quantity.
        curves: name to steps and values.
        levels: name to a value that stays, drawn as a broken line: what curves are compared with.
    """

    title: str
    curves: Mapping[str, Curve]
    levels: Mapping[str, float] = field(default_factory=dict)


def draw_loss(
    path: Path | str,
    steps: Sequence[float],
    loss: Sequence[float],
    *,
    title: str = "loss",
    size: tuple[float, float] = (6.0, 3.4),
) -> Path:
    """Draws the loss as it was logged, faint, and its running median, and returns the file.

    Args:
        path: PNG file.
        steps: step of each value.
        loss: values; the axis is logarithmic where all are positive.
        title: first line.
        size: width and height in inches.

    Raises:
        UserError: there are no values.
    """
    if not len(steps):
        raise UserError("a curve needs at least one value", code="empty-curve")
    figure = new_figure(*size)
    axes = plain_axes(axes_at(figure, 0.75, 0.5, size[0] - 0.95, size[1] - 1.05))
    write_at(figure, 0.12, 0.1, title, size=LARGE, weight="bold")
    values = np.asarray(loss, float)
    axes.plot(steps, values, color=FAINT, linewidth=0.7, alpha=0.6, label="as logged")
    axes.plot(steps, running_median(values), color=unit(colour(4)), label="running median")
    if (values[np.isfinite(values)] > 0).all():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}" if values.max() < 20 * values.min() else "")
        axes.tick_params(axis="y", which="minor", labelsize=SMALL - 1, colors=FAINT)
    _name_axes(axes, "step", "loss")
    return save(figure, path)


def draw_curves(
    path: Path | str,
    arms: Mapping[str, Sequence[Curve]],
    *,
    quantity: str = "Dice",
    title: str = "",
    log_steps: bool = False,
    levels: Mapping[str, float] | None = None,
    size: tuple[float, float] = (6.0, 4.0),
) -> Path:
    """Draws one line an arm: the mean over its seeds within a band from lowest to highest.

    Args:
        path: PNG file.
        arms: name to the curves of its seeds; curves of other steps are interpolated. One without
            curves is not drawn and keeps its colour from the others.
        quantity: name of the y axis.
        title: first line.
        log_steps: whether steps are on a logarithmic axis.
        levels: name to a value that stays, drawn as a broken line.
        size: width and height in inches.

    Returns:
        The file.

    Raises:
        UserError: there is no curve.
    """
    if not any(arms.values()):
        raise UserError("learning curves need at least one arm with a curve", code="empty-curve")
    figure = new_figure(*size)
    axes = plain_axes(axes_at(figure, 0.75, 0.5, size[0] - 0.95, size[1] - 1.05))
    write_at(figure, 0.12, 0.1, title, size=LARGE, weight="bold")
    for place, (name, curves) in enumerate(arms.items()):
        if not curves:
            continue
        steps, values = on_common_steps(curves)
        tone = unit(colour(TONES[place % 8]))
        seeds = "" if len(curves) == 1 else f" ({len(curves)} seeds)"
        axes.plot(steps, values.mean(axis=0), color=tone, linewidth=1.6,
                  marker="o" if len(steps) <= 50 else None, markersize=2.5,
                  label=as_typed(f"{name}{seeds}"))  # fmt: skip
        if len(curves) > 1:
            axes.fill_between(
                steps, values.min(axis=0), values.max(axis=0), color=tone, alpha=0.18, linewidth=0
            )
    for style, (name, value) in zip(("--", ":", "-."), (levels or {}).items(), strict=False):
        axes.axhline(value, color=INK, linewidth=1.0, linestyle=style, label=as_typed(name))
    if log_steps:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    _name_axes(axes, "step", quantity)
    return save(figure, path)


def draw_panels(path: Path | str, panels: Sequence[Panel], *, title: str = "") -> Path:
    """Draws small charts side by side, two in a row, and returns the file.

    Args:
        path: PNG file.
        panels: those without a curve are left out.
        title: first line.

    Raises:
        UserError: there is no curve.
    """
    filled = [panel for panel in panels if any(len(steps) for steps, _ in panel.curves.values())]
    if not filled:
        raise UserError("charts need at least one curve", code="empty-curve")
    rows = -(-len(filled) // 2)
    figure = new_figure(7.6, 0.4 + 2.6 * rows)
    write_at(figure, 0.12, 0.1, title, size=LARGE, weight="bold")
    for place, panel in enumerate(filled):
        left, top = 0.6 + 3.75 * (place % 2), 0.65 + 2.6 * (place // 2)
        write_at(figure, left, top - 0.22, panel.title, size=NORMAL)
        _draw_panel(plain_axes(axes_at(figure, left, top, 3.1, 1.85)), panel)
    return save(figure, path)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    for place, (name, (steps, values)) in enumerate(panel.curves.items()):
        tone, few = unit(colour(TONES[place % 8])), len(steps) <= 50
        axes.plot(steps, values, color=tone, linewidth=1.4, label=name,
                  marker="o" if few else None, markersize=2.5)  # fmt: skip
    for style, (name, value) in zip(("--", ":", "-."), panel.levels.items(), strict=False):
        axes.axhline(value, color=INK, linewidth=1.0, linestyle=style, label=name)
    axes.set_xlabel("step", fontsize=SMALL)
    axes.legend(fontsize=SMALL - 1, frameon=False)


def draw_cases(
    path: Path | str,
    classes: Mapping[str, Mapping[str, float]],
    *,
    quantity: str = "Dice",
    title: str = "",
    lower_is_worse: bool = True,
) -> Path:
    """Draws one dot a case, sorted within its class, the median as a bar; names the worst five.

    Args:
        path: PNG file.
        classes: class name to the value of each case; cases without a value are left out.
        quantity: name of the y axis.
        title: first line.
        lower_is_worse: False for distances.

    Returns:
        The file.

    Raises:
        UserError: there is no value.
    """
    filled = {name: cases for name, cases in classes.items() if cases}
    if not filled:
        raise UserError("a chart of cases needs at least one value", code="empty-curve")
    across, aside = max(2.8, 0.7 * len(filled)), 2.6
    crowded = len(filled) > 4
    figure = new_figure(0.7 + across + aside, 4.5 if crowded else 3.9)
    axes = plain_axes(axes_at(figure, 0.7, 0.45, across, 2.9))
    axes.grid(visible=False, axis="x")
    write_at(figure, 0.12, 0.1, title, size=LARGE, weight="bold")
    for place, cases in enumerate(filled.values()):
        values = np.sort(np.array(list(cases.values())))
        rank = np.linspace(-0.3, 0.3, len(values)) if len(values) > 1 else np.zeros(1)
        tone = unit(colour(place))
        axes.plot(place + rank, values, "o", markersize=3.2, color=tone, alpha=0.75, mew=0)
        axes.plot((place - 0.36, place + 0.36), (np.median(values),) * 2, color=INK, linewidth=1.4)
    axes.set_xticks(range(len(filled)))
    names = [f"{name}\nn = {len(cases)}" for name, cases in filled.items()]
    axes.set_xticklabels(names, rotation=45 if crowded else 0, ha="right" if crowded else "center")
    axes.set_ylabel(quantity, fontsize=NORMAL)
    _write_worst(figure, 0.7 + across + 0.2, worst_cases(filled, lower_is_worse))
    return save(figure, path)


def worst_cases(
    classes: Mapping[str, Mapping[str, float]], lower_is_worse: bool, count: int = WORST
) -> list[tuple[str, str, float]]:
    """The worst `count` values with their class and case, worst first."""
    rows = [(name, case, value) for name, cases in classes.items() for case, value in cases.items()]
    return sorted(rows, key=lambda row: row[2] if lower_is_worse else -row[2])[:count]


def running_median(values: NDArray[np.float64], share: float = 0.05) -> NDArray[np.float64]:
    """Median over a window of `share` of all values around each; shorter at both ends."""
    half = max(1, round(len(values) * share / 2))
    return np.array(
        [np.nanmedian(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
    )


def on_common_steps(
    curves: Sequence[Curve],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """All steps that every curve spans, and the curves on them, `curves steps`."""
    spans = [(np.asarray(x, float), np.asarray(y, float)) for x, y in curves]
    first, last = max(x[0] for x, _ in spans), min(x[-1] for x, _ in spans)
    steps = np.unique(np.concatenate([x for x, _ in spans]))
    steps = steps[(steps >= first) & (steps <= last)]
    return steps, np.stack([np.interp(steps, x, y) for x, y in spans])


def _name_axes(axes: Axes, across: str, up: str) -> None:
    axes.set_xlabel(across, fontsize=NORMAL)
    axes.set_ylabel(up, fontsize=NORMAL)
    axes.legend(fontsize=SMALL, frameon=False)


def _write_worst(figure: Figure, left: float, worst: Sequence[tuple[str, str, float]]) -> None:
    write_at(figure, left, 0.5, "worst", size=SMALL, weight="bold")
    for place, (name, case, value) in enumerate(worst):
        top = 0.7 + 0.34 * place
        write_at(figure, left, top, f"{value:.3f}  {case}", size=SMALL)
        write_at(figure, left + 0.1, top + 0.14, name, size=SMALL - 1, colour=FAINT)
