"""What a cohort is, and the rules that every kind of source keeps."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mim3d.data.body import Modality
from mim3d.data.classes import ClassTable
from mim3d.foundation.errors import UserError

Part = Literal["training", "validation", "test"]

ENDINGS = (".seg.nrrd", ".nii.gz", ".nii", ".hdr.gz", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Endings of files taken as volumes. A pair's `.img` follows from its `.hdr`."""

SUBJECT = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)")
"""The subject entity of BIDS."""


@dataclass(frozen=True)
class Case:
    """One entry of a cohort.

    Args:
        case_id: its name.
        subject_id: whose it is; the case id where the source does not say.
        images: a file or DICOM folder each for one channel, or one that holds all.
        label: the label map, or None.
        part: the list it belongs to.
        targets: numbers to predict, by name.
    """

    case_id: str
    subject_id: str
    images: tuple[Path, ...]
    label: Path | None = None
    part: Part = "training"
    targets: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Cohort:
    """All cases of a source, and what the source says about them.

    Args:
        name: what the source calls itself; empty where it does not. A folder's name is none: it
            may be a person's.
        cases: in the source's order.
        kind: how the source was read, for the person.
        channel_names: one a channel, or None where the source does not say.
        classes: the class table, or None where the source does not say.
        has_validation: whether the source itself, or a split, says who validates.
        split: name of the split that replaced the source's lists, or None.
        remarks: what the person should know about how the source was read.
        found: what was found and how it was understood, a line each.
        source: what the person typed; for messages, never stored.
        intensity_range: what becomes 0 and 1 in all volumes, where the source has a scale of its
            own; None measures each volume.
        is_framed: whether what lies around the body is part of the data.
    """

    name: str
    cases: tuple[Case, ...]
    kind: str
    channel_names: tuple[str, ...] | None = None
    classes: ClassTable | None = None
    has_validation: bool = False
    remarks: tuple[str, ...] = ()
    source: str = ""
    split: str | None = None
    intensity_range: tuple[float, float] | None = None
    is_framed: bool = False
    found: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.cases:
            raise UserError(f"{self.kind} holds no case", where=self.source, code="empty-cohort")
        counts = Counter(case.case_id for case in self.cases)
        twice = [case_id for case_id, count in counts.items() if count > 1]
        if twice:
            raise UserError(
                f"{len(twice)} case id(s) occur more than once, first `{twice[0]}`",
                where=self.source,
                remedy="give each case a name of its own, in a CSV with the column `case` at best",
                code="duplicate-case",
            )

    @property
    def modalities(self) -> tuple[Modality | None, ...] | None:
        """What the channels' names say, one a channel."""
        return None if self.channel_names is None else tuple(map(modality_of, self.channel_names))

    @property
    def modality(self) -> Modality | None:
        """The one that all channels have by their names, or None."""
        found = set(self.modalities or (None,))
        return found.pop() if len(found) == 1 else None


def modality_of(word: str) -> Modality | None:
    """`CT`, `MRI`, `FLAIR`, `T1w`, ... as a modality; None for words that say nothing."""
    text = word.strip().lower()
    if re.fullmatch(r"(x-?ray )?(ct|ncct|cta|cect|cbct)|.*\bct\b.*", text):
        return "ct"
    if re.search(r"\b(mri?|t1|t2|t1\w*|t2\w*|pd|pdw|flair|adc|dwi|dce|swi|bold|fa)\b", text):
        return "mr"
    if re.search(r"\b(pet|pt|suv|spect|nm|us|ultrasound|oct|microscopy)\b", text):
        return "other"
    return None


def stem(path: Path) -> str:
    """A file's name without the ending of a volume; a folder's name."""
    name = path.name
    for ending in ENDINGS:
        if name.lower().endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)]
    return name


def is_volume_name(name: str) -> bool:
    """Whether a file is named as a volume and not hidden."""
    return not name.startswith(".") and name.lower().endswith(ENDINGS)


def must_lie_within(path: Path, source: Path) -> Path:
    """The path itself, if it and what it links to lie within the source.

    Raises:
        UserError: it leads out of the source.
    """
    try:
        lies_within = path.resolve().is_relative_to(source.resolve())
    except (OSError, RuntimeError, ValueError):  # a circle of links, a NUL, half a letter
        raise UserError(
            f"`{path.name[:80]!r}` is no path",
            where=str(source),
            remedy="correct the source's list of files",
            code="outside",
        ) from None
    if not lies_within:
        raise UserError(
            f"`{path.name}` leads out of the source",
            where=str(source),
            remedy="copy the file into the source, or list it in a CSV",
            code="outside",
        )
    return path


def unique_ids(paths: Sequence[Path], source: Path) -> list[str]:
    """A name for each path: its stem; where stems are equal, with eight digits of a hash.

    The hash is of the path below the source. Folders may be called after persons, so their names
    do not become part of an id.
    """
    counts = Counter(map(stem, paths))
    ids = []
    for path in paths:
        name = stem(path)
        if counts[name] > 1:
            below = path.relative_to(source).as_posix().encode("utf-8", "surrogatepass")
            name = f"{name}-{hashlib.sha256(below).hexdigest()[:8]}"
        ids.append(name)
    return ids


def remark_on_ids(paths: Sequence[Path]) -> tuple[str, ...]:
    """Says so where `unique_ids` had to add hashes."""
    alike = [name for name, count in Counter(map(stem, paths)).items() if count > 1]
    if not alike:
        return ()
    return (f"several files are called {listed(alike)}: their case ids got a hash of their folder; "
            "a CSV with the column `case` names them as you like",)  # fmt: skip


def subject_of(path: Path, source: Path) -> str | None:
    """The subject that a BIDS name gives, such as `sub-01`."""
    text = path.relative_to(source).as_posix() if path != source else path.name
    found = SUBJECT.search(text)
    return found.group(1) if found else None


def remarks_on_subjects(cases: Iterable[Case]) -> tuple[str, ...]:
    """Says so where a subject trains and judges."""
    parts: dict[str, set[str]] = {}
    for case in cases:
        parts.setdefault(case.subject_id, set()).add(case.part)
    leaking = [subject for subject, found in parts.items() if {"training", "validation"} <= found]
    if not leaking:
        return ()
    return (f"{len(leaking)} subject(s) are in the training and the validation list of the source, "
            f"first `{leaking[0]}`: results on the validation list will flatter",)  # fmt: skip


def remark_on_folders(cases: Sequence[Case], source: Path) -> tuple[str, ...]:
    """Says so where one of several folders holds several images, each a subject of its own."""
    own = [c for c in cases if c.part == "training" and c.subject_id == c.case_id]
    counts = Counter(case.images[0].parent for case in own)
    several = [folder for folder, count in counts.items() if count > 1 and folder != source]
    if len(counts) < 2 or not several:
        return ()
    return (f"{len(several)} folder(s) hold several images, each taken as a subject of its own: "
            "where they are one patient's, a patient may train and judge; a CSV with the column "
            "`subject` decides",)  # fmt: skip


def listed(items: Iterable[Any], most: int = 3) -> str:
    """The first few of many, for a sentence."""
    every = [f"`{item}`" for item in items]
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more
