"""Paragraphs and tables of help texts, as wide as the terminal but never wider than a page."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

WIDEST = 100
NARROWEST_COLUMN = 30


def page_width() -> int:
    """Columns of a help text."""
    return min(WIDEST, shutil.get_terminal_size((90, 24)).columns)


def wrapped(text: str) -> str:
    """One paragraph; words that are longer than a line are left whole."""
    return textwrap.fill(text, page_width(), break_long_words=False, break_on_hyphens=False)


def listed(title: str, rows: Sequence[tuple[str, str]], *, indent: int) -> str:
    """A title and, below it, two columns: names and what they mean.

    Args:
        title: the line above.
        rows: name and meaning.
        indent: column in which meanings begin; a longer name gets a line of its own.
    """
    width = max(NARROWEST_COLUMN, page_width() - indent)
    lines = [title]
    for name, meaning in rows:
        parts = textwrap.wrap(meaning, width, break_on_hyphens=False)
        fits = len(name) + 4 <= indent
        lines.append(f"  {name:<{indent - 2}}{parts.pop(0)}" if fits else f"  {name}")
        lines.extend(" " * indent + part for part in parts)
    return "\n".join(lines)
