"""Which process something on a disk belongs to, so that any other can tell whether it still lives.

A number alone does not say it: numbers are given again, and a file system may be shared by
machines, or by containers that count their processes apart.
"""

from __future__ import annotations

import functools
import hashlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

DEAD = "ZX"
"""States of a process that has ended and waits for its parent."""


@dataclass(frozen=True)
class Owner:
    """A process as others see it.

    Args:
        home: digest of its machine's name, the machine's last start, and who counts its processes.
        pid: its number there.
        start: when it began, in ticks; `0` where the system does not say.
    """

    home: str
    pid: int
    start: str

    @classmethod
    def this(cls) -> Owner:
        """The process that asks."""
        pid = os.getpid()
        return cls(_home(pid), pid, process_start(pid) or "0")

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        """What `str` of an owner was; None for any other text."""
        parts = text.split("-")
        if len(parts) != 3 or not (parts[1].isdecimal() and parts[2].isdecimal()):
            return None
        return cls(parts[0], int(parts[1]), parts[2])

    def __str__(self) -> str:
        return f"{self.home}-{self.pid}-{self.start}"

    def is_alive(self) -> bool | None:
        """Whether it lives; None where it cannot be told from here."""
        if self.home != _home(os.getpid()):
            return None
        return process_start(self.pid) == self.start


def process_start(pid: int) -> str | None:
    """When a process of this machine began; None if it has ended, `0` if the system hides it."""
    if Path("/proc/self/stat").is_file():
        try:
            # Behind the name, which may hold spaces and brackets: state is field 3, start 22.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return None if fields[0] in DEAD else fields[19]
        except (OSError, IndexError):
            return None
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass
    return "0"


@functools.lru_cache(maxsize=1)
def _home(pid: int) -> str:
    """Eight digits. By process, since a child may be counted elsewhere than its parent."""
    parts = [socket.gethostname(), _boot(), _namespace(pid)]
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=4).hexdigest()


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""
