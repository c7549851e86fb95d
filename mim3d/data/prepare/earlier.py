"""What an earlier preparation left of a case, and whether it still counts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mim3d.data.cohort import Case
from mim3d.data.prepare.keys import REFERRING, case_key, sign
from mim3d.data.store.checked import CheckedFile
from mim3d.data.store.entry import StoreEntry, sidecar_fields
from mim3d.data.store.layout import FORMAT, case_path, read_json, sidecar_path, sidecar_paths
from mim3d.foundation.errors import UserError

NOT_RENEWED = "not_renewed"
"""Key of a sidecar whose case stays though a later preparation could not read its source: why."""
PASSING = frozenset({"missing-file", "missing", "unreadable", "memory", "reader-died",
                     "reader-time", "changed-while-read"})  # fmt: skip
"""Codes of what may be over at the next try: a share that is gone, a machine that is too full."""


def stored_sidecar(folder: Path, case_id: str) -> dict[str, Any] | None:
    """The sidecar of a case; None where there is none that can be used."""
    path = sidecar_path(folder, case_id)
    if not path.is_file():
        return None
    try:
        return read_json(path)
    except UserError:
        return None  # damaged, or of another version: the case is prepared anew


def is_kept(old: Mapping[str, Any], key: str, folder: Path, case_id: str, verify: bool) -> bool:
    """Whether a case is there as its sidecar says, of this key, and sound so far as is checked.

    Args:
        old: the sidecar.
        key: of source and preparation, as they are now.
        folder: the store.
        case_id: which.
        verify: compare the checksum of the whole file.
    """
    if old.get("format") != FORMAT or old.get("key") != key or old.get("case_id") != case_id:
        return False
    try:
        # The key in the file counts: killed between the two, they belong to different settings.
        entry = StoreEntry.from_json(sidecar_fields(old))
        CheckedFile(case_path(folder, case_id), entry, verify=verify).close()
    except (UserError, LookupError, TypeError, ValueError):
        return False
    return True


def standing(folder: Path, case: Case, preparation: str) -> dict[str, Any] | None:
    """The sidecar of a sound case of the same preparation, whatever its source has become.

    A case of other settings would make the store a mixture: it does not count.

    Args:
        folder: the store.
        case: which.
        preparation: `preparation_key` of the settings, as they are now.
    """
    old = stored_sidecar(folder, case.case_id)
    key = None if old is None else _key(old, case, preparation)
    if old is None or key is None or not is_kept(old, key, folder, case.case_id, verify=False):
        return None
    return old


def seems_kept(folder: Path, case: Case, preparation: str) -> bool:
    """Whether a case will be kept, by sizes and times alone: no file is opened but the sidecar."""
    old = stored_sidecar(folder, case.case_id)
    if old is None or any(path.name.lower().endswith(REFERRING) for path in files_of(case)):
        return False
    return is_as_noted(old, case, preparation)


def is_as_noted(old: Mapping[str, Any], case: Case, preparation: str) -> bool:
    """Whether a case's files have the sizes and times that its sidecar of this preparation notes.

    Args:
        old: the sidecar.
        case: which.
        preparation: `preparation_key` of the settings, as they are now.
    """
    key = _key(old, case, preparation)
    if key is None or old.get("key") != key:
        return False
    label = [] if case.label is None else [old["source"]["label"]]
    try:
        pairs = zip(files_of(case), [*old["source"]["images"], *label], strict=True)
        return all(sign(path) == state["sign"] for path, state in pairs)
    except (OSError, LookupError, TypeError):
        return False


def files_of(case: Case) -> list[Path]:
    """Images and label map of a case."""
    return [*case.images, *([] if case.label is None else [case.label])]


def modalities_before(folder: Path) -> list[str | None] | None:
    """What each channel was taken for when the store was begun; None where no case says it.

    The sidecars say it as it was decided. A manifest only says what most cases are, and a damaged
    one is what a preparation mends.
    """
    for path in sidecar_paths(folder):
        try:
            sidecar = read_json(path)
        except UserError:
            continue
        found = sidecar.get("modalities")
        if "refused" not in sidecar and isinstance(found, list) and found:
            return found
    return None


def _key(old: Mapping[str, Any], case: Case, preparation: str) -> str | None:
    """The key that the files noted in a sidecar have today; None if they are others in kind."""
    try:
        state = old["source"]
        alike = len(state["images"]) == len(case.images)
        if not alike or (state["label"] is None) != (case.label is None):
            return None
        return case_key(state, preparation)
    except (LookupError, TypeError):
        return None
