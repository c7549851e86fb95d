"""What several commands that fill one store at the same time have to agree on.

Each prepares its share of the cases. What the values of some cases decide for all of them is
decided by the first; manifest, fingerprint and quarantine are made by whoever finds no case missing
when its own share is done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mim3d.data.cohort import Case
from mim3d.data.prepare.earlier import is_as_noted, stored_sidecar
from mim3d.data.prepare.job import Work, said_of
from mim3d.data.prepare.summary import why_refused
from mim3d.data.store.layout import digest, sidecar_path, sidecar_paths
from mim3d.foundation.atomic import write_json
from mim3d.foundation.claims import Claims
from mim3d.foundation.documents import read_object
from mim3d.foundation.errors import UserError
from mim3d.foundation.reporting import Reporter

BEGUN = "begun.json"
"""What the first command decided, beside the claims."""

Modalities = tuple[str | None, ...] | None


def agreed(
    cases: Sequence[Case], work: Work, reporter: Reporter, decide: Callable[[], Modalities]
) -> Modalities:
    """The modality of each channel, as the first of several commands decided it.

    Args:
        cases: of the whole cohort.
        work: of the preparation, without modalities.
        reporter: where waiting for the first one is told.
        decide: looks at the values of some cases.

    Raises:
        DiskError: it cannot be noted.
    """
    claims = Claims(work.folder)
    mine = digest([dict(work.cohort), work.config.modality, [case.case_id for case in cases]])
    with claims.merging(reporter.say):
        path = claims.path / BEGUN
        found = _noted(path)
        if found.get("source") == mine:
            modalities = found["modalities"]
            return None if modalities is None else tuple(modalities)
        decided = decide()
        write_json(path, {"source": mine, "modalities": decided})
    return decided


@contextlib.contextmanager
def merging(cases: Sequence[Case], work: Work, reporter: Reporter) -> Iterator[int]:
    """Lets one command at a time put the store together.

    Args:
        cases: of the whole cohort.
        work: of the preparation.
        reporter: where waiting is told.

    Yields:
        How many cases are still to be answered for, at least; with 0 the store may be put together,
        and what the commands shared is removed behind it.

    Raises:
        DiskError: the folder cannot be written.
    """
    claims = Claims(work.folder)
    with claims.merging(reporter.say):
        left = _unanswered(cases, work)
        yield left
        if not left:
            _end(claims)


def end(folder: Path, reporter: Reporter) -> None:
    """Removes what killed commands shared: one alone has prepared all cases.

    Raises:
        DiskError: the folder cannot be written.
    """
    claims = Claims(folder)
    if claims.path.is_dir():
        with claims.merging(reporter.say):
            _end(claims)


def _end(claims: Claims) -> None:
    (claims.path / BEGUN).unlink(missing_ok=True)
    claims.clear()


def _unanswered(cases: Sequence[Case], work: Work) -> int:
    """Cases that no command of this preparation has prepared or refused yet, at least."""
    there = {path.name for path in sidecar_paths(work.folder)}
    missing = sum(sidecar_path(work.folder, case.case_id).name not in there for case in cases)
    # Of a hundred thousand sidecars none is read while some are not even there.
    return missing or sum(not _is_answered(case, work) for case in cases)


def _is_answered(case: Case, work: Work) -> bool:
    old = stored_sidecar(work.folder, case.case_id)
    if old is None:
        return False
    said = {key: value for key, value in said_of(case, work).items() if key != "paths"}
    if any(old.get(key) != value for key, value in said.items()):
        return False  # it was prepared with other settings, or from another list
    return why_refused(old) is not None or is_as_noted(old, case, work.key)


def _noted(path: Path) -> dict[str, Any]:
    try:
        return read_object(path) if path.is_file() else {}
    except UserError:
        return {}  # decided anew
