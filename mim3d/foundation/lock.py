"""Who works in a run folder: a file made exclusively, kept fresh, taken over when stale.

No `flock`: it means nothing on many network file systems. The lock is a file that gets its name
with its content in it, and only if nobody has that name; a thread renews its time of change while
the owner lives. A stale lock is removed by whoever holds the lock on that one lock, so that of
several who find it stale none can remove the lock that another has just taken.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mim3d.foundation.atomic import temporary_name
from mim3d.foundation.disk import explained
from mim3d.foundation.errors import UserError
from mim3d.foundation.owner import Owner

logger = logging.getLogger(__name__)

NAME = "lock.json"
RENEWED_EVERY_SECONDS = 30.0
STALE_AFTER_SECONDS = 300.0
"""Ten missed renewals: the owner's machine is gone, or was asleep."""
WAIT_SECONDS = 0.25
"""Between two looks at a lock that is waited for."""
IN_USE, TAKEN_OVER = "run-in-use", "run-taken-over"
"""Code of the error that another living process holds the lock."""
NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""What file systems say on which a file has one name."""


class FolderLock:
    """The right to write in a folder, from `take` to `release`.

    Args:
        folder: exists.
        name: of the lock's file.
    """

    def __init__(self, folder: Path, name: str = NAME) -> None:
        self._path = folder / name
        self._token = uuid.uuid4().hex
        self._released = threading.Event()
        self.note: str | None = None
        """Set when a stale lock was taken over."""

    def take(self) -> None:
        """Takes the lock, over a stale one if need be.

        Raises:
            UserError: another living process holds it.
            DiskError: the lock cannot be written.
        """
        self._own()
        self._clear_abandoned()
        threading.Thread(target=self._renew, daemon=True).start()

    def is_free(self) -> bool:
        """Whether it could be taken now: nobody has it, or somebody who is gone."""
        return not self._path.exists() or _why_stale(self._path, _content(self._path)) is not None

    def release(self) -> None:
        """Gives the lock back, if it is still ours."""
        self._released.set()
        if self._is_ours():
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raises `UserError` if another process has taken the lock over: it writes there now.

        A lock that somebody removed by hand is no sign of another.
        """
        owner = _content(self._path)
        if owner.get("token") not in (None, self._token):
            raise UserError(
                f"run folder `{self._path.parent}` was taken over by process "
                f"{owner.get('pid', '?')} on `{owner.get('host', '?')}` while this one stood still",
                remedy="leave the run to that process",
                code=TAKEN_OVER,
            )

    def _own(self) -> None:
        for _ in range(3):
            if self._create():
                return
            self._remove_stale()
        raise self._held({})

    def _create(self) -> bool:
        content = json.dumps(
            {
                "host": socket.gethostname(),
                "home": Owner.this().home,
                "pid": os.getpid(),
                "process_start": Owner.this().start,
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
                "job": os.environ.get("SLURM_JOB_ID"),
                "token": self._token,
            }
        )
        temporary = temporary_name(self._path)
        with explained(self._path, temporary):
            temporary.write_text(content, encoding="utf-8")
            try:
                os.link(temporary, self._path)
            except FileExistsError:
                # Over a network the answer to a link that was made may have been lost.
                return temporary.stat().st_nlink == 2
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                return self._create_without_links(content)
            return True

    def _create_without_links(self, content: str) -> bool:
        """For file systems on which a file has one name."""
        try:
            file = open(self._path, "x", encoding="utf-8")  # noqa: SIM115
        except FileExistsError:
            return False
        try:
            with file:
                file.write(content)
        except BaseException:
            # Half a lock is nobody's and would keep everybody out.
            with contextlib.suppress(OSError):
                self._path.unlink()
            raise
        return True

    def _remove_stale(self) -> None:
        owner = _content(self._path)
        why = _why_stale(self._path, owner)
        if why is None:
            raise self._held(owner)
        mark = hashlib.sha256(str(owner.get("token")).encode()).hexdigest()[:8]
        guard = FolderLock(self._path.parent, f"{self._path.name}.{mark}")
        guard._own()
        try:
            if _content(self._path).get("token") == owner.get("token"):
                with explained(self._path):
                    self._path.unlink(missing_ok=True)
                self.note = f"took over from process {owner.get('pid', '?')}: {why}"
                logger.info("%s: %s", self._path.parent.name, self.note)
        finally:
            guard.release()

    def _clear_abandoned(self) -> None:
        """Removes the guards of processes that were killed while they took a lock over."""
        for guard in self._path.parent.glob(f"{self._path.name}.*"):
            if _owner(_content(guard)).is_alive() is False:
                with contextlib.suppress(OSError):
                    guard.unlink(missing_ok=True)

    def _is_ours(self) -> bool:
        return bool(_content(self._path).get("token") == self._token)

    def _held(self, owner: dict[str, Any]) -> UserError:
        if not owner:
            return UserError(
                f"run folder `{self._path.parent}` is in use by a process that is just taking it, "
                "or was killed before it wrote its name",
                remedy=f"try again in {STALE_AFTER_SECONDS / 60:.0f} minutes, or choose another "
                "--out",
                code=IN_USE,
            )
        return UserError(
            f"run folder `{self._path.parent}` is in use by process {owner.get('pid', '?')} on "
            f"`{owner.get('host', '?')}` since {owner.get('since', '?')}",
            remedy="wait for it to end, or choose another --out",
            code=IN_USE,
        )

    def _renew(self) -> None:
        while not self._released.wait(RENEWED_EVERY_SECONDS):
            if self._is_ours():
                with contextlib.suppress(OSError):
                    os.utime(self._path)


@contextlib.contextmanager
def held(
    folder: Path, name: str = NAME, *, tell: Callable[[str], None] | None = None
) -> Iterator[FolderLock]:
    """A lock of a folder, waited for while another living process has it.

    Args:
        folder: exists.
        name: of the lock's file.
        tell: is told once what is waited for.

    Raises:
        DiskError: the lock cannot be written.
    """
    lock = FolderLock(folder, name)
    while True:
        try:
            lock.take()
            break
        except UserError as error:
            if error.code != IN_USE:
                raise
            if tell is not None:
                tell(f"waiting: {error.what}")
                tell = None
            time.sleep(WAIT_SECONDS)
    try:
        yield lock
    finally:
        lock.release()


def _content(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read(4096))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _owner(content: dict[str, Any]) -> Owner:
    """The process that a lock names; one of nowhere if it names none."""
    pid, start = content.get("pid"), content.get("process_start")
    home = content.get("home")
    if home is None and content.get("host") == socket.gethostname():
        home = Owner.this().home
    if not isinstance(pid, int):
        return Owner("", 0, "")
    return Owner(str(home), pid, str(start))


def _why_stale(path: Path, content: dict[str, Any]) -> str | None:
    """Why the owner cannot be alive, or None where it may be."""
    try:
        changed = path.stat().st_mtime
    except FileNotFoundError:
        return "it has just ended"
    is_alive = _owner(content).is_alive()
    if is_alive is not None:
        return None if is_alive else "it ended without giving the folder back"
    job = os.environ.get("SLURM_JOB_ID")
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0") or 0)
    if job is not None and job == content.get("job") and restarts > 0:
        return "its SLURM job was put back in the queue"
    silent = _now(path) - changed
    if silent > STALE_AFTER_SECONDS:
        return f"no sign of life for {silent / 60:.0f} minutes"
    return None


def _now(path: Path) -> float:
    """The time by the clock that dates the files beside `path`: a server may have its own."""
    fresh = temporary_name(path)
    try:
        fresh.touch()
        return fresh.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink()
