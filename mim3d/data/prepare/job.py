"""What a process does with one case: keep what is there, prepare anew, or refuse with a reason.

Everything in and out is JSON, so that a process of its own needs no pickle.
"""

from __future__ import annotations

import json
import re
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mim3d.config.read import ReadConfig
from mim3d.config.verbs import PreparationConfig
from mim3d.data.classes import ClassTable
from mim3d.data.cohort import Case
from mim3d.data.files import ReadWarning, is_there, read_volume
from mim3d.data.files.dicom_paths import series_of
from mim3d.data.intensity import infer_modality
from mim3d.data.prepare.case import prepare_case
from mim3d.data.prepare.earlier import (
    NOT_RENEWED,
    PASSING,
    files_of,
    is_kept,
    standing,
    stored_sidecar,
)
from mim3d.data.prepare.keys import (
    case_key,
    image_key,
    noted,
    preparation_key,
    sign,
    source_state,
)
from mim3d.data.prepare.volume import VolumeRule
from mim3d.data.store.layout import (
    FORMAT,
    RECORDS,
    case_path,
    file_name,
    sidecar_path,
    write_record,
)
from mim3d.data.store.writing import write_case
from mim3d.foundation.claims import Claims
from mim3d.foundation.disk import check_there
from mim3d.foundation.errors import ResourceError, UserError, VolumeError
from mim3d.foundation.memory import is_out_of_memory


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
        spare_bytes: address space a process of its own may take beyond its start; None is any.
        is_shared: whether other commands fill the same store: each case is claimed first.
    """

    folder: Path
    config: PreparationConfig
    read: ReadConfig
    classes: ClassTable | None
    modalities: tuple[str | None, ...] | None
    cohort: Mapping[str, Any]
    spare_bytes: int | None = None
    is_shared: bool = False

    @cached_property
    def key(self) -> str:
        """Hash of everything besides the files that decides what a case becomes."""
        return preparation_key(self.config, self.read, self.classes, self.modalities)

    @property
    def rule(self) -> VolumeRule:
        """What the store holds of a volume."""
        return VolumeRule.from_json({**noted(self.config), "modalities": self.modalities})

    def as_json(self) -> dict[str, Any]:
        """For the way to another process."""
        return {
            "folder": str(self.folder),
            "config": asdict(self.config),
            "read": asdict(self.read),
            "classes": None if self.classes is None else self.classes.as_json(),
            "modalities": self.modalities,
            "cohort": dict(self.cohort),
            "spare_bytes": self.spare_bytes,
            "is_shared": self.is_shared,
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
            content["spare_bytes"],
            content["is_shared"],
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


BUSY = "busy"
"""State of a case that another command is at."""
QUOTED = re.compile(r"`([^`]*)`")
"""A literal within a sentence."""


def prepare_or_keep(case: Case, work: Work) -> dict[str, Any]:
    """Prepares a case unless it is there already.

    Returns:
        `state`: `kept`, `prepared`, `busy` where another command is at the case, `refused`, or
        `stands` for a case that could not be renewed and stays as it was; with these two also
        `file`, `code`, `reason`, `remedy`, and `trace` where it is a bug; with `prepared` the
        codes of `notes`.

    Raises:
        ResourceError: the disk is full: nothing that follows could be written.
    """
    if not work.is_shared:
        return _answered(case, work)
    with Claims(work.folder).claimed(file_name(case.case_id)) as is_mine:
        return _answered(case, work) if is_mine else {"state": BUSY, "case_id": case.case_id}


def _answered(case: Case, work: Work) -> dict[str, Any]:
    """Raises nothing but `ResourceError`: what is wrong with a case is its answer."""
    try:
        return _prepare_or_keep(case, work)
    except ResourceError:
        raise
    except UserError as error:
        file = Path(error.where).name if error.where else ""
        return refuse(case, work, file, error.code, error.what, error.remedy or "")
    except OSError as error:
        reason = f"it cannot be read: {error.strerror or 'the device failed'}"
        return refuse(case, work, "", "unreadable", reason, "check the disk, then prepare again")
    except Exception as error:
        if is_out_of_memory(error):
            reason = "memory does not suffice"
            remedy = "use fewer processes (`--prepare.workers 1`), or a lower `--read.max_gib`"
            return refuse(case, work, "", "memory", reason, remedy)
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
    """Leaves a sidecar that says why a case is not in the store, and nothing else of it.

    Where the reason may be over at the next try, a case that was prepared before with the same
    settings stays, and its sidecar says why it could not be renewed.
    """
    own = [path.name for path in (*case.images, case.label) if path is not None]
    if file and file not in own:
        file = own[0]  # a slice, or another part that has a name of its own
    refused = {
        "file": file if work.config.case_ids == "stem" else _role(file, case),
        "code": code,
        "reason": _without_paths(reason, case, work),
        "remedy": _without_paths(remedy, case, work),
    }
    old = standing(work.folder, case, work.key) if code in PASSING else None
    if old is not None:
        refused["reason"] += "; the case that was prepared before stays"
        sidecar = {**_renewed(old, said_of(case, work), work), NOT_RENEWED: refused}
        write_record(sidecar_path(work.folder, case.case_id), sidecar)
        return {"state": "stands", "case_id": case.case_id, **refused}
    sidecar = {"format": FORMAT, "case_id": case.case_id, **said_of(case, work), "refused": refused}
    write_record(sidecar_path(work.folder, case.case_id), sidecar)
    case_path(work.folder, case.case_id).unlink(missing_ok=True)
    return {"state": "refused", "case_id": case.case_id, **refused}


def _prepare_or_keep(case: Case, work: Work) -> dict[str, Any]:
    old = stored_sidecar(work.folder, case.case_id)
    paths = files_of(case)
    if not all(map(is_there, paths)):
        # The one check that comes before hashing; `prepare_case` has the words for it.
        prepare_case(case, work.rule, work.classes, work.config, work.read)
    state = source_state(case, None if old is None else old.get("source"), work.config.verify)
    key = case_key(state, work.key)
    about = {**said_of(case, work), "source": state, "image_key": image_key(state)}
    if old is not None and is_kept(old, key, work.folder, case.case_id, work.config.verify):
        renewed = _renewed(old, about, work)
        if renewed != old or RECORDS not in old:
            write_record(sidecar_path(work.folder, case.case_id), renewed)
        return {"state": "kept", "case_id": case.case_id}
    prepared = prepare_case(case, work.rule, work.classes, work.config, work.read)
    signs = [image["sign"] for image in state["images"]]
    signs += [] if state["label"] is None else [state["label"]["sign"]]
    if [sign(path) for path in paths] != signs:
        raise VolumeError(
            "it changed while it was read", remedy="prepare again", code="changed-while-read"
        )
    check_there(case_path(work.folder, case.case_id))
    written = write_case(work.folder, prepared, about, key, work.config.filter)
    notes = [note["code"] for note in written["notes"]]
    return {"state": "prepared", "case_id": case.case_id, "notes": notes}


def _renewed(old: Mapping[str, Any], about: Mapping[str, Any], work: Work) -> dict[str, Any]:
    """A sidecar whose case stays, with what is said of it now."""
    renewed = {**old, **about}
    renewed.pop(NOT_RENEWED, None)
    if not work.config.keep_paths:
        renewed.pop("paths", None)
    return renewed


def said_of(case: Case, work: Work) -> dict[str, Any]:
    """What a sidecar says of a case besides its files and what they hold."""
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


def _role(file: str, case: Case) -> str:
    """`image` or `label` in place of a name that must not appear."""
    if not file:
        return ""
    return "label" if case.label is not None and file == case.label.name else "image"


def _without_paths(text: str, case: Case, work: Work) -> str:
    """A sentence without folders, and without names where cases are hashed."""
    # Series are listed by what their tags say, for the person alone.
    text = text.partition(" or its UID:")[0]
    for path in (*case.images, *([] if case.label is None else [case.label])):
        for written in (str(path.resolve()), str(path)):
            text = text.replace(written, path.name)
        folder, _ = series_of(path) or (path, 0)
        if folder.is_dir():
            inside = {file.name for file in folder.rglob("*")}
            for literal in QUOTED.findall(text):
                text = text.replace(f"`{literal}`", "`...`") if literal in inside else text
        if work.config.case_ids == "hashed":
            text = text.replace(path.name, _role(path.name, case))
    return text
