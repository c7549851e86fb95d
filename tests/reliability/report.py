"""What was recorded of the full tier, as `RELIABILITY.md`."""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mim3d
from mim3d.foundation.atomic import write_json
from mim3d.foundation.versions import versions
from tests.reliability.proof import PROOFS, Proof, Tally
from tests.reliability.rows import GROUPS, ROWS

COMMAND = "python -m tests.reliability --out runs/reliability"

HEAD = """# Reliability: what goes wrong, what mim3d promises, what was counted

Written by `{command}`, which fails where a promise fails.
{when}, {machine}, {versions}; seed {seed}. {source}

The numbered rows are failure modes of scans, stores, training and predictions that were found in
practice. *Broken* is the number of trials in which the promise did not hold. Any trial can be
repeated: `python -m tests.reliability --proof NAME --trials 4711`.

The rules behind the first rows (what decides a geometry, which values are labels, when a file is
refused) stand in [docs/reference.md](docs/reference.md); who is trusted with what in
[SECURITY.md](SECURITY.md).

{standing}
"""


@dataclass(frozen=True)
class Stretch:
    """The record of one stretch of a proof.

    Args:
        start: number of its first trial.
        stop: number behind its last one.
        seed: of the run.
        seconds: how long it took.
        date: the day.
        source: digest of the code that was tried.
        counts, broken, notes: as in `Tally`.
        unavailable: why it could not be run here; None where it was.
    """

    start: int
    stop: int
    seed: int
    seconds: float
    date: str
    source: str
    counts: dict[str, int]
    broken: list[str]
    notes: list[str]
    unavailable: str | None = None


def record_path(out: Path, proof: Proof, trials: range) -> Path:
    """Where a stretch is recorded."""
    return out / proof.name / f"{trials.start:06}-{trials.stop:06}.json"


def write_record(path: Path, stretch: Stretch) -> None:
    """Writes a record whole."""
    write_json(path, asdict(stretch))


def read_record(path: Path) -> Stretch | None:
    """A stretch that was recorded, or None."""
    return Stretch(**json.loads(path.read_text())) if path.is_file() else None


def source_digest() -> str:
    """A short digest of the package's code: tells whether two records tried the same."""
    total = hashlib.sha256()
    root = Path(mim3d.__file__).parent
    for path in sorted(root.rglob("*.py")):
        total.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:12]


def recorded(out: Path, proof: Proof, seed: int) -> list[Stretch]:
    """All stretches of a proof's full tier that are there, of one seed."""
    found = (read_record(record_path(out, proof, trials)) for trials in proof.stretches())
    return [stretch for stretch in found if stretch is not None and stretch.seed == seed]


def report(out: Path, seed: int) -> tuple[str, bool]:
    """The text of `RELIABILITY.md`, and whether this code kept every promise in all trials."""
    records = {name: recorded(out, proof, seed) for name, proof in PROOFS.items()}
    every = [stretch for stretches in records.values() for stretch in stretches]
    standing, holds = _standing(records)
    head = HEAD.format(
        command=COMMAND,
        when=_when(every),
        machine=f"{platform.system()} {platform.machine()}",
        versions=_versions(),
        seed=seed,
        source=_source(every),
        standing=standing,
    )
    parts = [head]
    for title, numbers in GROUPS.items():
        parts.append(f"## {title}\n\n{_promises(numbers)}\n\n{_counts(numbers, records)}\n")
    return "\n".join(parts), holds and {stretch.source for stretch in every} == {source_digest()}


def _promises(numbers: range) -> str:
    lines = ["| row | what goes wrong | promise |", "|---:|---|---|"]
    lines += [f"| {n} | {ROWS[n].failure} | {ROWS[n].promise} |" for n in numbers]
    return "\n".join(lines)


def _counts(numbers: range, records: Mapping[str, list[Stretch]]) -> str:
    lines = [
        "| rows | proof | trials | outcomes | broken |",
        "|---|---|---:|---|---:|",
    ]
    here = [proof for proof in PROOFS.values() if proof.rows[0] in numbers]
    for proof in sorted(here, key=lambda proof: proof.rows):
        lines.append(_line(proof, records[proof.name]))
    return "\n".join(lines)


def _line(proof: Proof, stretches: list[Stretch]) -> str:
    tally = Tally()
    for stretch in stretches:
        tally += Tally(Counter(stretch.counts), list(stretch.broken), list(stretch.notes))
    outcomes = ", ".join(f"{outcome} {count:,}" for outcome, count in tally.counts.most_common())
    reasons = {stretch.unavailable for stretch in stretches if stretch.unavailable}
    told = "; ".join([*([outcomes] if outcomes else []), *tally.notes, *sorted(reasons)])
    count = sum(tally.counts.values())
    trials = f"{count:,}" if count >= proof.full else f"{count:,} of {proof.full:,}"
    rows = ", ".join(map(str, proof.rows))
    broken = f"**{len(tally.broken)}**" if tally.broken else "0" if count else "not run"
    summary = promise_of(proof)
    return f"| {rows} | `{proof.name}`: {summary} | {trials} {proof.trials} | {told} | {broken} |"


def promise_of(proof: Proof) -> str:
    """The first paragraph of a proof's docstring, on one line and without its full stop."""
    text = " ".join((proof.run.__doc__ or "").partition("\n\n")[0].split())
    return text[:1].lower() + text[1:].rstrip(".")


def _standing(records: Mapping[str, list[Stretch]]) -> tuple[str, bool]:
    trials = broken = 0
    missing = []
    for name, proof in PROOFS.items():
        done = sum(sum(stretch.counts.values()) for stretch in records[name])
        trials += done
        broken += sum(len(stretch.broken) for stretch in records[name])
        if done < proof.full:
            missing.append(f"`{name}`")
    text = f"**{trials:,} trials of {len(PROOFS)} proofs; {broken} broke a promise.**"
    if missing:
        text += f" Not run, or not in full: {', '.join(missing)}."
    covered = {row for proof in PROOFS.values() for row in proof.rows}
    if unproved := sorted(set(ROWS) - covered):
        text += f" Rows without a proof: {', '.join(map(str, unproved))}."
    return text, not broken and not missing


def _when(stretches: list[Stretch]) -> str:
    dates = sorted({stretch.date for stretch in stretches})
    if not dates:
        return "Nothing is recorded yet"
    return dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"


def _source(stretches: list[Stretch]) -> str:
    now = source_digest()
    same = sum(stretch.source == now for stretch in stretches)
    if same == len(stretches):
        return f"Code `{now}`."
    return f"Code `{now}` for {same} of {len(stretches)} stretches, an earlier state for the rest."


def _versions() -> str:
    found: dict[str, Any] = versions()
    wanted = ("mim3d", "python", "torch", "numpy", "h5py", "monai", "nibabel", "SimpleITK")
    known = {name.lower(): str(value) for name, value in found.items()}
    listed = (f"{name} {known[name.lower()]}" for name in wanted if name.lower() in known)
    return ", ".join(listed)
