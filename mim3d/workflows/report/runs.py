"""Runs as a report sees them: settings, log and status; those that differ by a seed are a group."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mim3d.config.reading import read_config
from mim3d.config.tree import settings, value_of
from mim3d.config.verbs import FinetuneConfig, PretrainConfig
from mim3d.config.writing import differences
from mim3d.foundation.documents import DocumentError, parsed, read_object
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.pictures.curves import Curve
from mim3d.training.run import read_status
from mim3d.workflows.run_record import load_preparation
from mim3d.workflows.tasks.curve import read_curve

VERBS = {"pretrain": "pre-training", "finetune": "fine-tuning", "convert": "conversion"}
SEEDED = ("training.seed",)
"""What tells two seeds of one group apart."""
HOW = ("training.device", "training.threads", "training.workers", "data.workers", "data.feed",
       "data.resident_on", "training.strategy", "training.compile")  # fmt: skip
"""How a run is carried out, by which its numbers are the same."""


@dataclass(frozen=True)
class RunMade:
    """A run folder, read.

    Attributes:
        name: how the page calls it.
        path: the folder.
        verb: `pretrain`, `finetune` or `convert`.
        settings: every setting by its dotted key.
        changed: keys in which it differs from the defaults.
        defaults: the defaults of those keys.
        status: state, steps and what the training ended with.
        kept: what it keeps of its store.
        versions: that had part in it.
        log: lines of its log.
        broken_lines: lines of the log that are none.
        curve: Dice of the judged cases by step, `subjects`, `dice`, `zeroed`; or empty.
        results: what a finished fine-tuning wrote about itself; or empty.
    """

    name: str
    path: Path
    verb: str
    settings: Mapping[str, Any]
    changed: tuple[str, ...]
    defaults: Mapping[str, Any]
    status: Mapping[str, Any]
    kept: Mapping[str, Any]
    versions: Mapping[str, str]
    log: tuple[Mapping[str, Any], ...]
    broken_lines: int
    curve: Mapping[str, Any]
    results: Mapping[str, Any]

    @property
    def state(self) -> str:
        """`done`, or why not."""
        if self.verb == "convert":
            return "converted"
        return str(self.status.get("state", "not started"))

    @property
    def seed(self) -> Any:
        """The seed of the training."""
        return self.settings.get("training.seed")

    @property
    def training(self) -> Mapping[str, Any]:
        """What the training ended with, or says so far."""
        found = self.results or self.status.get("training")
        return found if isinstance(found, Mapping) else {}

    @property
    def pictures(self) -> tuple[Path, ...]:
        """What it drew, by name."""
        return tuple(sorted((self.path / "pictures").glob("*.png")))

    def points(self, key: str, *, kind: str = "validation") -> Curve:
        """A number of the log against the steps."""
        rows = {
            line["step"]: line[key]
            for line in self.log
            if line.get("kind") == kind and _is_number(line.get(key))
        }
        steps = sorted(rows)
        return steps, [rows[step] for step in steps]

    def last(self, key: str) -> float | None:
        """The last value of a number of the validation."""
        values = self.points(key)[1]
        return float(values[-1]) if values else None

    def numbers(self) -> tuple[str, ...]:
        """Names of all numbers that the log has of validations, in their order."""
        names: dict[str, None] = {}
        for line in self.log:
            if line.get("kind") == "validation":
                names |= {k: None for k, v in line.items() if _is_number(v) and k not in _FIXED}
        return tuple(names)

    @cached_property
    def data_digest(self) -> str:
        """Twelve digits that are the same exactly where the source files of all cases are."""
        trained = self.kept.get("trained_on", {})
        text = json.dumps(sorted(map(str, trained.values())))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def final_cases(self) -> dict[str, float]:
        """Dice of every judged case at the last step where all were judged."""
        steps = self.curve.get("dice") or {}
        return dict(steps[max(steps, key=int)]) if steps else {}


_FIXED = frozenset({"step", "time"})


def read_run(path: Path, name: str) -> RunMade:
    """Reads a run folder.

    Raises:
        UserError: something in it is damaged.
    """
    kept = load_preparation(path)
    verb = str(kept["verb"])
    kind = FinetuneConfig if verb == "finetune" else PretrainConfig
    file = path / "config.yaml"
    try:
        config: Any = read_config(file, kind)
    except ConfigError as error:
        raise UserError(
            f"the config of run `{path.name}` cannot be read by this version: {error.what}",
            where=str(file),
            remedy=error.remedy or "make the report with the version that made the run",
            code="other-config",
        ) from error
    default: Any = kind()
    keys = tuple(settings(kind))
    log, broken = _read_log(path / "log.jsonl")
    return RunMade(
        name=name,
        path=path,
        verb=verb,
        settings={key: value_of(config, key) for key in keys},
        changed=tuple(differences(config, default)),
        defaults={key: value_of(default, key) for key in keys},
        status=read_status(path),
        kept=kept,
        versions={str(k): str(v) for k, v in _read(path / "versions.json").items()},
        log=log,
        broken_lines=broken,
        curve=read_curve(path),
        results=_read(path / "results.json"),
    )


def _read(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def _read_log(path: Path) -> tuple[tuple[Mapping[str, Any], ...], int]:
    """The lines of a log and how many are none: a killed process may leave half a line."""
    if not path.is_file():
        return (), 0
    lines, broken = [], 0
    with open(path, encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = parsed(text)
            except DocumentError:
                line = None
            if isinstance(line, dict) and type(line.get("step")) is int:
                lines.append(line)
            else:
                broken += 1
    return tuple(lines), broken


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


# Groups


@dataclass(frozen=True)
class Group:
    """Runs that were begun alike but for their seed.

    Attributes:
        name: how the page calls them.
        runs: one a seed.
    """

    name: str
    runs: tuple[RunMade, ...]

    @property
    def verb(self) -> str:
        """What they did."""
        return self.runs[0].verb

    @property
    def first(self) -> RunMade:
        """One of them, for what they have in common."""
        return self.runs[0]

    def curves(self, key: str, *, kind: str = "validation") -> list[Curve]:
        """A number of the log against the steps, one curve a seed that has it."""
        curves = (run.points(key, kind=kind) for run in self.runs)
        return [curve for curve in curves if len(curve[0])]

    def lasts(self, key: str) -> list[float]:
        """The last value of a number, one a seed that has it."""
        return [value for run in self.runs if (value := run.last(key)) is not None]


def grouped(runs: Sequence[RunMade]) -> tuple[Group, ...]:
    """The runs in groups, in the order of their first."""
    by_path = {run.path.resolve(): run for run in runs}
    groups: dict[str, list[RunMade]] = {}
    for run in runs:
        groups.setdefault(_likeness(run, by_path, depth=4), []).append(run)
    names = [_group_name(members) for members in groups.values()]
    return tuple(
        Group(name if names.count(name) == 1 else f"{name} ({number + 1})", tuple(members))
        for number, (name, members) in enumerate(zip(names, groups.values(), strict=True))
    )


def _likeness(run: RunMade, by_path: Mapping[Path, RunMade], *, depth: int) -> str:
    """What is equal in runs of one group; where they started is likened in the same way."""
    alike = {k: v for k, v in run.settings.items() if k not in SEEDED and k not in HOW}
    start = run.settings.get("init")
    if start not in (None, "none"):
        before = _run_at(Path(str(start)), by_path)
        if before is not None and depth > 0:
            alike["init"] = _likeness(before, by_path, depth=depth - 1)
    # Not the list of cases: which of them have labels may be drawn by the seed.
    return json.dumps([run.verb, run.kept.get("fingerprint"), alike], default=str, sort_keys=True)


def _run_at(path: Path, by_path: Mapping[Path, RunMade]) -> RunMade | None:
    """The run that another started from, where it is still there and can be read."""
    known = by_path.get(path.resolve())
    if known is not None:
        return known
    try:
        return read_run(path, path.name)
    except (UserError, OSError):
        return None


def _group_name(runs: Sequence[RunMade]) -> str:
    """What the names of the runs begin with, without the number of the seed."""
    if len(runs) == 1:
        return runs[0].name
    letters = zip(*(run.name for run in runs), strict=False)
    alike = itertools.takewhile(lambda column: len(set(column)) == 1, letters)
    common = "".join(column[0] for column in alike).rstrip("-_. /")
    for ending in ("seed", "replicate", "s"):
        if common.endswith((f"-{ending}", f"_{ending}")):
            common = common[: -len(ending) - 1]
    return common or f"{runs[0].name} and {len(runs) - 1} more"
