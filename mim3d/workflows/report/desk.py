"""Where a report draws: figures go through a file into the page, and the file is gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from mim3d.config.report import ReportSettings
from mim3d.pages.report.figures import Picture, read_picture

HALF = (4.8, 3.1)
"""Inches of a figure of which two stand side by side."""


@dataclass
class Desk:
    """What all parts of a report share.

    Attributes:
        folder: for files that live as long as the report is made.
        settings: what is shown, and how much of it.
        drawn: how many figures there were.
    """

    folder: Path
    settings: ReportSettings
    drawn: int = field(default=0)

    def picture(self, draw: Callable[[Path], object], says: str, caption: str = "") -> Picture:
        """What `draw` puts into the file it is given."""
        self.drawn += 1
        path = self.folder / f"{self.drawn}.png"
        draw(path)
        return read_picture(path, says, caption, is_chart=True)

    def value(self, value: Any) -> str:
        """A setting as it is shown."""
        if value is None:
            return "none"
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, (list, tuple)):
            return ", ".join(map(self.value, value)) or "none"
        if isinstance(value, Mapping):
            return "; ".join(f"{key}: {self.value(one)}" for key, one in value.items()) or "none"
        if isinstance(value, float):
            return f"{value:g}"
        return self.path(str(value))

    def path(self, text: str) -> str:
        """Text; of an absolute path only the last part, for a report goes to others."""
        pure: PurePosixPath | PureWindowsPath = PurePosixPath(text)
        if not pure.is_absolute():
            pure = PureWindowsPath(text)
        if self.settings.keep_paths or not pure.is_absolute() or not pure.name:
            return text
        return f"\u2026/{pure.name}"


def listed(names: Sequence[str], most: int = 5) -> str:
    """Names in a sentence, the first few of many."""
    shown = ", ".join(f"`{name}`" for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
