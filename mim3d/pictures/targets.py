"""Charts of predicted classes and numbers: confusions, ROC curves, predicted against true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
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
from mim3d.pictures.curves import TONES

MOST_COUNTS = 12
"""Classes up to which the cells of a matrix hold their counts."""
MOST_CURVES = 8
"""Curves that have a colour and a name; further ones are faint."""


@dataclass(frozen=True)
class Roc:
    """The ROC curve of a class.

    Args:
        name: in the legend, mostly with the area.
        false_rate: share of the other cases above each threshold, rising from 0 to 1.
        true_rate: share of its own cases above it.
    """

    name: str
    false_rate: Sequence[float]
    true_rate: Sequence[float]


def draw_classes(
    path: Path | str,
    confusion: NDArray[np.integer],
    names: Sequence[str],
    curves: Sequence[Roc],
    *,
    title: str = "",
) -> Path:
    """Draws the confusion matrix and, beside it, ROC curves, and returns the file.

    Args:
        path: PNG file.
        confusion: cases of each class (down) by predicted class (across), `k k`.
        names: of the classes.
        curves: none leaves their place out; the first eight are named.
        title: first line.

    Raises:
        UserError: there is no class.
    """
    if not len(names):
        raise UserError("a confusion matrix needs at least one class", code="empty-matrix")
    figure = new_figure(8.6 if curves else 4.4, 4.2)
    write_at(figure, 0.12, 0.1, title, size=LARGE, weight="bold")
    _draw_confusion(axes_at(figure, 0.95, 0.55, 2.9, 2.9), confusion, names)
    if curves:
        _draw_curves(plain_axes(axes_at(figure, 5.1, 0.55, 2.9, 2.9)), curves)
    return save(figure, path)


def draw_numbers(
    path: Path | str,
    truth: NDArray[np.floating],
    predicted: NDArray[np.floating],
    *,
    title: str = "",
    text: str = "",
) -> Path:
    """Draws predicted over true numbers, a dot a case, and the line of agreement.

    Args:
        path: PNG file.
        truth: `n`.
        predicted: `n`.
        title: first line.
        text: line below it, such as the error.

    Raises:
        UserError: there is no case.
    """
    if not len(truth):
        raise UserError("a chart of numbers needs at least one case", code="empty-curve")
    figure = new_figure(4.4, 4.4)
    write_at(figure, 0.12, 0.1, title, size=LARGE, weight="bold")
    write_at(figure, 0.12, 0.33, text, size=SMALL)
    axes = plain_axes(axes_at(figure, 0.8, 0.7, 3.1, 3.1))
    low = float(min(truth.min(), predicted.min()))
    high = float(max(truth.max(), predicted.max()))
    margin = 0.04 * (high - low) or max(abs(high), 1.0) * 0.04
    axes.plot((low, high), (low, high), color=FAINT, linewidth=1.0, linestyle="--")
    axes.plot(truth, predicted, "o", markersize=3.2, color=unit(colour(4)), alpha=0.7, mew=0)
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlabel("true", fontsize=NORMAL)
    axes.set_ylabel("predicted", fontsize=NORMAL)
    return save(figure, path)


def _draw_confusion(axes: Axes, confusion: NDArray[np.integer], names: Sequence[str]) -> None:
    """Cells as dark as their share of the row; light ones have dark letters."""
    totals = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(totals, 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= MOST_COUNTS:
        for row, column in np.ndindex(*confusion.shape):
            tone = "white" if shares[row, column] > 0.6 else INK
            axes.text(column, row, str(confusion[row, column]), color=tone, fontsize=NORMAL,
                      ha="center", va="center")  # fmt: skip
    every = max(1, -(-len(names) // 25))
    places, shown = range(0, len(names), every), [as_typed(name) for name in names[::every]]
    axes.set_xticks(places, shown, fontsize=SMALL, rotation=90 if len(names) > 6 else 0)
    axes.set_yticks(places, shown, fontsize=SMALL)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted", fontsize=NORMAL)
    axes.set_ylabel("true", fontsize=NORMAL)


def _draw_curves(axes: Axes, curves: Sequence[Roc]) -> None:
    axes.plot((0, 1), (0, 1), color=FAINT, linewidth=0.8, linestyle="--")
    for curve in curves[MOST_CURVES:]:
        axes.plot(curve.false_rate, curve.true_rate, color=FAINT, linewidth=0.6, alpha=0.5)
    for place, curve in enumerate(curves[:MOST_CURVES]):
        axes.plot(curve.false_rate, curve.true_rate, color=unit(colour(TONES[place])),
                  linewidth=1.4, label=as_typed(curve.name))  # fmt: skip
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_xlabel("false positive rate (1 - specificity)", fontsize=NORMAL)
    axes.set_ylabel("true positive rate (sensitivity)", fontsize=NORMAL)
    axes.legend(fontsize=SMALL, frameon=False, loc="lower right")
