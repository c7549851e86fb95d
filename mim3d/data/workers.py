"""Processes that make batches ahead of the training process, and hand them over in shared memory.

Step k of a range is made by worker k modulo their number, in one of the few slots of that worker:
the order of the batches, and what runs ahead, never depends on who is faster. A worker ignores the
signals that its parent handles, and dies with it.
"""

from __future__ import annotations

import atexit
import mmap
import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch
from torch import Tensor

from mim3d.data.batch import CropBatch
from mim3d.foundation.errors import ResourceError

SLOTS = 2
"""Steps a worker may be ahead."""
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
"""Fork shares volumes that are held in memory; macOS libraries do not survive it."""
ALIGNMENT = 64
PATIENCE = 5.0
"""Seconds after which an idle worker looks whether its parent is still there."""

Make = Callable[[int], list[CropBatch]]
Layout = list[dict[str, object]]


@dataclass(frozen=True)
class _Part:
    """Where one tensor lies in a slot."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class _Failure:
    """What was raised in a worker; a traceback does not cross processes, so its text does."""

    error: Exception
    trace: str


class WorkerError(Exception):
    """The traceback in a worker process, as the cause of what it raised."""


def made_ahead(
    make: Make,
    steps: range,
    *,
    workers: int,
    slot_bytes: int,
    describe: Callable[[int], str],
    start_method: str = START_METHOD,
) -> Iterator[tuple[int, list[CropBatch]]]:
    """What `make` gives for every step, in order, made by worker processes.

    Args:
        make: makes the batches of one step; runs in the workers.
        steps: the steps.
        workers: number of processes, at least 1.
        slot_bytes: what the batches of one step need at most.
        describe: what a step's crops are, for the message when a worker dies.
        start_method: `fork` or `spawn`.

    Yields:
        A step and its batches; they own their memory.

    Raises:
        ResourceError: a worker process died.
        Exception: what `make` raised in a worker, caused by a `WorkerError` with its traceback.
    """
    crew = [_Worker(make, slot_bytes, start_method) for _ in range(min(workers, len(steps)))]

    def ask(number: int) -> None:
        if number < len(steps):
            crew[number % len(crew)].ask(steps[number], number // len(crew) % SLOTS)

    try:
        for number in range(SLOTS * len(crew)):
            ask(number)
        for number, step in enumerate(steps):
            batches = crew[number % len(crew)].receive(partial(describe, step))
            ask(number + SLOTS * len(crew))
            yield step, batches
    finally:
        for worker in crew:
            worker.close()


class _Worker:
    """One process with its slots, as the parent sees it."""

    def __init__(self, make: Make, slot_bytes: int, start_method: str) -> None:
        context = multiprocessing.get_context(start_method)
        self._slots = [_shared_bytes(slot_bytes, start_method) for _ in range(SLOTS)]
        self._connection, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(  # type: ignore[attr-defined]
            target=_work, args=(make, theirs, self._slots, os.getpid()), daemon=True
        )
        self._asked: list[int] = []
        with warnings.catch_warnings():
            # Python 3.12 warns of forking beside threads. The child starts no threads and takes
            # no lock of the parent: it reads files and computes on one thread.
            warnings.filterwarnings("ignore", "This process .* is multi-threaded")
            self._process.start()
        theirs.close()
        atexit.register(self.close)  # before multiprocessing waits for its daemons

    def ask(self, step: int, slot: int) -> None:
        """Hands a step to the worker."""
        self._asked.append(slot)
        # A worker that has died is noticed, with its signal, when its answer is due.
        try:
            self._connection.send((step, slot))
        except OSError:
            return

    def receive(self, describe: Callable[[], str]) -> list[CropBatch]:
        """Waits for the oldest step that was asked for."""
        wait([self._connection, self._process.sentinel])
        try:
            if not self._connection.poll():
                raise EOFError
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise self._died(describe()) from None
        slot = self._slots[self._asked.pop(0)]
        if isinstance(answer, _Failure):
            raise answer.error from WorkerError(answer.trace)
        return _unpack(answer, slot)

    def _died(self, crops: str) -> ResourceError:
        self._process.join()
        code = self._process.exitcode or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return ResourceError(
            f"a worker process {how} while it made {crops}",
            remedy="most often memory ran out: set fewer `--data.workers`; 0 shows other errors",
            code="worker-died",
        )

    def close(self) -> None:
        """Ends the process at once; it only reads, so nothing is left half done."""
        atexit.unregister(self.close)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._connection.close()


def _work(make: Make, connection: Connection, slots: list[Tensor], parent: int) -> None:
    # The parent decides what an interruption means and ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    while True:
        while not connection.poll(PATIENCE):
            if os.getppid() != parent:
                return
        try:
            step, slot = connection.recv()
            connection.send(_answer(make, step, slots[slot]))
        except (EOFError, OSError):
            return


def _answer(make: Make, step: int, slot: Tensor) -> Layout | _Failure:
    try:
        return _pack(make(step), slot)
    except Exception as error:
        return _Failure(error, traceback.format_exc())


def _shared_bytes(count: int, start_method: str) -> Tensor:
    if start_method == "fork":
        # Anonymous memory is not bounded by /dev/shm, which is 64 MB in many containers.
        return torch.frombuffer(mmap.mmap(-1, count), dtype=torch.uint8)
    shared = torch.empty(count, dtype=torch.uint8)
    shared.share_memory_()  # type: ignore[no-untyped-call]
    return shared


def _pack(batches: list[CropBatch], slot: Tensor) -> Layout:
    """Copies every tensor into the slot; returns what is needed to find them again."""
    offset = 0
    layout: Layout = []
    for batch in batches:
        entry: dict[str, object] = {}
        for field in fields(batch):
            value = getattr(batch, field.name)
            if isinstance(value, Tensor):
                part = _Part(offset, tuple(value.shape), value.dtype)
                _view(slot, part).copy_(value)
                offset += -(-value.nbytes // ALIGNMENT) * ALIGNMENT
                entry[field.name] = part
            else:
                entry[field.name] = value
        layout.append(entry)
    return layout


def _unpack(layout: Layout, slot: Tensor) -> list[CropBatch]:
    """The batches in memory of their own: the slot is filled again while they are in use."""
    return [
        CropBatch(
            **{  # type: ignore[arg-type]
                name: _view(slot, value).clone() if isinstance(value, _Part) else value
                for name, value in entry.items()
            }
        )
        for entry in layout
    ]


def _view(slot: Tensor, part: _Part) -> Tensor:
    count = part.dtype.itemsize
    for length in part.shape:
        count *= length
    return slot[part.offset : part.offset + count].view(part.dtype).view(part.shape)
