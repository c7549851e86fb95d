"""What is true of whole cases: targets of a store, of a table, or of an archive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mim3d.data.cohort import read_cohort
from mim3d.data.cohort.table import read_target_table
from mim3d.data.store import open_store
from mim3d.foundation.errors import UserError

KINDS = (".csv", ".tsv", ".npz")


@dataclass(frozen=True)
class Known:
    """Targets that are known.

    Attributes:
        targets: numbers by case, then by target.
        subjects: whose each case is.
        parts: list that each case belongs to; empty where the source has no lists.
    """

    targets: Mapping[str, Mapping[str, float]]
    subjects: Mapping[str, str]
    parts: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """What the targets are called; not every case need have each."""
        return tuple(dict.fromkeys(name for row in self.targets.values() for name in row))


def read_known(path: Path | str) -> Known:
    """The targets of a store, of a CSV with `target_<name>`, or of an archive `.npz`.

    Raises:
        UserError: it is none of them, or cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"`{path}` does not exist", code="missing-file")
    if path.is_dir():
        entries = open_store(path).entries.values()
        return Known(
            {entry.case_id: entry.targets for entry in entries},
            {entry.case_id: entry.subject_id for entry in entries},
            {entry.case_id: entry.part for entry in entries},
        )
    if path.suffix.lower() not in KINDS:
        raise UserError(
            f"`{path.name}` holds no targets",
            remedy="a store, a CSV with `target_<name>`, or a NumPy archive `.npz` does",
            code="no-targets",
        )
    is_archive = path.suffix.lower() == ".npz"
    cases = read_cohort(path).cases if is_archive else read_target_table(path)
    return Known(
        {case.case_id: case.targets for case in cases},
        {case.case_id: case.subject_id for case in cases},
        {case.case_id: case.part for case in cases},
    )
