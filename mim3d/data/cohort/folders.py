"""Plain folders: images alone, images with labels, BIDS by a pattern, trees of DICOM series."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from mim3d.data.cohort.bids_labels import pair_by_entities
from mim3d.data.cohort.cases import (
    Case,
    Cohort,
    Part,
    is_volume_name,
    listed,
    must_lie_within,
    remark_on_ids,
    stem,
    subject_of,
    unique_ids,
)
from mim3d.data.files.segments import ENDING as SEGMENTATION
from mim3d.foundation.errors import UserError

IMAGES = re.compile(r"(?:images?|imgs?|volumes?)[-_]?(.*)", re.IGNORECASE)
LABELS = re.compile(r"(?:labels?|labelmaps?|seg|segmentations?|masks?)[-_]?(.*)", re.IGNORECASE)
PARTS: dict[str, Part] = {
    "va": "validation", "val": "validation", "validation": "validation",
    "ts": "test", "te": "test", "test": "test", "testing": "test",
}  # fmt: skip
"""What follows `images` in a folder's name; anything else is training."""

LABEL_WORD = r"(?:seg|segmentation|label|labels|labelmap|mask|dseg|gt)"
IMAGE_WORD = r"(?:img|image|volume|0000)"
IS_LABEL = re.compile(rf"^{LABEL_WORD}(?![a-z])|(?<![a-z]){LABEL_WORD}$", re.IGNORECASE)
WORDS = re.compile(
    rf"^(?:{LABEL_WORD}|{IMAGE_WORD})(?![a-z])[-_. ]?|[-_. ](?:{LABEL_WORD}|{IMAGE_WORD})$",
    re.IGNORECASE,
)
"""Words that tell an image from its label map and are left out when the two are paired."""

DICOM_TRIES = 4
"""Files of a folder that are looked into for DICOM's mark."""


def read_pattern(source: Path, pattern: str, labels: str | None = None) -> Cohort:
    """The images below `source` that a glob finds; subjects by BIDS names.

    Args:
        source: the folder.
        pattern: glob of the images.
        labels: glob of the label maps: of the same subject and session where all names are BIDS's,
            else of the same name; None takes none.

    Raises:
        UserError: an unusable pattern, or nothing found.
    """
    found = _matching(source, pattern)
    maps = [] if labels is None else _matching(source, labels)
    pairs = pair_by_entities(found, maps) if maps else None
    pairs = _pairs(found, maps) if pairs is None else pairs
    if not found:
        raise UserError(
            f"no file matches `{pattern}`",
            where=str(source),
            remedy="patterns are relative to the source: `sub-*/**/*_T1w.nii.gz`",
            code="empty-cohort",
        )
    return Cohort(
        "",
        tuple(_cases(found, source, pairs)),
        "files by a pattern",
        remarks=remark_on_ids(found),
        source=str(source),
    )


def _matching(source: Path, pattern: str) -> list[Path]:
    try:
        return sorted(
            path
            for path in source.glob(pattern)
            if not path.name.startswith(".") and (path.is_file() or is_dicom_folder(path))
        )
    except (ValueError, NotImplementedError, IndexError) as error:
        raise UserError(f"`{pattern}` is not a pattern ({error})", code="pattern") from None


def read_folder(source: Path) -> Cohort:
    """A folder of volumes, however deep, with labels where names say so.

    With folders `images*` and `labels*` in it, those are paired; otherwise a file called like
    another with `_seg`, `_label` or `_mask` added is its label map.

    Raises:
        UserError: no volume, or label maps without image.
    """
    folders = _image_folders(source)
    if folders:
        cases = [case for images, labels, part in folders for case in _paired(images, labels, part)]
        has_validation = any(case.part == "validation" for case in cases)
        kind = "folders of images and labels"
        return Cohort("", tuple(cases), kind, has_validation=has_validation, source=str(source))
    files, series = _walk(source)
    if not files and not series:
        raise UserError(
            "no volume lies in this folder",
            where=str(source),
            remedy="volumes end in .nii, .nii.gz, .nrrd, .nhdr, .mha, .mhd or .hdr, or are DICOM",
            code="empty-cohort",
        )
    labels = [file for file in files if _is_label(file)]
    images = [file for file in files if file not in set(labels)]
    pairs = _pairs(images, labels)
    kind = "a tree of DICOM series" if series and not files else "a plain folder"
    every = sorted([*images, *series])
    return Cohort(
        "",
        tuple(_cases(every, source, pairs)),
        kind,
        remarks=remark_on_ids(every),
        source=str(source),
    )


