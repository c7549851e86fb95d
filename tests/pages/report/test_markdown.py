"""The Markdown of a benchmark as elements of a page."""

from __future__ import annotations

import pytest

from mim3d.pages.report.elements import Cell, Notes, Prose, Table
from mim3d.pages.report.markdown import counted, sections

TEXT = """# Title that the page has itself

Prose of `two`
lines.

- **warning**: one
- note: two

## First

| arm | labels | a \\| b |
| --- | ---: | ---: |
| mae | 5 | **3.48 [2.88, 4.52]** |
| `x` | 10 | > 4 |

## Second

| | what |
| --- | --- |
| budget | 3 |
"""


def test_headings_part_the_text_and_blocks_become_elements():
    head, first, second = sections(TEXT)

    prose, notes = head.children
    assert prose == Prose("Prose of `two` lines.", is_small=True)
    assert notes == Notes(["**warning**: one", "note: two"], "warning")
    assert (first.title, second.title) == ("First", "Second")
    [table] = first.children
    assert isinstance(table, Table)
    assert table.head == ["arm", "labels", "a | b"]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["mae", "5", "**3.48 [2.88, 4.52]**"], ["`x`", "10", "> 4"],
    ]  # fmt: skip
    assert [[cell.value for cell in row] for row in table.rows] == [[None, 5, 3.48], [None, 10, 4]]


def test_a_table_of_words_keeps_its_order_and_sorts_nothing_as_a_number():
    table = sections(TEXT)[2].children[0]

    assert table.is_fixed
    assert table.rows[0][1] == Cell("3")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.607 [0.538, 0.659]", 0.607),
        ("**-0.016 [-0.030, -0.000], p 0.017**", -0.016),
        ("> 400 [311, open]", 400),
        ("< 0.56", 0.56),
        ("~ 3", 3),
        ("7.19e+12", 7.19e12),
        ("1,234", 1234),
        ("3 x 3 x 18", 3),
        ("45 s", 45),
        ("3 min 20 s", 200),
        ("2 h 05 min", 7500),
        ("1 min 47 s x 3", 107),
        ("-", None),
        ("never", None),
        ("", None),
        ("3d", None),
    ],
)
def test_a_cell_is_sorted_by_the_number_or_time_it_begins_with(text, value):
    assert counted(text) == Cell(text, value)
