"""What a process does with one case: keep what is there, prepare anew, or refuse with a reason.

Everything in and out is JSON, so that a process of its own needs no pickle.
"""

from __future__ import annotations

import json
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mim3d.config.read import ReadConfig
from mim3d.config.verbs import PreparationConfig
from mim3d.data.classes import ClassTable
from mim3d.data.cohort import Case
from mim3d.data.files import ReadWarning, read_volume
from mim3d.data.intensity import infer_modality
from mim3d.data.prepare.case import prepare_case
from mim3d.data.prepare.keys import (
    case_key,
    image_key,
    preparation_key,
    sign,
    source_state,
)
from mim3d.data.prepare.volume import VolumeRule
from mim3d.data.store.checked import checksum
from mim3d.data.store.layout import FORMAT, case_path, read_json, sidecar_path
from mim3d.data.store.writing import write_case
from mim3d.foundation.atomic import write_json
from mim3d.foundation.errors import ResourceError, UserError, VolumeError


@dataclass(frozen=True)
class Work:
    """What all cases of one preparation share.

    Args:
        folder: the store.
        config: settings of the preparation.
        read: settings of the reader.
        classes: the source's class table, or None.
        modalities: one a channel; None in a place infers it for each case.
        cohort: what each sidecar says about the cohort, so that the store can be rebuilt.
    """

    folder: Path
    config: PreparationConfig
    read: ReadConfig
    classes: ClassTable | None
    modalities: tuple[str | None, ...] | None
    cohort: Mapping[str, Any]

    @property
    def rule(self) -> VolumeRule:
        """What the store holds of a volume."""
        return VolumeRule.from_json({**asdict(self.config), "modalities": self.modalities})

    def as_json(self) -> dict[str, Any]:
        """For the way to another process."""
        return {
            "folder": str(self.folder),
            "config": asdict(self.config),
            "read": asdict(self.read),
            "classes": None if self.classes is None else self.classes.as_json(),
            "modalities": self.modalities,
            "cohort": dict(self.cohort),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Work:
        """What `as_json` described."""
        config: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content["config"].items()
        }
        classes = content["classes"]
        modalities = content["modalities"]
        return cls(
            Path(content["folder"]),
            PreparationConfig(**config),
            ReadConfig(**content["read"]),
            None if classes is None else ClassTable.from_json(classes),
            None if modalities is None else tuple(modalities),
            content["cohort"],
        )


def case_as_json(case: Case) -> dict[str, Any]:
    """For the way to another process."""
    label = None if case.label is None else str(case.label)
    return {**asdict(case), "images": [str(path) for path in case.images], "label": label}


def case_from_json(content: Mapping[str, Any]) -> Case:
    """What `case_as_json` described."""
    label = content["label"]
    images = tuple(map(Path, content["images"]))
    return Case(**{**content, "images": images, "label": None if label is None else Path(label)})


def prepare_or_keep(case: Case, work: Work) -> dict[str, Any]:
    """Prepares a case unless it is there already.

    Returns:
        `state`: `kept`, `prepared` or `refused`; with `refused` also `file`, `code`, `reason`,
        `remedy`, and `trace` where it is a bug; with `prepared` the codes of `notes`.

    Raises:
        ResourceError: the disk is full: nothing that follows could be written.
    """
    try:
        return _prepare_or_keep(case, work)
    except ResourceError:
        raise
    except MemoryError:
        reason = "memory does not suffice"
        remedy = "use fewer processes (`--prepare.workers 1`), or a lower `--read.max_gib`"
        return refuse(case, work, "", "memory", reason, remedy)
    except UserError as error:
        file = Path(error.where).name if error.where else ""
        return refuse(case, work, file, error.code, error.what, error.remedy or "")
    except Exception as error:
        # One case must not take the cohort with it; the trace goes to the person, not to a file.
        reason = f"a bug in mim3d ({type(error).__name__})"
        answer = refuse(case, work, "", "bug", reason, "report it with the trace shown")
        return {**answer, "trace": traceback.format_exc()}


def peek(case: Case, work: Work) -> dict[str, Any]:
    """What the values of a case say about the modality of its channels.

    Returns:
        `modalities`: one a channel, or None where the case cannot be read.
    """
    found: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReadWarning)
            for path in case.images:
                voxels = read_volume(path, work.read).voxels
                found += [infer_modality(channel) for channel in voxels]
    except (UserError, MemoryError):
        return {"modalities": None}
    return {"modalities": found}


