"""Where things lie in a store, how they are called, and by which keys they are known."""

from __future__ import annotations

import hashlib
import json
import string
from pathlib import Path
from typing import Any

from mim3d.foundation.atomic import TEMPORARY
from mim3d.foundation.errors import UserError

FORMAT = 1
"""Version of the store. Others are refused with the command that makes them anew."""

CASES = "cases"
MANIFEST = "manifest.json"
FINGERPRINT = "fingerprint.json"
QUARANTINE = "quarantine.tsv"

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
    escaped = "".join(parts)
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


def read_json(path: Path) -> Any:
    """The content of a JSON file of the store.

    Raises:
        UserError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise UserError(
            f"`{path.name}` is damaged",
            where=str(path),
            remedy="run the `mim3d prepare` that made this store again",
            code="damaged-store",
        ) from None


def sidecar_paths(folder: Path) -> list[Path]:
    """The sidecars of a store, sorted, without those another process is just writing."""
    found = sorted((folder / CASES).glob("*.json"))
    return [path for path in found if not path.name.startswith(TEMPORARY)]
