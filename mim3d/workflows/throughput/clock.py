"""One clock for everything that is timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

MOST_CALLS = 1000


def elapsed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a call: CPU time of the process, since others share the machine.

    On a GPU the time between two events, when all that was under way before is done.
    """
    if device.type != "cuda":
        began = time.process_time()
        call()
        return time.process_time() - began
    event: Any = torch.cuda.Event
    start, stop = event(enable_timing=True), event(enable_timing=True)
    torch.cuda.synchronize(device)
    start.record()
    call()
    stop.record()
    torch.cuda.synchronize(device)
    return float(start.elapsed_time(stop)) / 1e3


def fastest(call: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Seconds of the fastest call of as many as fit into `seconds`, 3 at least, after one more."""
    call()
    best, spent, calls = float("inf"), 0.0, 0
    while calls < 3 or spent < seconds:
        took = elapsed(call, device)
        # A clock that did not tick says nothing.
        best, spent, calls = min(best, max(took, 1e-9)), spent + took, calls + 1
        if calls >= MOST_CALLS:
            break
    return best
