"""`dataset.json` in its two dialects: the Medical Segmentation Decathlon's and nnU-Net's.

MSD lists its cases and maps numbers to names. nnU-Net (raw folder, version 2) lists nothing: its
cases are the files of `imagesTr`, a suffix `_0000` a channel, and names map to numbers; or they
stand in `dataset`, each with its files.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from mim3d.data.classes import ClassTable
from mim3d.data.cohort.cases import (
    Case,
    Cohort,
    Part,
    is_volume_name,
    must_lie_within,
    remarks_on_subjects,
    stem,
)
from mim3d.data.label_tables import LabelTable, colours_by_value
from mim3d.foundation.documents import DocumentError, read_document
from mim3d.foundation.errors import UserError

LISTS: tuple[Part, ...] = ("training", "validation", "test")
CHANNEL = re.compile(r"^(.+)_(\d{4})$")
IGNORE = "ignore"
OURS = "mim3d"
"""What `mim3d export --format nnunet` writes beside what nnU-Net reads."""


def read_dataset_json(path: Path) -> Cohort:
    """The cohort of a `dataset.json`; its lists are kept.

    Raises:
        UserError: it is no such file, or names files outside of its folder.
    """
    content = _load(path)
    channels = _by_number(content.get("channel_names", content.get("modality")), path)
    channel_names = tuple(channels.values()) or None
    classes = _classes(content, path)
    name = str(content.get("name") or "")
    if any(isinstance(content.get(part), list) and content[part] for part in LISTS):
        cases = _listed_cases(content, path)
        kind = "MSD dataset.json"
    elif content.get("dataset"):
        cases = _mapped_cases(content["dataset"], path)
        kind = "nnU-Net dataset.json"
    else:
        cases = _raw_cases(path, str(content.get("file_ending", "")), len(channels))
        kind = "nnU-Net raw folder"
        if OURS in content:
            cases, channel_names = _exported(content[OURS], cases, channel_names, path)
    has_validation = any(case.part == "validation" for case in cases)
    remarks = remarks_on_subjects(cases)
    return Cohort(
        name, tuple(cases), kind, channel_names, classes, has_validation, remarks, str(path)
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        content = read_document(path)
    except DocumentError as error:
        raise _wrong(path, str(error)) from None
    except OSError as error:
        raise _wrong(path, f"it cannot be read ({error.strerror})") from None
    if not isinstance(content, dict):
        raise _wrong(path, "it holds no object")
    return content


def _listed_cases(content: dict[str, Any], path: Path) -> list[Case]:
    cases = []
    for part in LISTS:
        entries = content.get(part) or []
        if not isinstance(entries, list):
            raise _wrong(path, f"`{part}` is no list")
        for number, entry in enumerate(entries, 1):
            where = f"entry {number} of `{part}`"
            fields = {"image": entry} if isinstance(entry, str) else entry
            if not isinstance(fields, dict) or "image" not in fields:
                raise _wrong(path, f"{where} has no `image`")
            images = fields["image"] if isinstance(fields["image"], list) else [fields["image"]]
            if not images or not all(isinstance(image, str) and image for image in images):
                raise _wrong(path, f"the `image` of {where} is no path")
            files = _channel_files([_inside(image, path) for image in images])
            label = fields.get("label")
            label = _inside(label, path) if isinstance(label, str) and label else None
            # One image with channels by suffix: the case is called by what they share.
            shared = CHANNEL.match(stem(files[0])) if len(files) > 1 else None
            case_id = shared.group(1) if shared else stem(files[0])
            subject = str(fields.get("subject") or case_id)
            cases.append(Case(case_id, subject, tuple(files), label, part))
    return cases


def _mapped_cases(entries: Any, path: Path) -> list[Case]:
    """nnU-Net's `dataset`: case to `images`, a file a channel, and `label`."""
    if not isinstance(entries, dict):
        raise _wrong(path, "`dataset` is no object")
    cases = []
    for case_id, fields in entries.items():
        images = fields.get("images") if isinstance(fields, dict) else None
        label = fields.get("label") if isinstance(fields, dict) else None
        files = [*images, label] if isinstance(images, list) and images else []
        if not files or not all(isinstance(file, str) and file for file in files):
            raise _wrong(path, f"`{case_id}` of `dataset` has no `images` and `label`")
        paths = tuple(_inside(str(file), path) for file in files)
        cases.append(Case(str(case_id), str(case_id), paths[:-1], paths[-1]))
    return cases


def _channel_files(files: list[Path]) -> list[Path]:
    """nnU-Net 1 lists `case.nii.gz` where `case_0000.nii.gz` and its sisters lie."""
    if len(files) != 1 or files[0].exists():
        return files
    name = stem(files[0])
    ending = files[0].name[len(name) :]
    sisters = [files[0].with_name(f"{name}_{channel:04d}{ending}") for channel in range(100)]
    found = [sister for sister in sisters if sister.exists()]
    return found or files


