"""The config of `mim3d report`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ReportSettings:
    """What a report shows, and how much of it."""

    title: str | None = None
    """Heading of the page; none names what it is of."""
    worst: int = 6
    """Pictures of the worst cases of each results file."""
    pictures: str | None = None
    """Folder of pictures named after the cases (`case_01.png`), such as `pictures/` of the
    predictions; none looks where `mim3d evaluate` draws, beside the results."""
    rows: int = 1000
    """Rows of a table, the worst first; the results hold the others."""
    keep_paths: bool = False
    """Show paths in settings as they were typed; off, only the last part of an absolute one."""


@dataclass(frozen=True)
class ReportConfig:
    """From runs, results and benchmarks to one page."""

    report: ReportSettings = field(default_factory=ReportSettings)
