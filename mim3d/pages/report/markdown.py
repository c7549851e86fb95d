"""Elements of a page from the little Markdown that mim3d writes: headings, tables, lists, prose."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from mim3d.pages.report.elements import Cell, Element, Notes, Prose, Section, Table

RULE = re.compile(r"\|(?: *:?-+:? *\|)+")
BORDER = re.compile(r"(?<!\\)\|")
NUMBER = re.compile(r"\**[<>~]? *(-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)(?![\w-])")
DURATION = re.compile(r"(?:(\d+) h )?(?:(\d+) min)?(?: ?(\d+) s)?(?= x|$)")


def sections(text: str) -> list[Section]:
    """The parts of a text under their headings `##`; what stands above the first has none.

    A heading `#` is left out: the page has a title of its own.
    """
    parts: list[tuple[str, list[str]]] = [("", [])]
    for line in text.splitlines():
        if line.startswith("## "):
            parts.append((line[3:].strip(), []))
        elif not line.startswith("# "):
            parts[-1][1].append(line)
    return [Section(title, tuple(elements(lines)), rank=4) for title, lines in parts]


def elements(lines: Sequence[str]) -> Iterator[Element]:
    """What blocks of lines, parted by empty ones, show."""
    block: list[str] = []
    for line in (*lines, ""):
        if line.strip():
            block.append(line.strip())
        elif block:
            yield _element(block)
            block = []


def _element(block: Sequence[str]) -> Element:
    if len(block) > 1 and RULE.fullmatch(block[1]):
        return _table(block)
    if all(line.startswith("- ") for line in block):
        is_warned = any(line.startswith("- **warning") for line in block)
        return Notes([line[2:] for line in block], "warning" if is_warned else "note")
    return Prose(" ".join(block), is_small=True)


def _table(block: Sequence[str]) -> Table:
    """Columns that are set to the right are numbers; in a table of words rows keep their order."""
    head, rule, *rows = (_cells(line) for line in block)
    numbers = frozenset(place for place, cell in enumerate(rule) if cell.endswith(":"))
    cells = [
        [counted(cell) if place in numbers else Cell(cell) for place, cell in enumerate(row)]
        for row in rows
    ]
    return Table(head, cells, numbers=numbers, is_fixed=not numbers)


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in BORDER.split(line)[1:-1]]


def counted(text: str) -> Cell:
    """A cell that is sorted by the number, or the time, that it begins with."""
    spell = DURATION.match(text)
    if spell and any(spell.groups()):
        hours, minutes, seconds = (int(part or 0) for part in spell.groups())
        return Cell(text, float(3600 * hours + 60 * minutes + seconds))
    found = NUMBER.match(text)
    return Cell(text, float(found[1].replace(",", ""))) if found else Cell(text)
