"""Small file systems of one's own, in a name space that ends with its process."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from tests.reliability.proof import Unavailable

NEW_MOUNTS = 0x00020000
READ_ONLY, REMOUNT, RECURSIVE, PRIVATE = 1, 32, 16384, 1 << 18
DETACH = 2


def own_mounts() -> None:
    """From now on, what this process mounts is seen by it and its children alone.

    Raises:
        Unavailable: the system does not allow it.
    """
    if not sys.platform.startswith("linux"):
        raise Unavailable("needs Linux")
    if _libc().unshare(NEW_MOUNTS) != 0:
        raise Unavailable("needs the right to mount")
    _mount("none", Path("/"), "", RECURSIVE | PRIVATE, "")


def mount(folder: Path, size: int) -> None:
    """Puts an empty file system of `size` bytes in memory at `folder`."""
    _mount("tmpfs", folder, "tmpfs", 0, f"size={size}")


def resize(folder: Path, size: int) -> None:
    """Gives it another size, not below what is used."""
    _mount("tmpfs", folder, "tmpfs", REMOUNT, f"size={size}")


def make_read_only(folder: Path) -> None:
    """Writing ends here."""
    _mount("tmpfs", folder, "tmpfs", REMOUNT | READ_ONLY, "")


def detach(folder: Path) -> None:
    """Takes it away, as a share or a stick is taken; what is open stays open."""
    if _libc().umount2(os.fsencode(folder), DETACH) != 0:
        raise OSError(ctypes.get_errno(), "umount2")


def used(folder: Path) -> int:
    """Bytes that it holds."""
    state = os.statvfs(folder)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


def _mount(source: str, folder: Path, kind: str, flags: int, data: str) -> None:
    done = _libc().mount(source.encode(), os.fsencode(folder), kind.encode(), flags, data.encode())
    if done != 0:
        raise Unavailable(f"needs the right to mount ({os.strerror(ctypes.get_errno())})")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