def refuse(
    case: Case, work: Work, file: str, code: str, reason: str, remedy: str
) -> dict[str, Any]:
    """Leaves a sidecar that says why a case is not in the store, and nothing else of it."""
    refused = {
        "file": file if work.config.case_ids == "stem" else _role(file, case),
        "code": code,
        "reason": _without_paths(reason, case, work),
        "remedy": _without_paths(remedy, case, work),
    }
    sidecar = {"format": FORMAT, "case_id": case.case_id, **_about(case, work), "refused": refused}
    write_json(sidecar_path(work.folder, case.case_id), sidecar)
    case_path(work.folder, case.case_id).unlink(missing_ok=True)
    return {"state": "refused", "case_id": case.case_id, **refused}


def _prepare_or_keep(case: Case, work: Work) -> dict[str, Any]:
    preparation = preparation_key(work.config, work.read, work.classes, work.modalities)
    old = _sidecar(work.folder, case.case_id)
    missing = [p for p in (*case.images, case.label) if p is not None and not p.exists()]
    if missing:
        # The one check that comes before hashing; `prepare_case` has the words for it.
        prepare_case(case, work.rule, work.classes, work.config, work.read)
    state = source_state(case, None if old is None else old.get("source"), work.config.verify)
    key = case_key(state, preparation)
    about = {**_about(case, work), "source": state, "image_key": image_key(state)}
    if old is not None and _is_kept(old, key, work, case.case_id):
        renewed = {**old, **about}
        if not work.config.keep_paths:
            renewed.pop("paths", None)
        if renewed != old:
            write_json(sidecar_path(work.folder, case.case_id), renewed)
        return {"state": "kept", "case_id": case.case_id}
    prepared = prepare_case(case, work.rule, work.classes, work.config, work.read)
    paths = [*case.images, *([] if case.label is None else [case.label])]
    signs = [image["sign"] for image in state["images"]]
    signs += [] if state["label"] is None else [state["label"]["sign"]]
    if [sign(path) for path in paths] != signs:
        raise VolumeError(
            "it changed while it was read", remedy="prepare again", code="changed-while-read"
        )
    written = write_case(work.folder, prepared, about, key, work.config.filter)
    notes = [note["code"] for note in written["notes"]]
    return {"state": "prepared", "case_id": case.case_id, "notes": notes}


def _about(case: Case, work: Work) -> dict[str, Any]:
    about: dict[str, Any] = {
        "subject_id": case.subject_id,
        "part": case.part,
        "targets": case.targets,
        "cohort": dict(work.cohort),
        "modalities": work.modalities,
    }
    if work.config.keep_paths:
        about["paths"] = [str(p) for p in (*case.images, case.label) if p is not None]
    # As it will be read back: tuples are lists in JSON.
    return dict(json.loads(json.dumps(about)))


def _sidecar(folder: Path, case_id: str) -> dict[str, Any] | None:
    path = sidecar_path(folder, case_id)
    if not path.is_file():
        return None
    try:
        content = read_json(path)
    except UserError:
        return None  # damaged: the case is prepared anew
    return content if isinstance(content, dict) else None


def _is_kept(old: dict[str, Any], key: str, work: Work, case_id: str) -> bool:
    path = case_path(work.folder, case_id)
    if old.get("format") != FORMAT or old.get("key") != key or old.get("case_id") != case_id:
        return False
    file = old.get("file", {})
    if not path.is_file() or path.stat().st_size != file.get("bytes"):
        return False
    return not work.config.verify or checksum(path) == file.get("sha256")


def _role(file: str, case: Case) -> str:
    """`image` or `label` in place of a name that must not appear."""
    if not file:
        return ""
    return "label" if case.label is not None and file == case.label.name else "image"


def _without_paths(text: str, case: Case, work: Work) -> str:
    """A sentence without folders, and without names where cases are hashed."""
    for path in (*case.images, *([] if case.label is None else [case.label])):
        for written in (str(path.resolve()), str(path)):
            text = text.replace(written, path.name)
        if work.config.case_ids == "hashed":
            text = text.replace(path.name, _role(path.name, case))
    return text
