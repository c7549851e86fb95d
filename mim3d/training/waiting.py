"""How long processes of one training wait for each other, and what is said when it is in vain.

Where all work, waiting is short: a process that is later than the others by minutes hangs. Where
the first one works alone (it validates, it writes), the others wait as long as its heart beats.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
import traceback
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mim3d.foundation.errors import ProcessLost

_DIST: Any = dist
"""Some of what it exports is hidden from type checkers."""
WARM_UP = timedelta(minutes=60)
"""How long a process waits before the first steps are made: meanwhile volumes are loaded and
kernels compiled, and one may be much later than another."""
WARM_UP_STEPS = 3
BEATS = 4
"""Heartbeats in the time after which a process that gives none is taken for dead."""
SLOWEST_BEAT_SECONDS = 5.0
GLOO_WORDS = ("gloo", "pair closure", "closed by peer")
"""In its errors, which have no class of their own."""
LOOK_SECONDS = (0.005, 0.2)
"""First and longest pause between two looks at whether the first process is done."""

_rounds = itertools.count(1)
"""How often the first process has worked alone since they joined; the same in all of them."""


def join(rank: int, world: int, backend: str) -> None:
    """Brings the processes together; what stands in the environment says where they meet.

    torchrun lets the processes it restarts meet in the store of the dead ones, whose addresses
    they would read (pytorch#135712): each try has names of its own in it.

    Args:
        rank: number of this process.
        world: number of all.
        backend: `gloo` or `nccl`.
    """
    global _rounds
    _rounds = itertools.count(1)
    store, _, _ = next(_DIST.rendezvous("env://", rank, world, timeout=WARM_UP))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    own = _DIST.PrefixStore(f"mim3d/{attempt}", store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=world, timeout=WARM_UP)


class Patience:
    """Waiting of one process for the others.

    Args:
        rank: number of this process.
        world: number of all.
    """

    def __init__(self, rank: int, world: int) -> None:
        self._rank, self._world = rank, world
        self._seconds = WARM_UP.total_seconds()

    def shorten(self, seconds: float) -> None:
        """From now on no process waits longer, neither in a collective nor for a heartbeat."""
        self._seconds = seconds
        # Of all groups with the default one's backend; `init_process_group` is the only public way.
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds))

    @contextlib.contextmanager
    def while_first_works(self) -> Iterator[None]:
        """In the first process its heart beats inside; the others wait until it is through.

        All processes must come here equally often.

        Raises:
            ProcessLost: the first process gives no sign of life.
        """
        number = next(_rounds)
        if self._rank == 0:
            with self._beating(number):
                yield
        else:
            self._wait(number)
            yield

    @contextlib.contextmanager
    def _beating(self, number: int) -> Iterator[None]:
        store, is_over = _store(), threading.Event()
        pause = min(SLOWEST_BEAT_SECONDS, self._seconds / BEATS)

        def beat() -> None:
            while not is_over.wait(pause):
                # Without a store the others are gone, which the next collective tells.
                with contextlib.suppress(RuntimeError):
                    store.add("beats", 1)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()
            with contextlib.suppress(RuntimeError):
                store.add("rounds", 1)

    def _wait(self, number: int) -> None:
        store, (pause, longest) = _store(), LOOK_SECONDS
        beats, heard = -1, time.monotonic()
        # Adding nothing reads a counter without waiting for it.
        while store.add("rounds", 0) < number:
            now, found = time.monotonic(), store.add("beats", 0)
            if found != beats:
                beats, heard = found, now
            elif now - heard > self._seconds:
                raise ProcessLost(
                    f"process {self._rank} of {self._world} has had no sign of life from the first "
                    f"one for {self._seconds:g} s",
                    remedy=REMEDY,
                    code="process-lost",
                )
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def lost(self, error: BaseException) -> ProcessLost | None:
        """What to say of an error that means another process is gone or hangs; else None."""
        is_gloo = isinstance(error, RuntimeError) and any(w in str(error) for w in GLOO_WORDS)
        if self._world == 1 or not (is_gloo or isinstance(error, dist.DistError)):
            return None
        is_silent = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        why = f"waited {self._seconds:g} s for" if is_silent else "lost its connection to"
        return ProcessLost(
            f"process {self._rank} of {self._world} {why} another one, in {place(error)}",
            remedy=REMEDY,
            code="process-lost",
        )


REMEDY = (
    "the same command goes on from the last checkpoint; `torchrun --max-restarts` does so by "
    "itself; look for the first error among the processes, or raise "
    "`training.collective_timeout_seconds`"
)


def stack(error: BaseException) -> list[str]:
    """Where an error came from, outermost first: `loop.py:290 _agree`; a log keeps no folders."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]


def place(error: BaseException) -> str:
    """The innermost place of mim3d in an error's stack."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "mim3d" in Path(f.filename).parts] or list(frames)
    return f"`{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].name}`" if ours else "`?`"


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def backend_of(device: torch.device) -> str:
    """What processes on this kind of device talk through."""
    return "nccl" if device.type == "cuda" else "gloo"
