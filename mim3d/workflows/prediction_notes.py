"""What several commands that predict into one folder leave for each other, case by case.

Each predicts its share, and leaves a note of every case beside its claim. Whoever is done takes all
notes that lie there into the one record of the folder, its own and those of killed commands.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mim3d.data.store.layout import file_name
from mim3d.foundation.atomic import write_json
from mim3d.foundation.claims import Claims
from mim3d.foundation.documents import read_object
from mim3d.foundation.errors import UserError
from mim3d.foundation.reporting import Reporter
from mim3d.workflows.prediction_jobs import RECORD, Asked, Job

NOTE, TAKEN = "note-", "taken-"
"""Begin the names of notes, and of those that are just being taken into the record."""

T = TypeVar("T")


@dataclass(frozen=True)
class Note:
    """What became of a case.

    Args:
        name: of the prediction, as the record has it.
        key: what it was made of; empty while it is written; None where the case was left out.
        rows: the answers, where the folder holds answers.
    """

    name: str
    key: dict[str, Any] | None
    rows: tuple[dict[str, Any], ...] = ()


def in_turn(asked: Asked) -> Generator[Job, None, None]:
    """The cases of a command; of a shard each under its claim, those of other commands last.

    Raises:
        DiskError: a claim cannot be written.
    """
    if asked.shard is None:
        yield from asked.jobs
        return
    say = asked.reporter.say
    yield from Claims(asked.folder).in_turn(
        asked.jobs,
        lambda job: file_name(job.case.case_id),
        lambda job: say(f"{job.case.case_id} waits for another command, which is at it"),
    )


def leave_note(asked: Asked, job: Job, note: Note) -> None:
    """Writes what became of a case, while it is claimed.

    Raises:
        DiskError: it cannot be written.
    """
    path = Claims(asked.folder).path / f"{NOTE}{file_name(job.case.case_id)}.json"
    write_json(path, {"name": note.name, "key": note.key, "rows": list(note.rows)})


def find_note(asked: Asked, job: Job) -> Note | None:
    """What a command has left about a case, and nobody has taken into the record yet."""
    folder, name = Claims(asked.folder).path, f"{file_name(job.case.case_id)}.json"
    return _read(folder / f"{NOTE}{name}") or _read(folder / f"{TAKEN}{name}")


def take_notes(folder: Path, reporter: Reporter, merge: Callable[[Sequence[Note]], None]) -> None:
    """Hands all notes of a folder to `merge`, one command at a time, and removes them.

    Args:
        folder: of the predictions.
        reporter: where waiting for another command is told.
        merge: takes them into the record; called only if there are some.

    Raises:
        DiskError: the folder cannot be written.
    """
    claims = Claims(folder)
    if not claims.path.is_dir():
        return
    with claims.merging(reporter.say):
        for path in claims.path.glob(f"{NOTE}*.json"):
            # What is written about the same case from now on is a new note.
            os.replace(path, path.with_name(TAKEN + path.name.removeprefix(NOTE)))
        taken = sorted(claims.path.glob(f"{TAKEN}*.json"))
        if notes := [note for note in map(_read, taken) if note is not None]:
            merge(notes)
        for path in taken:
            path.unlink(missing_ok=True)
        claims.clear()


def stamp(folder: Path) -> tuple[int, ...]:
    """Changes whenever the record is written; empty where there is none."""
    try:
        found = os.stat(folder / RECORD)
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


def in_order(record: Mapping[str, T], names: Sequence[str]) -> dict[str, T]:
    """A record in the order of `names`, the rest behind them as it was."""
    places = {name: place for place, name in enumerate(names)}
    order = sorted(record, key=lambda name: places.get(name, len(places)))
    return {name: record[name] for name in order}


def _read(path: Path) -> Note | None:
    """A note; None where it is gone or damaged: the case is then predicted again."""
    try:
        content = read_object(path)
        return Note(str(content["name"]), content["key"], tuple(content["rows"]))
    except (UserError, LookupError, TypeError):
        return None
