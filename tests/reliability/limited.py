"""Work in a forked child, perhaps under a limit of memory: what it said and what it held."""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Args:
        answer: what the work returned, of JSON types; None if it did not come to that.
        error: traceback of what it raised.
        signal: number of the signal that killed it; 0 is none.
        peak_bytes: most memory it held by the system's own mark.
        start_bytes: what it held before the work.
    """

    answer: Any
    error: str
    signal: int
    peak_bytes: int
    start_bytes: int


def in_child(work: Callable[[], Any], spare_bytes: int | None = None) -> Ended:
    """Forks, limits private memory to what is there now and `spare_bytes`, and works."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        content: dict[str, Any] = {"answer": None, "error": "", "start": 1024 * _status("VmRSS")}
        try:
            if spare_bytes is not None:
                limit = 1024 * _status("VmData") + spare_bytes
                resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
            content["answer"] = work()
        except BaseException:
            content["error"] = traceback.format_exc()
        content["peak"] = 1024 * _status("VmHWM")
        with os.fdopen(writing, "w") as pipe:
            json.dump(content, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    content = json.loads(text) if text else {"answer": None, "error": ""}
    peak, start = content.get("peak", 0), content.get("start", 0)
    return Ended(content["answer"], content["error"], signal, peak, start)


def _status(name: str) -> int:
    lines = STATUS.read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])
