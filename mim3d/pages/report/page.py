"""The page as one file: its parts, style and script in it, and a rule that it loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from mim3d.pages.report.elements import Element, Section, inline, said

GENERATOR = "mim3d report"
"""By this word in its head a file is known as one of ours."""


@dataclass(frozen=True)
class Page:
    """A whole report.

    Attributes:
        title: the heading.
        lead: what it is of, below the heading.
        sections: its parts; those that hold nothing are left out.
        foot: the last line.
    """

    title: str
    lead: Sequence[Element]
    sections: Sequence[Section]
    foot: str

    def html(self) -> str:
        """The file. It holds a policy by which a browser loads nothing and runs no other script."""
        style, script = _resource("report.css"), _resource("report.js")
        shown = [part for part in self.sections if part.children]
        links = "".join(f'<a href="#{said(s.anchor)}">{inline(s.title)}</a>' for s in shown)
        policy = (
            "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
            f"style-src '{digest(style)}'; script-src '{digest(script)}'"
        )
        values = {
            "policy": policy,
            "generator": GENERATOR,
            "title": said(self.title),
            "style": style,
            "script": script,
            "navigation": links,
            "lead": "\n".join(one.html() for one in self.lead),
            "sections": "\n".join(part.html() for part in shown),
            "foot": inline(self.foot),
        }
        pieces = _resource("report.html").split("@@")
        # Odd pieces are names: what is filled in is never looked at for names again.
        return "".join(values[one] if n % 2 else one for n, one in enumerate(pieces))


def digest(text: str) -> str:
    """The name by which a policy allows a script or style of the page itself."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _resource(name: str) -> str:
    return files("mim3d.pages.report").joinpath(name).read_text(encoding="utf-8")
