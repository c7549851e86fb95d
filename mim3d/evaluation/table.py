"""The table that `mim3d evaluate` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mim3d.evaluation.results import METRICS, Results, Summary

DIGITS = {"dice": 3, "hd95_mm": 2, "nsd": 3}


def table(results: Results, style: Literal["plain", "markdown"] = "plain") -> str:
    """Dice, HD95 and NSD of each class and their mean, with intervals and counts.

    Args:
        results: what was scored.
        style: columns aligned by spaces, or a Markdown table.

    Returns:
        Several lines without a final line break.
    """
    head = [
        "class",
        "Dice",
        "HD95 mm",
        f"NSD @ {results.nsd_tolerance_mm:g} mm",
        "n",
        "missed",
        "hallucinated",
        "absent",
    ]
    rows = [_row(name, metrics) for name, metrics in results.summary().items() if metrics]
    lines = _markdown(head, rows) if style == "markdown" else aligned(head, rows)
    legend = (
        f"{count(len(results.case_ids), 'case')} of {count(len(results.subjects), 'subject')}; "
        f"[low, high]: {100 * results.confidence:g} % bootstrap over subjects; missed and "
        "hallucinated score Dice 0, NSD 0 and the image's diagonal"
    )
    notes = [f"note: {note}" for note in results.notes]
    return "\n".join([*lines, "", legend, *notes])


def _row(name: str, metrics: dict[str, Summary]) -> list[str]:
    counts = metrics["dice"]
    cells = [_cell(metrics[metric], DIGITS[metric]) for metric in METRICS]
    numbers = (counts.n, counts.missed, counts.hallucinated, counts.absent)
    return [name, *cells, *(str(number) for number in numbers)]


def _cell(summary: Summary, digits: int) -> str:
    if summary.mean is None:
        return "-"
    if summary.low is None or summary.high is None:
        return f"{summary.mean:.{digits}f}"
    return f"{summary.mean:.{digits}f} [{summary.low:.{digits}f}, {summary.high:.{digits}f}]"


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns under their heads: the first one left, the others right."""
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]

    def line(row: Sequence[str]) -> str:
        words = [row[0].ljust(widths[0])]
        words += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(words).rstrip()

    return [line(head), "  ".join("-" * width for width in widths), *map(line, rows)]


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *("---:" for _ in head[1:])]
    cleaned = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return [f"| {' | '.join(row)} |" for row in (head, rule, *cleaned)]


def count(number: int, word: str) -> str:
    """A number of things: `1 case`, `3 cases`."""
    return f"{number} {word}{'' if number == 1 else 's'}"
