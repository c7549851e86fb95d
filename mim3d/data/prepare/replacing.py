"""`--overwrite`: a store makes way for another, and nothing else ever does."""

from __future__ import annotations

from pathlib import Path

import h5py

from mim3d.data.store.layout import (
    CASES,
    CONTACT_SHEET,
    FINGERPRINT,
    MANIFEST,
    QUARANTINE,
)
from mim3d.foundation.atomic import ASIDE, TEMPORARY
from mim3d.foundation.claims import FOLDER as SHARDS
from mim3d.foundation.disk import explained
from mim3d.foundation.documents import read_object
from mim3d.foundation.errors import ConfigError, UserError

MADE_OF_CASES = (MANIFEST, FINGERPRINT, QUARANTINE, CONTACT_SHEET)
VOXELS, SIDECAR = ".h5", ".json"


def check_replaceable(folder: Path, source: Path) -> None:
    """Refuses a folder that holds its own source, or anything that no preparation wrote.

    Args:
        folder: where the store is to be; nothing needs to be there.
        source: what is to be prepared.

    Raises:
        ConfigError: it is not to be removed.
    """
    place = source.resolve()
    if folder.resolve() in (place, *place.parents):
        why = f"holds the source `{source}`"
    elif folder.exists() and not _is_store(folder):
        why = "holds something else than a store"
    else:
        return
    raise ConfigError(
        f"`{folder}` {why}, so --overwrite does not remove it",
        remedy="choose another --out",
        code="out",
    )


def remove_store(folder: Path) -> None:
    """Removes the files of a store by their names, sidecars last: by them the rest is known.

    Raises:
        DiskError: one of them cannot be removed.
    """
    cases = sorted(_files(folder / CASES), key=lambda path: (path.suffix == SIDECAR, path))
    for path in (*(folder / name for name in MADE_OF_CASES), *cases):
        with explained(path):
            path.unlink(missing_ok=True)


def _is_store(folder: Path) -> bool:
    """Whether preparations wrote all that is there, though they were killed."""
    if not folder.is_dir():
        return False
    names = {path.name for path in _files(folder)}
    cases = _files(folder / CASES)
    if not (names <= {CASES, SHARDS, *MADE_OF_CASES} and all(map(_is_named_so, cases))):
        return False
    stems = {path.with_suffix("") for path in cases}
    # Such names alone are no sign: a manifest is made of cases, and lies beside none but ours.
    return all(map(_is_case, stems)) and (bool(stems) or not names.intersection(MADE_OF_CASES))


def _files(folder: Path) -> list[Path]:
    """What is in a folder, without what another process is just writing, or was."""
    found = folder.iterdir() if folder.is_dir() else ()
    return [path for path in found if not path.name.startswith((TEMPORARY, ASIDE))]


def _is_named_so(path: Path) -> bool:
    return path.suffix in (VOXELS, SIDECAR) and path.is_file()


def _is_case(stem: Path) -> bool:
    """Whether sidecar or voxels say so: the other may be damaged, or not there yet."""
    try:
        if {"case_id", "cohort"} <= read_object(Path(f"{stem}{SIDECAR}")).keys():
            return True
    except UserError:
        pass
    try:
        with h5py.File(f"{stem}{VOXELS}", "r", locking=False) as file:
            return all(name in file for name in ("header", "voxels", "body_voxels"))
    except (OSError, RuntimeError):
        return False
