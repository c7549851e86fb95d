"""`mim3d inspect`: what a folder of scans holds, what stands against it, and what to type next."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mim3d.config.inspect import InspectConfig
from mim3d.config.verbs import PrepareConfig
from mim3d.data.cohort import Cohort
from mim3d.data.cohort.folders import read_images_alone
from mim3d.data.prepare import read_source
from mim3d.data.prepare.keys import size
from mim3d.foundation.errors import ExitCode, UserError
from mim3d.foundation.reporting import PlainReporter, Reporter, duration
from mim3d.workflows.inspect.command import CURES, cured, next_command
from mim3d.workflows.inspect.groups import Group, group_lines, grouped
from mim3d.workflows.inspect.headers import CaseHeaders, Problem, across_cases, read_headers
from mim3d.workflows.inspect.trial import Estimate, Trial, estimated, try_some
from mim3d.workflows.result import Result

OURS = {"manifest.json": "a store", "config.yaml": "a run"}
SHOWN_CLASSES = 12


@dataclass(frozen=True)
class Inspection:
    """All that was found of a source.

    Attributes:
        cohort: its cases.
        headers: one a case.
        groups: volumes by modality.
        trial: what a few cases became.
        problems: of headers, of comparisons, of the trial.
        estimate: what preparing takes, or None.
        command: what to type next; empty where no case can be used.
    """

    cohort: Cohort
    headers: Sequence[CaseHeaders]
    groups: Sequence[Group]
    trial: Trial
    problems: Sequence[Problem]
    estimate: Estimate | None
    command: str


def inspect(
    path: str, *, config: InspectConfig | None = None, reporter: Reporter | None = None
) -> Result:
    """Describes files of scans that are not prepared yet, and writes nothing.

    Args:
        path: anything `prepare` takes.
        config: how closely to look, and the settings of `prepare` to look with.
        reporter: where progress goes.

    Returns:
        Counts, sizes, spacings, orientations and problems a modality, an estimate of preparation,
        and the `prepare` command to use next; exit code 3 where no case can be used.

    Raises:
        UserError: no source, no case, or a source that cannot be understood.
    """
    config, reporter = config or InspectConfig(), reporter or PlainReporter()
    _check_not_ours(Path(path))
    settings = PrepareConfig(prepare=config.prepare, read=config.read)
    found = _inspected(path, settings, config, reporter)
    text = "\n".join(_lines(found, config.inspect.shown))
    code = ExitCode.DONE if found.command else ExitCode.INPUT
    return Result(text, _facts(found), exit_code=code)


def _check_not_ours(path: Path) -> None:
    for name, what in OURS.items():
        is_ours = (path / name).is_file() and not (path / "dataset.json").is_file()
        if is_ours and ((path / "cases").is_dir() or (path / "checkpoints").is_dir()):
            raise UserError(
                f"`{path}` is {what} that mim3d made",
                remedy=f"`mim3d info {path}` describes it",
                code="ours",
            )


def _inspected(
    path: str, settings: PrepareConfig, config: InspectConfig, reporter: Reporter
) -> Inspection:
    try:
        cohort = read_source(path, settings)
        against: tuple[Problem, ...] = ()
    except UserError as error:
        if error.code != "unpaired-label":
            raise
        cohort = read_images_alone(Path(path))
        against = (Problem("", error.code, error.what, error.remedy or ""),)
    headers = read_headers(cohort.cases, settings, reporter)
    problems = [*against, *(p for one in headers for p in one.problems), *across_cases(headers)]
    better = cured(settings, problems)
    if better != settings:
        headers = read_headers(cohort.cases, better, reporter)
    trial = Trial()
    if config.inspect.tried:
        reporter.say(f"preparing up to {config.inspect.tried} case(s) in a temporary folder")
        trial = try_some(cohort, headers, better, config.inspect.tried)
    problems += trial.problems
    groups = grouped(cohort, headers, trial.modalities)
    estimate = estimated(headers, trial, settings.prepare.workers)
    is_usable = trial.cases if config.inspect.tried else any(one.images for one in headers)
    command = next_command(path, cohort, better) if is_usable and not against else ""
    return Inspection(cohort, headers, groups, trial, problems, estimate, command)


def _lines(found: Inspection, shown: int) -> Iterator[str]:
    yield from _summary(found.cohort)
    for group in found.groups:
        yield from group_lines(group)
    yield _labels(found)
    if found.trial.notes:
        notes = ", ".join(f"{code} in {count}" for code, count in found.trial.notes)
        yield f"notes of the {found.trial.cases} case(s) tried: {notes}"
    yield from _problem_lines(found.problems, shown)
    estimate = found.estimate
    if estimate is not None:
        yield (
            f"preparation: about {duration(estimate.seconds)} with {estimate.processes} "
            f"process(es), about {_size(estimate.stored)} of disk (by {estimate.tried} case(s) "
            "tried here)"
        )
    if found.command:
        yield from ("next:", f"  {found.command}")
    else:
        yield "no case can be prepared as things are"


def _summary(cohort: Cohort) -> Iterator[str]:
    cases = cohort.cases
    subjects = len({case.subject_id for case in cases})
    labelled = sum(case.label is not None for case in cases)
    lists = Counter(case.part for case in cases)
    parts = ", ".join(f"{count} {part}" for part, count in lists.items())
    files = _size(size(*(path for case in cases for path in case.images)))
    yield (
        f"{cohort.name or cohort.source} ({cohort.kind}): {len(cases)} case(s) of {subjects} "
        f"subject(s), {labelled} with labels; {parts}; {files} of images"
    )
    yield from cohort.found
    yield from cohort.remarks


def _labels(found: Inspection) -> str:
    if not any(case.label is not None for case in found.cohort.cases):
        return "labels: none"
    classes = found.cohort.classes
    names = classes.names if classes is not None else found.trial.classes
    if not names:
        return "labels: their values are not known before label maps are read"
    said = "named by the source" if classes is not None else "values of the cases tried"
    more = f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
    return f"labels: {', '.join(names[:SHOWN_CLASSES])}{more} ({said})"


def _problem_lines(problems: Sequence[Problem], shown: int) -> Iterator[str]:
    if not problems:
        yield "problems: none found"
        return
    by_code: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        by_code[problem.code].append(problem)
    for code, group in sorted(by_code.items(), key=lambda item: -len(item[1])):
        cases = list(dict.fromkeys(problem.case_id for problem in group))
        more = f" and {len(cases) - shown} more" if len(cases) > shown else ""
        named = ", ".join(f"`{case_id}`" for case_id in cases[:shown])
        weight = "would be refused" if any(p.refuses for p in group) else "worth a look"
        weight = "settled by the command below" if code in CURES else weight
        whom = f"{len(cases)} case(s) {weight}: {named}{more}" if cases[0] else "the source"
        yield f"problem `{code}`, {whom}"
        yield f"  {group[0].text}"
        if group[0].remedy:
            yield f"  hint: {group[0].remedy}"


def _facts(found: Inspection) -> dict[str, Any]:
    cohort = found.cohort
    classes = cohort.classes
    return {
        "kind": cohort.kind,
        "name": cohort.name,
        "cases": len(cohort.cases),
        "subjects": len({case.subject_id for case in cohort.cases}),
        "labelled": sum(case.label is not None for case in cohort.cases),
        "lists": dict(Counter(case.part for case in cohort.cases)),
        "found": [*cohort.found, *cohort.remarks],
        "groups": [group.as_json() for group in found.groups],
        "classes": None if classes is None else classes.as_json(),
        "problems": [asdict(problem) for problem in found.problems],
        "estimate": None if found.estimate is None else asdict(found.estimate),
        "command": found.command,
    }


def _size(count: float) -> str:
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.1f} MB" if count < 1e8 else f"{count / 1e6:.0f} MB"
