"""What a disk has against a file that is to be written, as one sentence with a remedy."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from mim3d.foundation.errors import DiskError

FULL = {
    errno.ENOSPC: "",
    errno.EDQUOT: "the quota is used up, ",
    errno.EFBIG: "a file may not be as large here, ",
}
REASONS = {
    errno.EROFS: ("read-only", "its file system is read-only"),
    errno.EACCES: ("no-permission", "this user may not write there"),
    errno.EPERM: ("no-permission", "this user may not write there"),
    errno.ENOENT: ("folder-gone", "its folder is gone"),
    errno.ESTALE: ("folder-gone", "its folder is gone"),
    errno.ENOTCONN: ("folder-gone", "its file system is gone"),
    errno.ENODEV: ("folder-gone", "its file system is gone"),
    errno.ENXIO: ("folder-gone", "its file system is gone"),
    errno.ENOTDIR: ("not-written", "a part of its path is a file"),
    errno.EEXIST: ("not-written", "a part of its path is a file"),
    errno.EISDIR: ("not-written", "a folder has its name"),
    errno.ENAMETOOLONG: ("not-written", "its name is too long"),
    errno.EIO: ("device", "the device failed"),
}
OUTSIDE = frozenset({*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE,
                     errno.ENOTCONN, errno.ENODEV, errno.ENXIO})  # fmt: skip
"""What only a disk can be the cause of; a missing file may be a mistake in the program."""
KEPT = "nothing that was there is lost"


@contextlib.contextmanager
def explained(path: Path, temporary: Path | None = None, need: int = 0) -> Iterator[None]:
    """Turns what the system says of writing `path` into one sentence.

    Args:
        path: what is written.
        temporary: what it is called until it is whole; removed when the block ends.
        need: bytes it will have, as far as that is known.

    Raises:
        DiskError: in place of an `OSError` about `path`, `temporary` or a folder of it that is gone
            or not to be written in; one about another file passes, wherever that lies.
    """
    try:
        yield
    except OSError as error:
        if not _is_about(error, path, temporary):
            raise
        need = max(need, _size(temporary))
        _clear(temporary)
        raise disk_error(error, path, need) from error
    finally:
        _clear(temporary)


def check_room(path: Path, need: int) -> None:
    """Raises `DiskError` where fewer than `need` bytes are free in the folder of `path`."""
    free = free_bytes(path.parent)
    if free is not None and free < need:
        raise _no_room(path, need, "")


def check_there(path: Path) -> None:
    """Raises `DiskError` where the folder of `path`, made before, is gone.

    Called before a file joins others: under the name of a share that was taken away, the machine's
    own disk would take it without a word.
    """
    if not os.path.isdir(path.parent):
        raise disk_error(FileNotFoundError(errno.ENOENT, "gone"), path)


def check_written(paths: Iterable[Path]) -> None:
    """Raises `DiskError` where something that was written is no longer under its name."""
    for path in paths:
        if not os.path.exists(path):
            raise disk_error(FileNotFoundError(errno.ENOENT, "gone"), path)


def free_bytes(folder: Path) -> int | None:
    """Bytes that this user may still write there; None where the file system does not say."""
    if not hasattr(os, "statvfs"):
        return shutil.disk_usage(folder).free
    try:
        state = os.statvfs(folder)
    except OSError:
        return None
    if state.f_blocks == 0:
        return None
    blocks = state.f_bfree if os.geteuid() == 0 else state.f_bavail
    return int(blocks * state.f_frsize)


def disk_error(error: OSError, path: Path, need: int = 0) -> DiskError:
    """What an `OSError` means to the person who wanted `path` written.

    Args:
        error: raised on the way.
        path: the file or folder.
        need: bytes it would have had at least; 0 where nothing is known.
    """
    if error.errno in FULL:
        return _no_room(path, need, FULL[error.errno])
    code, reason = REASONS.get(error.errno or 0, ("not-written", error.strerror or "it failed"))
    return DiskError(
        f"`{path.name}` cannot be written: {reason}",
        remedy=f"check the disk and its rights, or choose another --out; {KEPT}",
        code=code,
    )


def unlike(path: Path) -> DiskError:
    """What is said of a file that differs from what was written into it."""
    return DiskError(
        f"`{path.name}` does not read back as it was written",
        remedy=f"check the disk, or choose another --out; {KEPT}",
        code="write-verify",
    )


def _no_room(path: Path, need: int, why: str) -> DiskError:
    free = free_bytes(path.parent)
    there = "an unknown number of" if free is None else _mebibytes(free)
    needs = f"it needs at least {_mebibytes(need)} MiB and " if need else ""
    return DiskError(
        f"no room to write `{path.name}`: {why}{needs}{there} MiB are free in its folder",
        remedy=f"free some space or choose another --out; {KEPT}",
        code="disk-full",
    )


def _mebibytes(count: int) -> str:
    """With as many digits as tell a small file from none."""
    return f"{count / 2**20:,.1f}" if count >= 2**17 or not count else f"{count / 2**20:.4f}"


def _is_about(error: OSError, path: Path, temporary: Path | None) -> bool:
    """Whether an error is about what is written, and about no file that was read meanwhile."""
    both = (error.filename, error.filename2)
    names = [name for name in both if isinstance(name, str | bytes | os.PathLike)]
    if not names:
        return True  # writing into an open file names none
    mine = os.path.abspath(path)
    half = None if temporary is None else os.path.abspath(temporary)
    for other in (os.path.abspath(os.fsdecode(name)) for name in names):
        # Some writers put an ending of their own behind the temporary name.
        if other == mine or (half is not None and other.startswith(half)):
            return True
        if Path(other) in Path(mine).parents and _is_shut(other, error.errno):
            return True
    return False


def _is_shut(folder: str, number: int | None) -> bool:
    """Whether nothing can be written in a folder, also where that is a matter of the moment."""
    if number in OUTSIDE - {errno.EACCES, errno.EPERM}:
        return True
    return not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK)


def _size(item: Path | None) -> int:
    """Bytes of a file, or of all files of a folder; 0 where it is gone."""
    if item is None:
        return 0
    try:
        if not item.is_dir():
            return item.lstat().st_size
        return sum(file.lstat().st_size for file in item.rglob("*") if file.is_file())
    except OSError:
        return 0


def _clear(item: Path | None) -> None:
    if item is None:
        return
    if os.path.isdir(item) and not os.path.islink(item):
        shutil.rmtree(item, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            item.unlink()
