"""Files that are written whole or not at all.

Everything goes to a temporary name in the same folder, is flushed to the disk, and then renamed
over the old one. A process killed at any moment leaves the old file or the new one, never a part.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mim3d.foundation.errors import ResourceError

TEMPORARY = ".mim3d-tmp-"
"""What the name of every unfinished file or folder begins with."""


def temporary_name(path: Path) -> Path:
    """A fresh name beside `path`, recognisable as unfinished."""
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{uuid.uuid4().hex[:12]}{path.suffix}")


def sync(path: Path) -> None:
    """Flushes a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """Gives a temporary path to write to; renames it to `path` if the block succeeds.

    Raises:
        ResourceError: the disk is full or the quota used up; the older file is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path | str) -> Iterator[Path]:
    """Gives a temporary folder to fill; renames it to `path` if the block succeeds.

    A folder that already stands at `path` is moved aside first and removed afterwards.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    temporary.mkdir()
    try:
        yield temporary
        for item in sorted(temporary.rglob("*")):
            sync(item)
        sync(temporary)
        if path.exists():
            aside = temporary_name(path)
            os.replace(path, aside)
            os.replace(temporary, path)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: Path | str, content: bytes) -> None:
    """Writes a whole file."""
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        file.write(content)


def write_text(path: Path | str, content: str) -> None:
    """Writes a whole UTF-8 file."""
    write_bytes(path, content.encode())


def write_json(path: Path | str, content: Any) -> None:
    """Writes a whole JSON file; NaN and infinity are refused."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def point(link: Path | str, target: str) -> None:
    """Makes `link` a relative symbolic link to `target`, replacing an older one in one move."""
    link = Path(link)
    temporary = temporary_name(link)
    os.symlink(target, temporary)
    os.replace(temporary, link)
    sync(link.parent)


def sweep(folder: Path | str) -> int:
    """Removes what killed processes left unfinished in `folder`; returns how many.

    A leftover belongs to the process whose number is in its name and is kept while that lives.
    """
    removed = 0
    for item in Path(folder).glob(f"{TEMPORARY}*"):
        owner = item.name.removeprefix(TEMPORARY).split("-")[0]
        if owner.isdigit() and _is_alive(int(owner)):
            continue
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item, ignore_errors=True)
        else:
            item.unlink(missing_ok=True)
        removed += 1
    return removed


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _explained(error: OSError, path: Path) -> Exception:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return error
    free = shutil.disk_usage(path.parent).free / 2**20
    return ResourceError(
        f"no room to write `{path.name}`: {free:.1f} MiB are free in its folder",
        remedy="free some space or choose another --out; nothing that was there is lost",
        code="disk-full",
    )
