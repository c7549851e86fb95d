"""Who works in a run folder: a file made exclusively, kept fresh, taken over when stale.

No `flock`: it means nothing on many network file systems. The lock is a file created exclusively,
and a thread renews its time of change while the owner lives.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from mim3d.foundation.errors import UserError

logger = logging.getLogger(__name__)

NAME = "lock.json"
RENEWED_EVERY_SECONDS = 30.0
STALE_AFTER_SECONDS = 300.0
"""Ten missed renewals: the owner's machine is gone, or was asleep."""


class FolderLock:
    """The right to write in a folder, from `take` to `release`.

    Args:
        folder: exists.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._token = uuid.uuid4().hex
        self._released = threading.Event()
        self.note: str | None = None
        """Set when a stale lock was taken over."""

    def take(self) -> None:
        """Takes the lock, over a stale one if need be.

        Raises:
            UserError: another living process holds it.
        """
        for _ in range(3):
            if self._create():
                thread = threading.Thread(target=self._renew, daemon=True)
                thread.start()
                return
            self._remove_stale()
        raise self._held({})

    def release(self) -> None:
        """Gives the lock back, if it is still ours."""
        self._released.set()
        if _content(self._path).get("token") == self._token:
            self._path.unlink(missing_ok=True)

    def _create(self) -> bool:
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(
                {
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    "process_start": _process_start(os.getpid()),
                    "since": time.strftime("%Y-%m-%d %H:%M:%S"),
                    "job": os.environ.get("SLURM_JOB_ID"),
                    "token": self._token,
                },
                file,
            )
        return True

    def _remove_stale(self) -> None:
        owner = _content(self._path)
        why = _why_stale(self._path, owner)
        if why is None:
            raise self._held(owner)
        # Renamed first: of several that find the lock stale, one moves it away.
        aside = self._path.with_name(f"{NAME}.{self._token}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._path, aside)
            aside.unlink()
            self.note = f"took over from process {owner.get('pid', '?')}: {why}"
            logger.info("%s: %s", self._path.parent, self.note)

    def _held(self, owner: dict[str, Any]) -> UserError:
        return UserError(
            f"run folder `{self._path.parent}` is in use by process {owner.get('pid', '?')} on "
            f"`{owner.get('host', '?')}` since {owner.get('since', '?')}",
            remedy="wait for it to end, or choose another --out",
            code="run-in-use",
        )

    def _renew(self) -> None:
        while not self._released.wait(RENEWED_EVERY_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._path)


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _why_stale(path: Path, owner: dict[str, Any]) -> str | None:
    """Why the owner cannot be alive, or None where it may be."""
    try:
        silent = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return "it has just ended"
    if silent > STALE_AFTER_SECONDS:
        return f"no sign of life for {silent / 60:.0f} minutes"
    if owner.get("host") == socket.gethostname() and isinstance(owner.get("pid"), int):
        start = _process_start(owner["pid"])
        if start is None or start != owner.get("process_start"):
            return "it ended without giving the folder back"
    job = os.environ.get("SLURM_JOB_ID")
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0") or 0)
    if job is not None and job == owner.get("job") and restarts > 0:
        return "its SLURM job was put back in the queue"
    return None


def _process_start(pid: int) -> str | None:
    """When a process of this machine began, so that a reused number is told apart; None: ended."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").is_file():
        try:
            # Field 22, counted behind the name, which may hold spaces and brackets.
            return stat.read_text().rpartition(")")[2].split()[19]
        except (OSError, IndexError):
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"
