"""Prose, tables and pictures as HTML: escaped, sortable, readable without script."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mim3d.foundation.errors import UserError
from mim3d.pages.report.elements import (
    Cell,
    Details,
    Notes,
    Prose,
    Section,
    Table,
    Tiles,
    inline,
    numeric,
    said,
)
from mim3d.pages.report.figures import ALONE, Gallery, Picture, read_picture

EVIL = "<script>alert('x')</script> \" & `<b>` **<i>**"


class Tags(HTMLParser):
    """Every tag with its attributes, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag != "rect":
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def parsed(element) -> Tags:
    tags = Tags(element.html())
    assert not tags.open, "a tag is left open"
    return tags


@pytest.mark.parametrize(
    "element",
    [
        Prose(EVIL),
        Notes([EVIL, EVIL], "warning"),
        Table([EVIL, "b"], [[EVIL, Cell(EVIL, 1.0, 0.5, anchor=EVIL)]], caption=EVIL),
        Details(EVIL, (Prose(EVIL),)),
        Tiles({EVIL: (EVIL, EVIL)}),
        Section(EVIL, (Prose(EVIL),), anchor=EVIL),
        Gallery([Picture(b"x", (3, 5), EVIL, EVIL, EVIL)]),
    ],
    ids=lambda element: type(element).__name__,
)
def test_words_from_outside_never_become_markup(element):
    tags = parsed(element)

    names = {name for name, _ in tags.tags}
    assert not names & {"script", "i"}
    assert "<script>alert('x')</script>" in tags.text
    assert all(not key.startswith("on") for _, attributes in tags.tags for key in attributes)


def test_text_is_escaped_in_attributes_and_unprintable_letters_are_replaced():
    assert said('a"b<c>&\x00\udcff') == "a&quot;b&lt;c&gt;&amp;\ufffd?"


def test_code_and_bold_are_shown_as_such_and_their_inside_is_text():
    assert inline("a `<b>` **x `y`** z") == ("a <code>&lt;b&gt;</code> <b>x <code>y</code></b> z")


def test_a_table_says_by_what_its_rows_are_sorted_and_what_its_numbers_are():
    rows = [["b", numeric(0.25, is_share=True)], ["a", numeric(None)]]

    tags = parsed(Table(["case", "Dice"], rows, sorted_by=1, falls=True))

    case, dice = [one for one in tags.all("th") if one.get("scope") == "col"]
    assert "aria-sort" not in case
    assert dice["aria-sort"] == "descending"
    assert dice["class"] == "number"
    first, second = tags.all("td")
    assert first["data-value"] == "0.25"
    assert first["class"] == "number bar s2"
    assert "data-value" not in second
    assert len(tags.all("button")) == 2


def test_a_table_whose_order_speaks_cannot_be_sorted():
    tags = parsed(Table(["", "here"], [["a", "1"]], is_fixed=True))

    assert tags.all("table") == [{}]
    assert not tags.all("button")


def test_a_number_that_is_none_or_nan_is_a_dash_without_value():
    assert numeric(float("nan")) == numeric(None) == Cell("-")
    assert numeric(0.12345, 2) == Cell("0.12", 0.12345)


def test_nothing_to_say_is_nothing_on_the_page():
    assert Notes([]).html() == Gallery([]).html() == Tiles({}).html() == ""


def test_a_picture_stands_in_the_page_with_its_size_and_its_words(tmp_path):
    figure = Figure(figsize=(7 * 150 / 96, 3), dpi=150)
    FigureCanvasAgg(figure)
    figure.savefig(tmp_path / "a.png")

    picture = read_picture(tmp_path / "a.png", "a line", "below", "here", is_chart=True)

    tags = parsed(picture)
    [image] = tags.all("img")
    assert picture.size == (1640, 450)
    assert (image["width"], image["height"], image["alt"]) == ("1050", "288", "a line")
    assert image["src"].startswith("data:image/png;base64,iVBOR")
    assert tags.all("figure") == [{"id": "here", "class": "large alone"}]
    assert ALONE <= 1050


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\nxxxxJUNKxxxxxxxxx", None])
def test_what_is_no_picture_is_refused_by_name(tmp_path, content):
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(UserError, match=r"picture `a\.png` cannot be used") as caught:
        read_picture(path, "a")

    assert caught.value.code == "bad-picture"


def test_bars_are_as_long_as_their_share():
    shares = np.linspace(-0.2, 1.2, 15)

    tags = parsed(Table(["a", "b"], [["x", Cell("", 0.0, share)] for share in shares]))

    lengths = [int(cell["class"].split(" s")[1]) for cell in tags.all("td")]
    assert lengths == [round(10 * min(max(share, 0), 1)) for share in shares]
