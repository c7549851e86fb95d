"""Where things lie in a store, how they are called, and by which keys they are known."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mim3d.foundation.atomic import TEMPORARY
from mim3d.foundation.documents import DocumentError, LaterVersion, bounded, versioned, write_sealed
from mim3d.foundation.errors import UserError

FORMAT = 1
"""Version of the store. Others are refused with the command that makes them anew."""
RECORDS = "records"
"""Key of the version of manifest, fingerprint and sidecars, and the first of each. Version 2 ends
with a checksum; the first one had neither and is read as it is."""
RECORD_FORMAT = 2
FIRST_KEYS = ("format", "subject_id", "cases")
"""What records of the first version began with."""

CASES = "cases"
MANIFEST = "manifest.json"
FINGERPRINT = "fingerprint.json"
QUARANTINE = "quarantine.tsv"
CONTACT_SHEET = "contact_sheet.png"

CHUNK = 32
"""Side of a chunk. 16 loses to the overhead of each, 64 to voxels nobody asked for."""

MAX_NAME = 120
"""Bytes of an escaped case id; longer ones are cut and get eight digits of a hash."""

SAFE = frozenset(string.ascii_letters + string.digits + "-_.")


def file_name(case_id: str) -> str:
    """The case id as a file's name without ending: percent-escaped, never hidden, never a path.

    Letters, digits, `-`, `_` and `.` stay, a leading dot does not. Two ids never share a name.
    """
    raw = case_id.encode("utf-8", "surrogatepass")
    parts = [chr(b) if chr(b) in SAFE and b < 128 else f"%{b:02X}" for b in raw]
    if parts[:1] == ["."]:
        parts[0] = "%2E"
    escaped = "".join(parts) or "%"
    if len(escaped) <= MAX_NAME:
        return escaped
    return f"{escaped[:MAX_NAME]}-{hashlib.sha256(raw).hexdigest()[:8]}"


def case_path(folder: Path, case_id: str) -> Path:
    """Where the case's voxels lie."""
    return folder / CASES / f"{file_name(case_id)}.h5"


def sidecar_path(folder: Path, case_id: str) -> Path:
    """Where the case's sidecar lies."""
    return folder / CASES / f"{file_name(case_id)}.json"


def digest(content: Any) -> str:
    """SHA-256 of a JSON value, the same for any order of keys."""
    text = json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Writes manifest, fingerprint or sidecar whole, with its version and checksum."""
    rest = {key: value for key, value in content.items() if key != RECORDS}
    write_sealed(path, {RECORDS: RECORD_FORMAT, **rest})


def read_json(path: Path) -> dict[str, Any]:
    """The content of manifest, fingerprint or sidecar.

    Raises:
        UserError: it is damaged, missing or of a later version.
    """
    try:
        return versioned(bounded(path), {"format": FORMAT, RECORDS: RECORD_FORMAT}, _is_first)
    except LaterVersion as error:
        raise _other_format(path, error) from None
    except (OSError, DocumentError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise damaged_record(path, str(reason)) from None


def _is_first(record: Mapping[str, Any]) -> bool:
    return RECORDS not in record and next(iter(record), "") in FIRST_KEYS


def _other_format(path: Path, error: LaterVersion) -> UserError:
    store = path.parent.parent if path.parent.name == CASES else path.parent
    what, reads = ("record", RECORD_FORMAT) if error.key == RECORDS else ("store", FORMAT)
    return UserError(
        f"`{store}` was written by {what} format {str(error.found)[:20]}, this version reads "
        f"format {reads}",
        remedy=f"`mim3d prepare SOURCE --out {store}` makes it again",
        code="store-format",
    )


def damaged_record(path: Path, reason: str) -> UserError:
    """The error of a manifest, fingerprint or sidecar that cannot be used."""
    return UserError(
        f"`{path.name}` of the store is damaged: {reason}",
        where=str(path),
        remedy="run the `mim3d prepare` that made this store again",
        code="damaged-store",
    )


def sidecar_paths(folder: Path) -> list[Path]:
    """The sidecars of a store, sorted, without those another process is just writing."""
    found = sorted((folder / CASES).glob("*.json"))
    return [path for path in found if not path.name.startswith(TEMPORARY)]
