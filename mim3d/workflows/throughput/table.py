"""Rows of a race as a table to paste, and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mim3d.workflows.throughput.race import Row

HEAD = (
    "| job | contestant | ms | S | T | results compared |\n"
    "|---|---|---:|---:|---:|---|"
)  # fmt: skip


def lines(rows: Sequence[Row]) -> str:
    """The part of the table that one job makes; the job stands in its first line."""
    return "\n".join(
        line(row, "" if i else f"{row.stage}: {row.what}") for i, row in enumerate(rows)
    )


def line(row: Row, job: str) -> str:
    """One line of the table."""
    cells = (
        job, row.contestant, spread(row.ms), spread(row.s), spread(row.t),
        row.equality,
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def spread(numbers: Sequence[float]) -> str:
    """Smallest, **median**, largest, to three digits."""
    if not numbers:
        return ""
    low, middle, high = map(digits, (min(numbers), statistics.median(numbers), max(numbers)))
    return f"{low}-**{middle}**-{high}"


def digits(number: float) -> str:
    """Three digits, thousands apart, nothing behind the point from 100 on."""
    return f"{number:,.0f}" if number >= 100 else f"{number:#.3g}"


def summary(row: Row) -> dict[str, Any]:
    """A row with its spread for the result file."""
    names = ("min", "median", "max")
    spreads = {
        key: dict(zip(names, (min(n), statistics.median(n), max(n)), strict=True)) if n else None
        for key, n in (("ms", row.ms), ("s", row.s), ("t", row.t))
    }
    return {**asdict(row), "spread": spreads}