def _raw_cases(path: Path, ending: str, channels: int) -> list[Case]:
    folder = path.parent
    cases = []
    folders: tuple[tuple[str, str, Part], ...] = (
        ("imagesTr", "labelsTr", "training"),
        ("imagesVal", "labelsVal", "validation"),
        ("imagesTs", "labelsTs", "test"),
    )
    for images, labels, part in folders:
        found: dict[str, dict[int, Path]] = defaultdict(dict)
        for file in sorted((folder / images).glob("*")):
            name = stem(file)
            matched = CHANNEL.match(name)
            fits = file.name == name + ending if ending else is_volume_name(file.name)
            if matched and fits:
                found[matched[1]][int(matched[2])] = must_lie_within(file, folder)
        for case_id, files in found.items():
            suffix = next(iter(files.values())).name[len(f"{case_id}_0000") :]
            # A channel that is missing keeps its place and is told apart when the case is read.
            every = tuple(
                folder / images / f"{case_id}_{channel:04d}{suffix}"
                for channel in range(max(channels, max(files) + 1))
            )
            label = folder / labels / f"{case_id}{suffix}"
            has_label = part == "training" or label.exists()
            if has_label:
                must_lie_within(label, folder)
            cases.append(Case(case_id, case_id, every, label if has_label else None, part))
    if not cases:
        raise _wrong(path, "it lists no case, and none lies beside it as `imagesTr/CASE_0000`")
    return cases


def _exported(
    said: Any, cases: list[Case], names: tuple[str, ...] | None, path: Path
) -> tuple[list[Case], tuple[str, ...] | None]:
    """The lists, subjects, ids, targets and channel names that a store had when it was exported."""
    try:
        known = dict(said["cases"])
        every = [replace(case, **_fields(known.get(case.case_id))) for case in cases]
        channels = tuple(str(name) for name in said["channel_names"])
    except (LookupError, TypeError, ValueError, AttributeError):
        raise _wrong(path, f"what stands under `{OURS}` is not as it was written") from None
    return every, channels if names is None or len(channels) == len(names) else names


def _fields(row: Any) -> dict[str, Any]:
    if row is None:
        return {}
    targets = {str(name): float(value) for name, value in row["targets"].items()}
    if row["list"] not in LISTS or not all(map(math.isfinite, targets.values())):
        raise ValueError(row["list"])
    return {
        "case_id": str(row["case"]),
        "subject_id": str(row["subject"]),
        "part": row["list"],
        "targets": targets,
    }


def _classes(content: dict[str, Any], path: Path) -> ClassTable | None:
    labels = content.get("labels")
    if not labels:
        return None
    if not isinstance(labels, dict):
        raise _wrong(path, "`labels` is no object")
    if all(str(key).lstrip("-").isdigit() for key in labels):
        pairs = [(str(name), int(key)) for key, name in labels.items()]
    else:
        pairs = _named_values(labels, content.get("regions_class_order"), path)
    ignore = [value for name, value in pairs if name.lower() == IGNORE]
    names = {value: name for name, value in pairs if name.lower() != IGNORE}
    if any(not 0 <= value <= 65535 for value in (*names, *ignore)) or len(ignore) > 1:
        raise _wrong(path, "`labels` holds values beyond 0 to 65535, or several to ignore")
    if len(names) + len(ignore) < len(pairs):
        raise _wrong(path, "`labels` gives one value two names")
    said = content.get("colours", content.get("colors"))
    colours = colours_by_value(said, names)
    return LabelTable(names, colours, ignore[0] if ignore else None).as_classes(path)


def _named_values(labels: dict[str, Any], order: Any, path: Path) -> list[tuple[str, int]]:
    """nnU-Net's names to numbers. A region is a list; `regions_class_order` says what is written.

    The number written for a region is the tissue that no region after it takes over, so it bears
    the region's name; numbers that only occur within lists get none.
    """
    pairs = []
    regions = []
    for name, value in labels.items():
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(v, int) for v in values):
            raise _wrong(path, f"label `{name}` is neither a whole number nor a list of them")
        plain = order is None or values == [0] or str(name).lower() == IGNORE
        if len(values) == 1 and plain:
            pairs.append((str(name), values[0]))
        else:
            regions.append((str(name), values))
    if not regions:
        return pairs
    if not isinstance(order, list) or len(order) != len(regions):
        raise _wrong(path, "`labels` has regions, and `regions_class_order` does not fit them")
    pairs += [(name, int(value)) for (name, _), value in zip(regions, order, strict=True)]
    known = {value for _, value in pairs}
    rest = sorted({v for _, values in regions for v in values} - known)
    return pairs + [(f"label {value}", value) for value in rest]


def _by_number(names: Any, path: Path) -> dict[int, str]:
    if names is None:
        return {}
    if isinstance(names, list):
        names = dict(enumerate(names))
    try:
        return {int(key): str(names[key]) for key in sorted(names, key=int)}
    except (TypeError, ValueError):
        raise _wrong(path, "its channels are not numbered from 0") from None


def _inside(text: str, path: Path) -> Path:
    return must_lie_within(path.parent / text, path.parent)


def _wrong(path: Path, reason: str) -> UserError:
    return UserError(
        f"`{path.name}` is not an MSD or nnU-Net dataset.json: {reason}",
        where=str(path),
        remedy="correct it, or describe the cohort by a CSV",
        code="dataset-json",
    )
