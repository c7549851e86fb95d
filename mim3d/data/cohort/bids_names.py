"""Names of BIDS: entities and a suffix, `sub-01_ses-1_acq-fast_T1w.nii.gz`.

Source: Brain Imaging Data Structure 1.10, bids-specification.readthedocs.io.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mim3d.data.cohort.cases import stem

ENTITY = re.compile(r"([a-zA-Z0-9]+)-([a-zA-Z0-9+]+)")

Session = tuple[str, str]
"""Subject and session; the session is empty where there is none."""


@dataclass(frozen=True)
class Named:
    """A file by its BIDS name.

    Attributes:
        path: where it lies.
        entities: by key, in the order of the name.
        suffix: the last part, `T1w`.
    """

    path: Path
    entities: dict[str, str]
    suffix: str

    @property
    def session(self) -> Session:
        """Whose it is, and of which visit."""
        return self.entities["sub"], self.entities.get("ses", "")

    @property
    def rest(self) -> tuple[tuple[str, str], ...]:
        """What tells it from others of its session, runs left out."""
        return tuple(e for e in self.entities.items() if e[0] not in ("sub", "ses", "run"))

    @property
    def contrast(self) -> str:
        """Suffix and what tells it from others of this suffix."""
        return "_".join(["-".join(pair) for pair in self.rest] + [self.suffix])


def named_files(paths: Iterable[Path], *, strict: bool = False) -> list[Named]:
    """The files by their names; those that name no subject are left out.

    Raises:
        KeyError: one names no subject, and `strict` was asked for.
    """
    found = []
    for path in paths:
        *parts, suffix = stem(path).split("_")
        entities = {m[1]: m[2] for part in parts if (m := ENTITY.fullmatch(part))}
        if "sub" in entities:
            found.append(Named(path, entities, suffix))
        elif strict:
            raise KeyError(path.name)
    return found
