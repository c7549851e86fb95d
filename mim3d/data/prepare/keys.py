"""Whether a source is still what a store was made of: keys of content, and cheap signs of it.

A file whose size and times are those noted in the sidecar is trusted; any other is hashed again,
and equal bytes under a new time are the same source.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mim3d.config.read import ReadConfig
from mim3d.config.verbs import PreparationConfig
from mim3d.data.classes import ClassTable
from mim3d.data.cohort import Case
from mim3d.data.files import archive_of, content_key, is_there
from mim3d.data.files.dicom_paths import series_of
from mim3d.data.store.layout import FORMAT, digest

NOT_CONTENT = ("workers", "verify", "keep_paths", "pattern", "validation_fraction", "split",
               "case_ids", "contrasts", "labels")  # fmt: skip
"""Settings that change no case's content."""

LATER = ("intensity_range", "distance_mm", "ignore_label", "contrasts", "labels")
"""Settings that came when there were stores: none is as if there were no such setting."""

RULES = 2
"""Raised with every change of the code that makes another case of the same file and settings.

2: voxels that are no usable numbers and spikes take no part in body and normalisation.
"""

REFERRING = (".mhd", ".nhdr")
"""Endings of headers whose voxels lie in a file of any name: never trusted by times."""


def preparation_key(
    config: PreparationConfig,
    read: ReadConfig,
    classes: ClassTable | None,
    modalities: tuple[str | None, ...] | None,
) -> str:
    """Hash of everything besides the files that decides what a case becomes."""
    settings = {k: v for k, v in noted(config).items() if k not in NOT_CONTENT}
    values = None if classes is None else [*classes.values, classes.ignore_value]
    geometry = {"geometry": read.geometry, "series": read.series}
    return digest([FORMAT, RULES, settings, geometry, values, modalities])


def noted(config: PreparationConfig) -> dict[str, Any]:
    """The settings as stores note them, and which rule they were followed by."""
    settings = {k: v for k, v in asdict(config).items() if v is not None or k not in LATER}
    # Stores that do not say so hold distances from 0 to 1.
    return settings if config.distance_mm is None else {**settings, "distance_scale": "signed"}


def source_state(case: Case, stored: Mapping[str, Any] | None, verify: bool) -> dict[str, Any]:
    """Signs and keys of a case's files.

    Args:
        case: which files; they exist.
        stored: what an earlier preparation noted, or None.
        verify: hash all, whatever the signs say.

    Returns:
        `images`: a list, `label`: one or None, of `{"sign", "key"}`.
    """
    known = stored or {}
    images = [
        _state(path, _at(known.get("images"), number), verify)
        for number, path in enumerate(case.images)
    ]
    label = None if case.label is None else _state(case.label, known.get("label"), verify)
    return {"images": images, "label": label}


def image_key(state: Mapping[str, Any]) -> str:
    """Hash of the content of all image files; of a single one it is `files.content_key`."""
    keys = [str(image["key"]) for image in state["images"]]
    return keys[0] if len(keys) == 1 else digest(keys)


def case_key(state: Mapping[str, Any], preparation: str) -> str:
    """Hash of a case's files and the preparation."""
    label = None if state["label"] is None else state["label"]["key"]
    return digest([[image["key"] for image in state["images"]], label, preparation])


def sign(path: Path) -> str:
    """Sizes and times of a file, of both files of a pair, or of all files of a DICOM folder."""
    whole = hashlib.sha256()
    for file in _files(path):
        stat = os.stat(file)
        whole.update(f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}\n".encode())
    return whole.hexdigest()


def size(*paths: Path) -> int:
    """Bytes of files, pairs, DICOM folders and archives, each once; 0 where nothing is."""
    files = dict.fromkeys(file for path in paths if is_there(path) for file in _files(path))
    return sum(os.stat(file).st_size for file in files)


def _state(path: Path, known: Mapping[str, Any] | None, verify: bool) -> dict[str, str]:
    signed = sign(path)
    referring = path.name.lower().endswith(REFERRING)
    if known and known.get("sign") == signed and not verify and not referring:
        return {"sign": signed, "key": str(known["key"])}
    return {"sign": signed, "key": content_key(path)}


def _files(path: Path) -> list[Path]:
    archive = archive_of(path)
    if archive is not None:
        return [archive]
    numbered = series_of(path)
    if numbered is not None:
        path, _ = numbered
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())
    name = path.name.lower()
    for mine, other in ((".hdr", ".img"), (".img", ".hdr")):
        for zipped in ("", ".gz"):
            if name.endswith(mine + zipped):
                stem = path.name[: -len(mine + zipped)]
                pair = [path.with_name(stem + other + z) for z in ("", ".gz")]
                return [path, *(file for file in pair if file.exists())]
    return [path]


def _at(items: Any, place: int) -> Mapping[str, Any] | None:
    return items[place] if isinstance(items, list) and place < len(items) else None
