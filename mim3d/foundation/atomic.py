"""Files that are written whole or not at all.

Everything goes to a temporary name in the same folder, is flushed to the disk, and then renamed
over the old one. A process killed at any moment leaves the old file or the new one, never a part.
What the system has against it becomes one sentence; whatever was there before stays.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mim3d.foundation.disk import check_room, explained, unlike
from mim3d.foundation.owner import Owner, process_start

TEMPORARY = ".mim3d-tmp-"
"""What the name of every unfinished file or folder begins with."""
ASIDE = ".mim3d-old-"
"""What is put before the name of a folder, with whose it is, while a new one takes its place."""
FOREIGN_SECONDS = 24 * 3600.0
"""Silence after which a leftover of an owner that cannot be asked is nobody's."""
FOREIGN_MOVE_SECONDS = 300.0
"""The same for a folder moved aside: what follows is one more move, and no writing."""
EXCHANGE = 2
"""RENAME_EXCHANGE of Linux."""
LONGEST_ENDING = 16
"""Characters; some writers look at a name's ending, and a name has at most 255."""


def temporary_name(path: Path) -> Path:
    """A fresh name beside `path`, recognisable as unfinished, and whose it is."""
    ending = path.suffix if len(path.suffix) <= LONGEST_ENDING else ""
    return path.with_name(f"{TEMPORARY}{Owner.this()}-{uuid.uuid4().hex[:12]}{ending}")


def sync(path: Path) -> None:
    """Flushes a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems flush files and know no flush of a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def whole_file(path: Path | str, *, need: int = 0) -> Iterator[Path]:
    """Gives a temporary path to write to; renames it to `path` if the block succeeds.

    Args:
        path: where the file is to be.
        need: bytes it will certainly have; refused before anything is written if they are not free.

    Raises:
        DiskError: it cannot be written; the older file is untouched.
    """
    path = Path(path)
    temporary = temporary_name(path)
    with explained(path, temporary, need):
        path.parent.mkdir(parents=True, exist_ok=True)
        check_room(path, need)
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)


@contextlib.contextmanager
def whole_folder(path: Path | str, *, need: int = 0) -> Iterator[Path]:
    """Gives a temporary folder to fill; renames it to `path` if the block succeeds.

    A folder that already stands at `path` changes its name with the new one in one move. Where the
    file system cannot do that it is moved aside first: killed in between, `sweep` brings it back.

    Args:
        path: where the folder is to be.
        need: bytes it will certainly hold; refused before anything is written if they are not free.

    Raises:
        DiskError: it cannot be written; the older folder is untouched.
    """
    path = Path(path)
    temporary = temporary_name(path)
    with explained(path, temporary, need):
        path.parent.mkdir(parents=True, exist_ok=True)
        check_room(path, need)
        temporary.mkdir()
        yield temporary
        for item in sorted(temporary.rglob("*")):
            sync(item)
        sync(temporary)
        if not path.exists():
            os.replace(temporary, path)
        elif not exchange(temporary, path):
            _replace_in_two_moves(temporary, path)
        sync(path.parent)


def exchange(one: Path, other: Path) -> bool:
    """Swaps what two names stand for, in one move; False where the system cannot.

    Raises:
        OSError: it could, and did not.
    """
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if swap is None:
        return False
    here = -100  # AT_FDCWD
    if swap(here, os.fsencode(one), here, os.fsencode(other), EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), os.fspath(other))


def _replace_in_two_moves(temporary: Path, path: Path) -> None:
    aside = path.with_name(f"{ASIDE}{Owner.this()}-{uuid.uuid4().hex[:12]}-{path.name}")
    os.replace(path, aside)
    os.replace(temporary, path)
    shutil.rmtree(aside, ignore_errors=True)


def make_folder(path: Path | str) -> None:
    """Makes a folder and those above it, where they are not there yet.

    Raises:
        DiskError: it cannot be made.
    """
    path = Path(path)
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)


def write_bytes(path: Path | str, content: bytes) -> None:
    """Writes a whole file, and reads it back before it gets its name.

    Raises:
        DiskError: it cannot be written, or does not read back; the older file is untouched.
    """
    path = Path(path)
    with whole_file(path, need=len(content)) as temporary:
        temporary.write_bytes(content)
        if temporary.read_bytes() != content:
            raise unlike(path)


def write_text(path: Path | str, content: str) -> None:
    """Writes a whole UTF-8 file."""
    write_bytes(path, utf8(content))


def utf8(text: str) -> bytes:
    """A text for a file; bytes of a file's name that are no letters stand as `\\udcff`."""
    return text.encode("utf-8", "backslashreplace")


def write_json(path: Path | str, content: Any) -> None:
    """Writes a whole JSON file; NaN and infinity are refused."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def point(link: Path | str, target: str) -> None:
    """Makes `link` a relative symbolic link to `target`, replacing an older one in one move.

    Raises:
        DiskError: it cannot be made; the older link is untouched.
    """
    link = Path(link)
    temporary = temporary_name(link)
    with explained(link, temporary):
        os.symlink(target, temporary)
        os.replace(temporary, link)
        sync(link.parent)


def sweep(folder: Path | str) -> int:
    """Removes what killed processes left unfinished in `folder`; returns how many.

    A leftover is kept while the process in its name lives, and for a day where that is a process of
    another machine. A folder that was moved aside and never replaced gets its name back, unless its
    owner is just about to replace it.
    """
    swept = 0
    for item in Path(folder).glob(f"{ASIDE}*"):
        owner, name = _moved_aside(item)
        path = item.with_name(name)
        with contextlib.suppress(OSError):
            if _is_left(item, owner):
                _remove(item) if path.exists() else os.replace(item, path)
                swept += 1
    for item in Path(folder).glob(f"{TEMPORARY}*"):
        if _is_abandoned(item):
            with contextlib.suppress(OSError):
                _remove(item)
                swept += 1
    return swept


def _remove(item: Path) -> None:
    if item.is_dir() and not item.is_symlink():
        shutil.rmtree(item)
    else:
        item.unlink(missing_ok=True)


def _moved_aside(item: Path) -> tuple[Owner | None, str]:
    """Who moved a folder aside, None if an older version did, and what it was called."""
    *parts, name = item.name.removeprefix(ASIDE).split("-", 4)
    ours = len(parts) == 4 and len(parts[3]) == 12
    owner = Owner.parse("-".join(parts[:3])) if ours else None
    return owner, item.name.removeprefix(ASIDE) if owner is None else name


def _is_left(item: Path, owner: Owner | None) -> bool:
    """Whether the one who moved a folder aside will not come back to it."""
    is_alive = False if owner is None else owner.is_alive()
    if is_alive is None:
        # A move changes no folder's own time, but that of its entry.
        return time.time() - item.lstat().st_ctime > FOREIGN_MOVE_SECONDS
    return not is_alive


def _is_abandoned(item: Path) -> bool:
    parts = item.name.removeprefix(TEMPORARY).split("-")
    owner = Owner.parse("-".join(parts[:3]))
    is_alive = None if owner is None else owner.is_alive()
    if owner is None and parts[0].isdecimal():
        # As older versions named them: by the number of the process alone.
        is_alive = process_start(int(parts[0])) is not None
    if is_alive is not None:
        return not is_alive
    try:
        changed = max(one.lstat().st_mtime for one in (item, *item.rglob("*")))
    except OSError:
        return False  # it is being written, or has just gone
    return time.time() - changed > FOREIGN_SECONDS
