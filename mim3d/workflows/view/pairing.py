"""Which layers belong to one case: by the names of files, and by folders where names are alike.

Volumes of two persons must never lie over each other, and many cohorts call all files alike
(`s01/ct.nii.gz`, `s02/ct.nii.gz`) or number each site from 1. So a file is known by the key of its
name and by its home, the folders that say more than what lies in them. What shares a key is one
case as long as one home alone has an image of it.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mim3d.data.cohort.cases import modality_of, stem
from mim3d.data.cohort.folders import IMAGES, LABELS, WORDS

Home = tuple[str, ...]

BIDS = re.compile(r"((?:sub|ses|run|acq)-[A-Za-z0-9]+)")
PREDICTED = re.compile(r".*pred.*|derivatives|rawdata|stores?|results?|outputs?", re.IGNORECASE)
"""Folders that say how files came about, not whose they are."""
PLAIN = frozenset({
    "anat", "func", "dwi", "perf", "image", "images", "img", "label", "labels", "labelmap", "seg",
    "segmentation", "segmentations", "dseg", "mask", "masks", "labelmaps", "imgs",
    "volumes", "gt", "0000", "scan", "scans", "volume", "vol", "raw", "orig",
    "original", "data", "prediction", "pred", "manual", "auto", "final",
})  # fmt: skip
"""Words of names that say what a file is, not whose."""


@dataclass(frozen=True)
class Sighting:
    """A layer and where it was met.

    Attributes:
        name: of its case, as the person knows it.
        home: the folders that tell it from another of this name.
        layer: its number.
        part: the list it belongs to; empty where nothing says it.
        role: what it is.
        is_stored: whether it lies in a store, which may be of files that are there as well.
    """

    name: str
    home: Home
    layer: int
    part: str
    role: str
    is_stored: bool = False


def pairing_key(name: str, *, keeps_case: bool = False) -> str:
    """What the names of an image, its label map and its prediction have in common.

    BIDS names by their subject, session, run and acquisition; others without `_0000`, `_seg`,
    `_label` and the like, in small letters.
    """
    base = stem(Path(name))
    key = "_".join(BIDS.findall(base)) if base.startswith("sub-") else WORDS.sub("", base) or base
    return key if keeps_case else key.lower()


def is_plain(name: str) -> bool:
    """Whether a name says what something is and not whose: `ct`, `T1w_seg`, `image`."""
    words = [word for word in re.split(r"[-_. ]+", name.lower()) if word]
    return all(word in PLAIN or modality_of(word) is not None for word in words)


def owner_of(name: str, home: Home) -> tuple[str, Home]:
    """The case of a file and its home: of `patient_7/ct.nii.gz` the folder names the case."""
    return (home[-1], home[:-1]) if home and is_plain(name) else (name, home)


def common_folder(given: Sequence[Path]) -> Path:
    """The folder from which homes are told: above all that was given."""
    return Path(os.path.commonpath([p.parent if p.is_dir() else p.parent.parent for p in given]))


def home_of(folder: Path, above: Path, *, is_apart: bool = False) -> Home:
    """The folders between `above` and a file that say whose it is.

    Args:
        folder: that the file lies in.
        above: is left out, with all above it.
        is_apart: the folder holds label maps or predictions alone: its name tells them apart, as
            `rater_2` does, and is no part of their home.
    """
    parts = list(folder.relative_to(above).parts) if folder.is_relative_to(above) else []
    for place, part in enumerate(parts):
        if part.startswith("sub-"):  # BIDS: the name of the file says the rest
            parts, is_apart = parts[:place], False
            break
    if is_apart and parts and _said_by(parts[-1]) == parts[-1]:
        parts.pop()
    return tuple(said for said in map(_said_by, parts) if said)


def _said_by(folder: str) -> str:
    """What a folder's name says of whose files it holds: of `imagesTr` `tr`, of `ct` nothing."""
    if is_plain(folder) or PREDICTED.fullmatch(folder):
        return ""
    of_kind = IMAGES.fullmatch(folder) or LABELS.fullmatch(folder)
    return of_kind[1].lower() if of_kind else folder


def together(sightings: Iterable[Sighting]) -> list[list[Sighting]]:
    """The sightings of each case, in the order in which the first of each was met."""
    by_key: dict[str, dict[Home, list[Sighting]]] = {}
    every = list(sightings)
    spelt = _spelt_twice(every)
    for one in every:
        key = pairing_key(one.name)
        key = pairing_key(one.name, keeps_case=True) if key in spelt else key
        by_key.setdefault(key, {}).setdefault(one.home, []).append(one)
    cases = [case for homes in by_key.values() for case in _parted(homes)]
    return sorted(cases, key=lambda case: min(one.layer for one in case))


def _spelt_twice(sightings: Sequence[Sighting]) -> set[str]:
    """Keys of which one folder holds two images, `P1` and `p1`."""
    found: dict[tuple[str, Home], set[str]] = {}
    for one in sightings:
        if one.role == "image":
            key = pairing_key(one.name), one.home
            found.setdefault(key, set()).add(pairing_key(one.name, keeps_case=True))
    return {key for (key, _), spellings in found.items() if len(spellings) > 1}


def _parted(homes: Mapping[Home, list[Sighting]]) -> list[list[Sighting]]:
    """One case, or one for each home that has an image (without any, a label map) of its own."""
    role = next(role for role in ("image", "label", "prediction")
                if any(one.role == role for group in homes.values() for one in group))  # fmt: skip
    owners = [
        [home for home, group in homes.items()
         if any(one.role == role and one.is_stored == is_stored for one in group)]
        for is_stored in (False, True)
    ]  # fmt: skip
    if max(map(len, owners)) < 2:
        return [[one for group in homes.values() for one in group]]
    cases = {home: list(homes[home]) for home in dict.fromkeys([*owners[0], *owners[1]])}
    known = tuple(cases)
    for home, group in homes.items():
        if home not in known:
            cases.setdefault(nearest(home, known) or home, []).extend(group)
    return list(cases.values())


def nearest(home: Home, others: Sequence[Home]) -> Home | None:
    """The one of other homes that shares the most folders with this one; None where two do."""
    shared = [shared_folders(home, other) for other in others]
    most = max(shared, default=0)
    return others[shared.index(most)] if shared.count(most) == 1 else None


def shared_folders(home: Home, other: Home) -> int:
    """How many folders two homes have in common, from the upper ones on."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(home, other, strict=False))
    return len(list(pairs))
