"""`mim3d report`: from runs, results and benchmarks to one page that can be sent."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from mim3d.config.report import ReportConfig, ReportSettings
from mim3d.foundation.atomic import write_text
from mim3d.foundation.disk import check_written
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.reporting import PlainReporter, Reporter
from mim3d.foundation.versions import versions
from mim3d.pages.report.elements import Element, Prose, Section
from mim3d.pages.report.page import GENERATOR, Page
from mim3d.workflows.report.bench import benchmarks_of, setup_of
from mim3d.workflows.report.cases import results_of, validation_of
from mim3d.workflows.report.desk import Desk, listed
from mim3d.workflows.report.overview import overview_of, tiles_of
from mim3d.workflows.report.progress import audit_of, costs_of, curves_of, panels_of
from mim3d.workflows.report.runs import Group, grouped
from mim3d.workflows.report.setup import data_of, settings_of, versions_of
from mim3d.workflows.report.sources import Material, collect
from mim3d.workflows.report.targets import targets_of
from mim3d.workflows.result import Result

HEAD_BYTES = 2048
"""Of a file, in which a page of ours says what it is."""


def report(
    paths: Sequence[str],
    *,
    out: str = "report.html",
    config: ReportConfig | None = None,
    reporter: Reporter | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Result:
    """Writes one self-contained page on everything at the paths.

    Runs that differ by nothing but their seed become one line with a band. Every number is read
    from what the runs, `mim3d evaluate` and `mim3d benchmark` wrote, or reckoned by
    their functions.

    Args:
        paths: runs, `results.json`, folders of a convergence benchmark, or folders that hold them.
        out: the HTML file; an older report is replaced.
        config: heading, worst cases, pictures.
        reporter: where progress goes.
        overwrite: replace a file that is no report.
        dry_run: say what would be written, and write nothing.

    Raises:
        UserError: there is nothing at a path, or it is damaged.
        ConfigError: `out` is a file that is no report, a folder, or one of the inputs.
    """
    settings = (config or ReportConfig()).report
    reporter = reporter or PlainReporter()
    place = Path(out)
    _check_settings(settings)
    _check_free(place, overwrite=overwrite)
    material = collect(paths, settings.pictures)
    groups = grouped(material.runs)
    told = _told(material, groups)
    reporter.say(f"writing `{place}`: {told}")
    facts = {"runs": len(material.runs), "groups": [group.name for group in groups],
             "results": material.names_of_results,
             "benchmarks": [one.name for one in material.benchmarks]}  # fmt: skip
    if dry_run:
        return Result(f"a page on {told} for `{place}`\nnothing was written (--dry_run)", facts)
    with tempfile.TemporaryDirectory(prefix="mim3d-report-") as folder:
        html = page(material, groups, Desk(Path(folder), settings)).html()
    write_text(place, html)
    check_written([place])
    size = len(html.encode("utf-8", "backslashreplace"))
    text = f"one page on {told}: {size / 2**20:.1f} MiB, opens without network"
    return Result(text, {**facts, "bytes": size}, (place,))


def page(material: Material, groups: Sequence[Group], desk: Desk) -> Page:
    """The page, part by part; parts that hold nothing are not on it."""
    made = {run.name: run.versions for run in material.runs}
    made |= {one.name: one.versions for one in material.results}
    made |= {one.name: one.versions for one in material.targets}
    made |= {one.name: one.summary["versions"] for one in material.benchmarks}
    setup = [
        *_headed("Data", data_of(groups, desk)),
        *settings_of(groups, desk),
        *setup_of(material.benchmarks, desk),
        *_headed("Versions", versions_of(made)),
    ]
    parts: dict[str, Iterable[Element]] = {
        "Overview": overview_of(material, groups),
        "What was run": setup,
        "Curves": [*curves_of(groups, desk), *audit_of(groups)],
        "Panels": panels_of(groups, desk),
        "Results": [*results_of(material.results, desk), *targets_of(material.targets, desk)],
        "Validation cases": validation_of(groups, desk),
        "Benchmark": benchmarks_of(material.benchmarks, desk),
        "Cost": costs_of(groups, desk),
    }
    sections = [
        Section(title, tuple(children), anchor=title.lower().replace(" ", "-"))
        for title, children in parts.items()
    ]
    now, used = time.strftime("%Y-%m-%d %H:%M"), versions()
    foot = f"Written {now} by `mim3d report` {used['mim3d']}. It loads nothing from anywhere."
    lead: list[Element] = [Prose(f"Of {_told(material, groups)}."), tiles_of(material, groups)]
    return Page(_title(material, groups, desk.settings), lead, sections, foot)


def _headed(title: str, children: Iterable[Element]) -> list[Element]:
    inside = tuple(children)
    return [Section(title, inside, rank=3)] if inside else []


def _title(material: Material, groups: Sequence[Group], settings: ReportSettings) -> str:
    if settings.title:
        return settings.title
    names = [one.name for one in material.benchmarks]
    names += [group.name for group in groups]
    names += material.names_of_results
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"Report: {shown}"


def _told(material: Material, groups: Sequence[Group]) -> str:
    """What the page is of, in words."""
    parts = []
    if groups:
        number = len(material.runs)
        many = f"{number} run{'' if number == 1 else 's'}"
        if len(groups) < number:
            many += f" in {len(groups)} group{'' if len(groups) == 1 else 's'} of seeds"
        parts.append(f"{many} ({listed([group.name for group in groups])})")
    if material.names_of_results:
        parts.append(f"results {listed(material.names_of_results)}")
    if material.benchmarks:
        parts.append(f"benchmark {listed([one.name for one in material.benchmarks])}")
    return ", ".join(parts)


def _check_settings(settings: ReportSettings) -> None:
    for key, least in (("worst", 0), ("rows", 1)):
        value = getattr(settings, key)
        if value < least:
            raise ConfigError(f"`report.{key}` is {value}, expected {least} or more", code="range")
    if settings.pictures is not None and not Path(settings.pictures).is_dir():
        raise ConfigError(f"`report.pictures` is `{settings.pictures}`, which is no folder",
                          code="no-folder")  # fmt: skip


def _check_free(place: Path, *, overwrite: bool) -> None:
    """Only a report of ours is replaced without being asked."""
    if place.is_dir():
        raise ConfigError(f"`{place}` is a folder, expected a name for the page",
                          remedy=f"for example `--out {place / 'report.html'}`",
                          code="folder")  # fmt: skip
    if overwrite or not place.is_file():
        return
    with open(place, "rb") as file:
        is_ours = f'content="{GENERATOR}"'.encode() in file.read(HEAD_BYTES)
    if not is_ours:
        raise ConfigError(
            f"`{place}` is there and is no report of mim3d",
            remedy="choose another name for `--out`, or add `--overwrite`",
            code="not-a-report",
        )
