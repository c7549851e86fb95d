"""What a report is made from: runs, results and benchmarks, found under the given paths."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mim3d.evaluation.convergence import Record
from mim3d.evaluation.results import Results, read_results
from mim3d.evaluation.study import Study
from mim3d.evaluation.targets import TargetResults, holds_target_results, read_target_results
from mim3d.foundation.documents import DocumentError, read_document, read_object
from mim3d.foundation.errors import UserError
from mim3d.workflows.naming import BENCHMARK, names_of
from mim3d.workflows.report.runs import RunMade, read_run

MOST_BYTES = 512 * 2**20
"""Of the JSON of a benchmark, which holds all its records."""
LEFT_OUT = 0.51e-5
"""Of a Dice in the JSON of a benchmark, which has five digits of it."""
PARTS = ("pretrain", "finetune")
"""Folders of a benchmark that hold its runs."""


@dataclass(frozen=True)
class Evaluated:
    """Results of label maps, as `mim3d evaluate` wrote them.

    Attributes:
        name: how the page calls them.
        path: the file.
        results: every score.
        versions: of what made them.
        pictures: of cases, by case id.
    """

    name: str
    path: Path
    results: Results
    versions: Mapping[str, str]
    pictures: Mapping[str, Path]


@dataclass(frozen=True)
class EvaluatedTargets:
    """Results of predicted classes and numbers.

    Attributes:
        name: how the page calls them.
        path: the file.
        results: every case.
        versions: of what made them.
    """

    name: str
    path: Path
    results: TargetResults
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Benchmarked:
    """A convergence benchmark.

    Attributes:
        name: how the page calls it.
        path: its `convergence.json`.
        study: its records.
        summary: what that file holds.
        runs: those of its folder, where they are there.
        later: records of the folder that the file does not have yet.
        unread: why runs of the folder could not be read, one sentence each.
    """

    name: str
    path: Path
    study: Study
    summary: Mapping[str, Any]
    runs: tuple[RunMade, ...]
    later: int
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Material:
    """All that a page is of, in the order of the command line."""

    runs: tuple[RunMade, ...] = ()
    results: tuple[Evaluated, ...] = ()
    targets: tuple[EvaluatedTargets, ...] = ()
    benchmarks: tuple[Benchmarked, ...] = ()

    @property
    def names_of_results(self) -> list[str]:
        """How the page calls the results, those of label maps first."""
        names = [one.name for one in self.results]
        return [*names, *(one.name for one in self.targets)]


@dataclass
class _Found:
    """Where things are, before they are read."""

    runs: list[Path] = field(default_factory=list)
    results: list[Path] = field(default_factory=list)
    benchmarks: list[Path] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.runs) + len(self.results) + len(self.benchmarks)


def collect(paths: Sequence[str], pictures: str | None = None) -> Material:
    """Reads what stands at the paths.

    Args:
        paths: run folders, `results.json` of `mim3d evaluate`, folders of a convergence benchmark
            or its `convergence.json`; or a folder that holds some of these, or has them in `runs/`.
        pictures: folder of pictures by case id; None looks beside each results file.

    Raises:
        UserError: there is nothing at a path, it is damaged, or it is given twice.
    """
    found, seen = _Found(), set[Path]()
    for path in map(Path, paths):
        if path.resolve() in seen:
            raise UserError(f"`{path}` is given twice", remedy="name it once", code="twice")
        seen.add(path.resolve())
        if not (_take(path, found) or _take_inside(path, found)):
            raise _nothing(path)
    names = names_of([*found.runs, *found.results, *found.benchmarks])
    labelled = [path for path in found.results if not holds_target_results(path)]
    return Material(
        tuple(read_run(path, names[path]) for path in found.runs),
        tuple(_evaluated(path, names[path], pictures) for path in labelled),
        tuple(
            EvaluatedTargets(names[path], path, read_target_results(path), _versions(path))
            for path in found.results
            if path not in labelled
        ),
        tuple(_benchmarked(path, names[path]) for path in found.benchmarks),
    )


def _take(path: Path, found: _Found) -> bool:
    """Notes what a path is itself; False where it is none of ours."""
    if (path / "config.yaml").is_file() and (path / "preparation.json").is_file():
        found.runs.append(path)
    elif (path / BENCHMARK).is_file():
        found.benchmarks.append(path / BENCHMARK)
    elif path.is_file() and path.suffix == ".json":
        kind = _kind(path)
        if kind is not None:
            getattr(found, kind).append(path)
        return kind is not None
    else:
        return False
    return True


def _take_inside(path: Path, found: _Found) -> bool:
    """Notes what a folder and its `runs/` hold; False where they hold nothing of ours."""
    before = len(found)
    for folder in (path / "runs", path):
        for inside in sorted(folder.iterdir()) if folder.is_dir() else ():
            _take(inside, found)
    return len(found) > before


def _kind(path: Path) -> str | None:
    """Which list a JSON file belongs to; None where it is none of ours."""
    try:
        content = read_document(path, most=MOST_BYTES)
    except (OSError, DocumentError):
        return None
    keys = set(content) if isinstance(content, dict) else set()
    if keys >= {"cases", "bootstrap", "versions"} and keys & {"classes", "targets"}:
        return "results"
    return "benchmarks" if keys >= {"records", "reference", "bootstrap"} else None


def _nothing(path: Path) -> UserError:
    if not path.exists():
        return UserError(f"there is nothing at `{path}`", code="no-path")
    remedy = (
        "give a run folder, a `results.json` of `mim3d evaluate`, or the folder of "
        "`mim3d benchmark convergence`"
    )
    if (path / "records").is_dir() and (path / "plan.json").is_file():
        remedy = "the command that began this benchmark writes its report when it is typed again"
    return UserError(
        f"`{path}` is neither a run, nor results, nor a benchmark with a report, and holds none",
        remedy=remedy,
        code="not-ours",
    )


def _evaluated(path: Path, name: str, pictures: str | None) -> Evaluated:
    folder = path.with_suffix("") if pictures is None else Path(pictures)
    results = read_results(path)
    there = {case: picture_of(folder, case) for case in results.case_ids}
    drawn = {case: file for case, file in there.items() if file is not None}
    return Evaluated(name, path, results, _versions(path), drawn)


def picture_of(folder: Path, case: str) -> Path | None:
    """The picture of a case, where there is one.

    Results come from others: a case called `../../scan` brings no picture of another folder onto
    a page that is sent.
    """
    path = folder / f"{case}.png"
    return path if path.parent == folder and "\0" not in case and path.is_file() else None


def _versions(path: Path) -> dict[str, str]:
    found = read_object(path).get("versions")
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def _benchmarked(path: Path, name: str) -> Benchmarked:
    """The study as its own report reckoned it: same order, reference and resamples."""
    try:
        summary = read_object(path, most=MOST_BYTES)
        read = tuple(Record.from_json(one) for one in summary["records"])
        records = _exact(read, path.parent / "records")
        study = Study(
            records,
            str(summary["reference"]),
            int(summary["bootstrap"]["resamples"]),
            float(summary["bootstrap"]["confidence"]),
            int(summary["bootstrap"]["seed"]),
        )
        for key in ("about", "machines", "written_on", "versions"):
            if not isinstance(summary[key], dict):
                raise TypeError(key)
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"`{path.name}` does not hold a report of `mim3d benchmark convergence`",
            where=str(path),
            remedy="the command that began the benchmark writes it anew",
            code="not-a-benchmark",
        ) from error
    folder = path.parent
    runs, unread = [], []
    for inside in (one for part in PARTS for one in _runs_of(folder / part)):
        # The benchmark's numbers are in its records: they are worth a page without its runs.
        try:
            runs.append(read_run(inside, inside.name))
        except UserError as error:
            unread.append(f"run `{inside.name}` is not shown: {error.what}")
    there = len(list((folder / "records").glob("*.json")))
    later = max(0, there - len(records))
    return Benchmarked(name, path, study, summary, tuple(runs), later, tuple(unread))


def _exact(records: Sequence[Record], folder: Path) -> tuple[Record, ...]:
    """The records with every digit, where their own files are still there.

    A report rounds them; its tables were reckoned before, and the page's are to be the same.
    """
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    whole: dict[tuple[str, str, int], Record] = {}
    for file in files:
        with contextlib.suppress(UserError):
            one = Record.from_json(read_object(file))
            whole[one.arm, one.labels, one.replicate] = one
    chosen = []
    for record in records:
        found = whole.get((record.arm, record.labels, record.replicate))
        is_same = found is not None and _is_same(found, record)
        chosen.append(replace(found, against=record.against) if found and is_same else record)
    return tuple(chosen)


def _is_same(one: Record, other: Record) -> bool:
    """Whether two records are of one fine-tuning, but for the digits that a report leaves out."""
    if (one.steps, one.cases, one.why_dead) != (other.steps, other.cases, other.why_dead):
        return False
    pairs = zip(one.dice, other.dice, strict=True)
    return all(
        abs(here - there) <= LEFT_OUT for rows in pairs for here, there in zip(*rows, strict=True)
    )


def _runs_of(folder: Path) -> Iterator[Path]:
    for inside in sorted(folder.iterdir()) if folder.is_dir() else ():
        if (inside / "config.yaml").is_file() and (inside / "preparation.json").is_file():
            yield inside