def read_images_alone(source: Path) -> Cohort:
    """Every volume of a folder that is not named as a label map, for a look at what there is."""
    files, series = _walk(source)
    images = sorted([*(file for file in files if not _is_label(file)), *series])
    kind = "a folder whose label maps are left aside"
    return Cohort("", tuple(_cases(images, source)), kind, source=str(source))


def is_dicom_folder(path: Path) -> bool:
    """Whether DICOM files lie directly in the folder."""
    if not path.is_dir():
        return False
    with os.scandir(path) as entries:
        files = sorted(e.path for e in entries
                       if not e.name.startswith(".") and not is_volume_name(e.name)
                       and e.is_file())  # fmt: skip
    return any(_has_mark(file) for file in files[:DICOM_TRIES])


def _has_mark(file: str) -> bool:
    try:
        with open(file, "rb") as opened:
            return opened.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _walk(source: Path) -> tuple[list[Path], list[Path]]:
    """All volumes and all folders of DICOM below the source, hidden ones left out."""
    files: list[Path] = []
    series: list[Path] = []
    for folder, names, found in os.walk(source):
        here = Path(folder)
        for name in [*names, *found]:
            if (here / name).is_symlink():
                must_lie_within(here / name, source)
        names[:] = sorted(name for name in names if not name.startswith((".", "__MACOSX")))
        files += [here / name for name in sorted(found) if is_volume_name(name)]
        if is_dicom_folder(here):
            series.append(here)
    return files, series


def _image_folders(source: Path) -> list[tuple[Path, Path | None, Part]]:
    """Folders of images directly below the source, with the folder of their labels."""
    below = sorted(path for path in source.iterdir() if path.is_dir())
    labels = {}
    for path in below:
        if matched := LABELS.fullmatch(path.name):
            labels[matched[1].lower()] = path
    found = []
    for path in below:
        if matched := IMAGES.fullmatch(path.name):
            suffix = matched[1].lower()
            part: Part = PARTS.get(suffix, "training")
            found.append((must_lie_within(path, source), labels.get(suffix), part))
    return found


def _paired(images: Path, labels: Path | None, part: Part) -> list[Case]:
    files, series = _walk(images)
    label_files: list[Path] = []
    if labels is not None:
        must_lie_within(labels, images.parent)
        label_files, _ = _walk(labels)
    every = sorted([*files, *series])
    return list(_cases(every, images, _pairs(every, label_files), part))


def _cases(
    images: list[Path],
    source: Path,
    labels: dict[Path, Path] | None = None,
    part: Part = "training",
) -> Iterable[Case]:
    for path, case_id in zip(images, unique_ids(images, source), strict=True):
        must_lie_within(path, source)
        subject = subject_of(path, source) or case_id
        yield Case(case_id, subject, (path,), (labels or {}).get(path), part)


def _is_label(file: Path) -> bool:
    return file.name.lower().endswith(SEGMENTATION) or IS_LABEL.search(stem(file)) is not None


def _pairs(images: list[Path], labels: list[Path]) -> dict[Path, Path]:
    """Label maps by image: equal stems, else stems equal without `img`, `seg` and the like.

    Raises:
        UserError: a label map without image, or one that fits several.
    """
    exact = {stem(image): image for image in images}
    loose: dict[str, list[Path]] = {}
    for image in images:
        loose.setdefault(_key(image), []).append(image)
    pairs: dict[Path, Path] = {}
    lost = []
    for label in labels:
        candidates = [exact[stem(label)]] if stem(label) in exact else loose.get(_key(label), [])
        beside = [image for image in candidates if image.parent == label.parent] or candidates
        if len(beside) != 1 or beside[0] in pairs:
            lost.append(label.name)
        else:
            pairs[beside[0]] = label
    if lost:
        raise UserError(
            f"{len(lost)} label map(s) have no image, or not one alone: {listed(lost)}",
            remedy="name label maps as their images, or list the cases in a CSV with the columns "
            "`image` and `label`",
            code="unpaired-label",
        )
    return pairs


def _key(path: Path) -> str:
    return WORDS.sub("", stem(path)).lower()
