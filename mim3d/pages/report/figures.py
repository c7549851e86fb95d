"""Pictures of a page: PNG files whose bytes stand in the page itself."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mim3d.foundation.documents import DocumentError, bounded
from mim3d.foundation.errors import UserError
from mim3d.pages.report.elements import inline, said

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST_BYTES = 32 * 2**20
PIXELS_AN_INCH = 150
"""Of the pictures that mim3d draws; a browser has 96."""
LARGE, ALONE = 560, 800
"""Pixels of a browser from which a chart is not shrunk to a phone, and a picture has a row."""


@dataclass(frozen=True)
class Picture:
    """A PNG file with what it shows.

    Attributes:
        png: the bytes of the file.
        size: width and height in pixels.
        says: what it shows, for who cannot see it.
        caption: below it, with `code` and **bold**.
        anchor: its id, or none.
        is_chart: whether its letters matter: on a phone it is not shrunk, but scrolls.
    """

    png: bytes
    size: tuple[int, int]
    says: str
    caption: str = ""
    anchor: str = ""
    is_chart: bool = False

    def html(self) -> str:
        """The picture, never wider than it was drawn, with its caption."""
        width, height = (round(side * 96 / PIXELS_AN_INCH) for side in self.size)
        source = base64.b64encode(self.png).decode("ascii")
        name = f' id="{said(self.anchor)}"' if self.anchor else ""
        kinds = ["large"] if self.is_chart and width >= LARGE else []
        kinds += ["alone"] if width >= ALONE else []
        kind = f' class="{" ".join(kinds)}"' if kinds else ""
        below = f"<figcaption>{inline(self.caption)}</figcaption>" if self.caption else ""
        return (
            f'<figure{name}{kind}><div class="frame"><img src="data:image/png;base64,{source}" '
            f'width="{width}" height="{height}" alt="{said(self.says)}"></div>{below}</figure>'
        )


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side, as many as there is room for.

    Attributes:
        pictures: in their order.
        is_wide: whether each takes half of the page rather than a third.
    """

    pictures: Sequence[Picture]
    is_wide: bool = False

    def html(self) -> str:
        """A grid of pictures; nothing where there are none."""
        if not self.pictures:
            return ""
        kind = "gallery wide" if self.is_wide else "gallery"
        return f'<div class="{kind}">{"".join(one.html() for one in self.pictures)}</div>'


def read_picture(
    path: Path, says: str, caption: str = "", anchor: str = "", *, is_chart: bool = False
) -> Picture:
    """A PNG file for a page.

    Args:
        path: the file.
        says: what it shows, for who cannot see it.
        caption: below it.
        anchor: id of the picture.
        is_chart: whether its letters matter more than that it is seen at once.

    Raises:
        UserError: it cannot be read, is larger than 32 MiB, or is no PNG.
    """
    try:
        content = bounded(path, MOST_BYTES)
        if content[:8] != SIGNATURE or content[12:16] != b"IHDR":
            raise DocumentError("it is no PNG")
    except (OSError, DocumentError) as error:
        reason = error.strerror or "unreadable" if isinstance(error, OSError) else str(error)
        raise UserError(
            f"picture `{path.name}` cannot be used: {reason}", where=str(path), code="bad-picture"
        ) from error
    size = (int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big"))
    return Picture(content, size, says, caption, anchor, is_chart)
