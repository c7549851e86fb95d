"""Plain folders: images alone, images with labels, BIDS by a pattern, trees of DICOM series."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from mim3d.data.cohort.bids_labels import pair_by_entities
from mim3d.data.cohort.cases import (
    Case,
    Cohort,
    Part,
    is_volume_name,
    listed,
    must_lie_within,
    remark_on_folders,
    remark_on_ids,
    stem,
    subject_of,
    unique_ids,
)
from mim3d.data.cohort.dataset_json import CHANNEL
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
    maps = [] if labels is None else _matching(source, labels)
    # `*.nii.gz` finds `*_seg.nii.gz`, too.
    found = [path for path in _matching(source, pattern) if path not in set(maps)]
    pairs = pair_by_entities(found, maps) if maps else None
    pairs = _pairs(found, maps) if pairs is None else pairs
    if not found:
        raise UserError(
            f"no file matches `{pattern}`",
            where=str(source),
            remedy="patterns are relative to the source: `sub-*/**/*_T1w.nii.gz`",
            code="empty-cohort",
        )
    cases = tuple(_cases(_alone(found), source, pairs))
    remarks = (*remark_on_ids(found), *remark_on_folders(cases, source))
    return Cohort("", cases, "files by a pattern", remarks=remarks, source=str(source))


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

    With folders `images*` and `labels*` in it, those are paired; there too a file called like
    another with `_seg`, `_label` or `_mask` added is its label map. Where all files are called as
    nnU-Net calls them (`CASE_0000`, `CASE_0001`, ...), those of one case are its channels.

    Raises:
        UserError: no volume, or label maps without image.
    """
    folders = _image_folders(source)
    if folders:
        paired = tuple(case for one in folders for case in _paired(*one))
        images = [one for one, _, _ in folders]
        own = sum(any(c.label.is_relative_to(i) for i in images) for c in paired if c.label)
        return Cohort(
            "",
            paired,
            "folders of images and labels",
            has_validation=any(case.part == "validation" for case in paired),
            remarks=remark_on_folders(paired, source),
            source=str(source),
            found=(f"{own} label map(s) lie among the images, told by their names",) * bool(own),
        )
    files, series = _walk(source)
    if not files and not series:
        raise UserError(
            "no volume lies in this folder",
            where=str(source),
            remedy="volumes end in .nii, .nii.gz, .nrrd, .nhdr, .mha, .mhd or .hdr, or are DICOM",
            code="empty-cohort",
        )
    images, labels = _apart(files)
    pairs = _pairs(images, labels)
    every = sorted([*images, *series])
    channels = {} if labels or series else _channels(images)
    cases = tuple(_cases(channels or _alone(every), source, pairs))
    count = len(cases[0].images)
    return Cohort(
        "",
        cases,
        "a tree of DICOM series" if series and not files else "a plain folder",
        remarks=(*remark_on_ids([*(channels or every)]), *remark_on_folders(cases, source)),
        source=str(source),
        found=(f"{count} channel(s) a case, by `_0000` at the end of the names",) * bool(channels),
    )


def read_images_alone(source: Path) -> Cohort:
    """Every volume of a folder that is not named as a label map, for a look at what there is."""
    files, series = _walk(source)
    images = sorted([*_apart(files)[0], *series])
    kind = "a folder whose label maps are left aside"
    return Cohort("", tuple(_cases(_alone(images), source)), kind, source=str(source))


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
    # An image may be called `mask_01` where its label map bears the name too.
    known = set(map(stem, label_files))
    beside = [file for file in _apart(files)[1] if stem(file) not in known]
    files = [file for file in files if file not in set(beside)]
    label_files += beside
    every = sorted([*files, *series])
    return list(_cases(_alone(every), images, _pairs(every, label_files), part))


def _cases(
    images: Mapping[Path, tuple[Path, ...]],
    source: Path,
    labels: dict[Path, Path] | None = None,
    part: Part = "training",
) -> Iterable[Case]:
    """A case for each path that names one, with its files, a channel each."""
    for path, case_id in zip(images, unique_ids([*images], source), strict=True):
        for file in images[path]:
            must_lie_within(file, source)
        subject = subject_of(path, source) or case_id
        yield Case(case_id, subject, images[path], (labels or {}).get(path), part)


def _alone(images: list[Path]) -> dict[Path, tuple[Path, ...]]:
    return {path: (path,) for path in images}


def _channels(images: list[Path]) -> dict[Path, tuple[Path, ...]]:
    """Files by case where all of a flat folder are called `CASE_0000`, ...; else nothing.

    Several numbers of a single name are taken for cases that somebody counted.
    """
    files: dict[Path, dict[int, Path]] = defaultdict(dict)
    for image in images:
        if matched := CHANNEL.match(stem(image)):
            files[image.with_name(matched[1])][int(matched[2])] = image
    is_complete = sum(map(len, files.values())) == len(images)
    is_flat = len({path.parent for path in files}) == 1
    count = len(next(iter(files.values()), ()))
    is_alike = all(sorted(numbers) == list(range(count)) for numbers in files.values())
    if not (is_complete and is_flat and is_alike) or len(files) == 1 < count:
        return {}
    return {path: tuple(numbers[n] for n in range(count)) for path, numbers in files.items()}


def _apart(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """Images and label maps, by their names."""
    labels = [file for file in files if _is_label(file)]
    return [file for file in files if file not in set(labels)], labels


def _is_label(file: Path) -> bool:
    return file.name.lower().endswith(SEGMENTATION) or IS_LABEL.search(stem(file)) is not None


def _pairs(images: list[Path], labels: list[Path]) -> dict[Path, Path]:
    """Label maps by image: equal stems, else stems equal without `img`, `seg` and the like.

    Of several images the one in the same folder counts, or in the same below `images` and `labels`.

    Raises:
        UserError: a label map without image, one that fits several, or a second one of an image.
    """
    exact: dict[str, list[Path]] = defaultdict(list)
    loose: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        exact[stem(image)].append(image)
        loose[_key(image)].append(image)
    pairs: dict[Path, Path] = {}
    lost = []
    for label in labels:
        candidates = exact.get(stem(label)) or loose.get(_key(label), [])
        beside = [image for image in candidates if _place(image) == _place(label)] or candidates
        if len(beside) != 1 or beside[0] in pairs:
            lost.append(label.name)
        else:
            pairs[beside[0]] = label
    if lost:
        raise UserError(
            f"{len(lost)} label map(s) have no image, one that has another label map, or not one "
            f"alone: {listed(lost)}",
            remedy="name label maps as their images, or list the cases in a CSV with the columns "
            "`image` and `label`",
            code="unpaired-label",
        )
    return pairs


def _place(path: Path) -> list[str]:
    """The folders of a file; `imagesTr` and `labelsTr` are the same."""
    matches = [(IMAGES.fullmatch(part) or LABELS.fullmatch(part), part)
               for part in path.parent.parts]  # fmt: skip
    return [matched[1].lower() if matched else part for matched, part in matches]


def _key(path: Path) -> str:
    return WORDS.sub("", stem(path)).lower()
