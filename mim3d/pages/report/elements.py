"""What a page is made of: prose, tables, pictures, and what holds them; each says its own HTML."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal, Protocol

Level = Literal["note", "warning"]
# `code` and **bold**, as the tables and notes of mim3d have them.
INLINE = re.compile(r"`([^`]+)`|\*\*(.+?)\*\*")
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class Element(Protocol):
    """Anything that stands on a page."""

    def html(self) -> str:
        """The element as HTML; whatever came from outside is escaped."""


def said(text: str) -> str:
    """Text as HTML, nothing in it is markup; bytes that are no letters become `?`."""
    letters = text.encode("utf-8", "replace").decode()
    return escape(UNPRINTABLE.sub("\ufffd", letters), quote=True)


def inline(text: str) -> str:
    """Text in which `code` and **bold** are shown as such."""
    pieces, end = [], 0
    for found in INLINE.finditer(text):
        pieces.append(said(text[end : found.start()]))
        code, bold = found.groups()
        pieces.append(
            f"<code>{said(code)}</code>" if code is not None else f"<b>{inline(bold)}</b>"
        )
        end = found.end()
    return "".join([*pieces, said(text[end:])])


@dataclass(frozen=True)
class Prose:
    """A paragraph.

    Attributes:
        text: with `code` and **bold**.
        is_small: whether it is an explanation beside something else.
    """

    text: str
    is_small: bool = False

    def html(self) -> str:
        """A paragraph."""
        kind = ' class="small"' if self.is_small else ""
        return f"<p{kind}>{inline(self.text)}</p>"


@dataclass(frozen=True)
class Notes:
    """Sentences that a reader must not miss.

    Attributes:
        lines: one sentence each; none at all is nothing on the page.
        level: how much they matter.
    """

    lines: Sequence[str]
    level: Level = "note"

    def html(self) -> str:
        """A list with a coloured edge."""
        if not self.lines:
            return ""
        items = "".join(f"<li>{inline(line)}</li>" for line in self.lines)
        return f'<ul class="notes {self.level}">{items}</ul>'


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what it says, with `code` and **bold**.
        value: what it is sorted by as a number; None sorts it as text, or last in a column of
            numbers.
        share: 0 to 1, drawn as a bar behind the number.
        anchor: id of an element of the page that it leads to.
        colours: RGB, drawn as small squares before the text.
    """

    text: str
    value: float | None = None
    share: float | None = None
    anchor: str | None = None
    colours: Sequence[tuple[int, int, int]] = ()

    def html(self) -> str:
        """What stands between the tags of the cell."""
        squares = "".join(
            f'<svg class="swatch" viewBox="0 0 9 9" aria-hidden="true"><rect width="9" height="9" '
            f'fill="rgb({red},{green},{blue})"/></svg>'
            for red, green, blue in self.colours
        )
        text = inline(self.text)
        return squares + (f'<a href="#{said(self.anchor)}">{text}</a>' if self.anchor else text)


def numeric(value: float | None, digits: int = 3, *, is_share: bool = False) -> Cell:
    """A number as a cell; `-` where there is none.

    Args:
        value: the number, or None.
        digits: after the point.
        is_share: whether it lies in 0 to 1 and is drawn as a bar.
    """
    if value is None or value != value:
        return Cell("-")
    return Cell(f"{value:.{digits}f}", value, value if is_share else None)


Row = list[Cell | str]
"""Of a table; text alone is a cell that sorts as text."""


@dataclass(frozen=True)
class Table:
    """A table that is sorted by a click on the head of a column.

    Attributes:
        head: names of the columns.
        rows: cells; text alone is a cell that sorts as text.
        caption: above it.
        sorted_by: column by which the rows are sorted as they come, or None.
        falls: whether that column falls.
        is_fixed: whether the order of the rows says something, and is not to be changed.
        numbers: columns of numbers though no cell may hold one; the others are told by their cells.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    caption: str = ""
    sorted_by: int | None = None
    falls: bool = False
    is_fixed: bool = False
    numbers: Collection[int] = ()

    def html(self) -> str:
        """The table in a box that scrolls by itself where the page is narrow."""
        rows = [[Cell(cell) if isinstance(cell, str) else cell for cell in row]
                for row in self.rows]  # fmt: skip
        columns = range(len(self.head))
        numbers = [
            place in self.numbers or any(row[place].value is not None for row in rows)
            for place in columns
        ]
        heads = "".join(self._head(place, numbers[place]) for place in columns)
        body = "".join(
            f"<tr>{''.join(_cell(cell, numbers[n], n == 0) for n, cell in enumerate(row))}</tr>"
            for row in rows
        )
        caption = f"<caption>{inline(self.caption)}</caption>" if self.caption else ""
        kind = "" if self.is_fixed else ' class="sortable"'
        name = said(self.caption or ", ".join(self.head[:4]))
        return (
            f'<div class="scroll" tabindex="0" role="region" aria-label="{name}"><table{kind}>'
            f"{caption}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def _head(self, place: int, is_number: bool) -> str:
        name = inline(self.head[place])
        kind = ' class="number"' if is_number else ""
        if self.is_fixed:
            return f'<th scope="col"{kind}>{name}</th>'
        order = ""
        if place == self.sorted_by:
            order = f' aria-sort="{"descending" if self.falls else "ascending"}"'
        return f'<th scope="col"{kind}{order}><button type="button">{name}</button></th>'


def _cell(cell: Cell, is_number: bool, is_first: bool) -> str:
    tag = 'th scope="row"' if is_first else "td"
    kinds = ["number"] if is_number else []
    if cell.share is not None:
        # Eleven classes instead of a style of its own: a page may then forbid inline styles.
        kinds.append(f"bar s{round(10 * min(max(cell.share, 0.0), 1.0))}")
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    value = "" if cell.value is None else f' data-value="{cell.value!r}"'
    return f"<{tag}{kind}{value}>{cell.html()}</{'th' if is_first else 'td'}>"


@dataclass(frozen=True)
class Details:
    """Something that is opened by a click, and is open on paper.

    Attributes:
        summary: what it is.
        children: what it holds.
    """

    summary: str
    children: Sequence[Element]

    def html(self) -> str:
        """The element; nothing where it holds nothing."""
        inside = "".join(child.html() for child in self.children)
        return f"<details><summary>{inline(self.summary)}</summary>{inside}</details>"


@dataclass(frozen=True)
class Tiles:
    """A few numbers that say most, in large letters.

    Attributes:
        numbers: what it is to the number, and what stands below it.
    """

    numbers: Mapping[str, tuple[str, str]]

    def html(self) -> str:
        """Boxes side by side, as many as there is room for."""
        boxes = "".join(
            f"<div><dt>{inline(name)}</dt><dd><b>{inline(number)}</b>"
            f"<span>{inline(below)}</span></dd></div>"
            for name, (number, below) in self.numbers.items()
        )
        return f'<dl class="tiles">{boxes}</dl>' if boxes else ""


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading.

    Attributes:
        title: the heading.
        children: what it holds.
        anchor: its id; of sections of the first rank the navigation leads to it.
        rank: 2 for the first rank, then 3 and 4.
    """

    title: str
    children: Sequence[Element] = field(default_factory=tuple)
    anchor: str = ""
    rank: Literal[2, 3, 4] = 2

    def html(self) -> str:
        """The heading and what follows."""
        name = f' id="{said(self.anchor)}"' if self.anchor else ""
        inside = "\n".join(child.html() for child in self.children)
        tag = f"h{self.rank}"
        return f"<section{name}><{tag}>{inline(self.title)}</{tag}>\n{inside}</section>"
