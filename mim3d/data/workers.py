"""Processes that make batches ahead of the training process, and hand them over in shared memory.

Step k of a range is made by worker k modulo their number, in one of the few slots of that worker:
the order of the batches, and what runs ahead, never depends on who is faster. A worker ignores the
signals that its parent handles, and dies with it.
"""

from __future__ import annotations

import atexit
import math
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
from typing import Any, TypeVar

import torch
from torch import Tensor

from mim3d.data.memory import POOL
from mim3d.foundation.errors import ResourceError

SLOTS = 2
"""Steps a worker may be ahead."""
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
"""Fork shares volumes that are held in memory; macOS libraries do not survive it."""
IGNORED = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGHUP")
"""Schedulers send these to all processes of a job."""
ALIGNMENT = 64
PATIENCE = 5.0
"""Seconds after which an idle worker looks whether its parent is still there."""

Made = TypeVar("Made")
"""What workers make: frozen dataclasses of tensors and of what is small, `CropBatch` for one."""
Layout = list[tuple[type, dict[str, object]]]


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
    make: Callable[[Any], list[Made]],
    steps: range,
    *,
    workers: int,
    slot_bytes: int,
    describe: Callable[[int], str],
    start_method: str = START_METHOD,
    admit: Callable[[int], Any] | None = None,
) -> Iterator[tuple[int, list[Made]]]:
    """What `make` gives for every step, in order, made by worker processes.

    Args:
        make: makes the batches of one step; runs in the workers.
        steps: the steps.
        workers: number of processes, at least 1.
        slot_bytes: what the batches of one step need at most.
        describe: what a step's crops are, for the message when a worker dies.
        start_method: `fork` or `spawn`.
        admit: called here before a step is handed to a worker; `make` is then given the step and
            what this returned.

    Yields:
        A step and its batches; they own their memory.

    Raises:
        ResourceError: a worker process died.
        Exception: what `make` raised in a worker, caused by a `WorkerError` with its traceback.
    """
    crew = [_Worker(make, slot_bytes, start_method) for _ in range(min(workers, len(steps)))]

    def ask(number: int) -> None:
        if number < len(steps):
            step = steps[number]
            job = step if admit is None else (step, admit(step))
            crew[number % len(crew)].ask(job, number // len(crew) % SLOTS)

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

    def __init__(
        self, make: Callable[[Any], list[Any]], slot_bytes: int, start_method: str
    ) -> None:
        context = multiprocessing.get_context(start_method)
        self._slots = [shared_bytes(slot_bytes, start_method) for _ in range(SLOTS)]
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

    def ask(self, job: Any, slot: int) -> None:
        """Hands a step to the worker."""
        self._asked.append(slot)
        # A worker that has died is noticed, with its signal, when its answer is due.
        try:
            self._connection.send((job, slot))
        except OSError:
            return

    def receive(self, describe: Callable[[], str]) -> list[Any]:
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


def _work(
    make: Callable[[Any], list[Any]], connection: Connection, slots: list[Tensor], parent: int
) -> None:
    # The parent decides what an interruption means and ends its workers itself.
    for name in IGNORED:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    torch.set_num_threads(1)
    while True:
        while not connection.poll(PATIENCE):
            if os.getppid() != parent:
                return
        try:
            job, slot = connection.recv()
            connection.send(_answer(make, job, slots[slot]))
        except (EOFError, OSError):
            return


def _answer(make: Callable[[Any], list[Any]], job: Any, slot: Tensor) -> Layout | _Failure:
    global _slot
    _slot = _Slot(slot)
    try:
        return _pack(make(job), _slot)
    except Exception as error:
        return _Failure(error, traceback.format_exc())


def shared_bytes(count: int, start_method: str = START_METHOD) -> Tensor:
    """Memory that processes share which are started afterwards, so many bytes."""
    if start_method == "fork":
        # Anonymous memory is not bounded by /dev/shm, which is 64 MB in many containers.
        return torch.frombuffer(mmap.mmap(-1, count), dtype=torch.uint8)
    shared = torch.empty(count, dtype=torch.uint8)
    shared.share_memory_()  # type: ignore[no-untyped-call]
    return shared


class _Slot:
    """Shared memory that is given away piece by piece."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self._used = 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[_Part, Tensor] | None:
        """A tensor in the slot and where it lies, or None where it is full."""
        part = _Part(self._used, shape, dtype)
        count = math.prod(shape) * dtype.itemsize
        if part.offset + count > len(self.memory):
            return None
        self._used += -(-count // ALIGNMENT) * ALIGNMENT
        return part, _view(self.memory, part)

    def find(self, tensor: Tensor) -> _Part | None:
        """Where a tensor lies, if it was taken from here."""
        offset = tensor.data_ptr() - self.memory.data_ptr()
        is_here = 0 <= offset < len(self.memory) and tensor.is_contiguous()
        return _Part(offset, tuple(tensor.shape), tensor.dtype) if is_here else None


_slot: _Slot | None = None
"""In a worker: where what it makes just now will be handed over."""


def batch_memory(shape: tuple[int, ...]) -> Tensor:
    """Float32 memory for a batch: in a worker that which is handed over, without a copy."""
    taken = None if _slot is None else _slot.take(shape, torch.float32)
    return POOL.take(shape) if taken is None else taken[1]


def _pack(batches: list[Any], slot: _Slot) -> Layout:
    """Copies every tensor into the slot; returns what is needed to find them again."""
    layout: Layout = []
    for batch in batches:
        entry: dict[str, object] = {}
        for field in fields(batch):
            value = getattr(batch, field.name)
            entry[field.name] = _placed(value, slot) if isinstance(value, Tensor) else value
        layout.append((type(batch), entry))
    return layout


def _placed(tensor: Tensor, slot: _Slot) -> _Part:
    part = slot.find(tensor)
    if part is None:
        taken = slot.take(tuple(tensor.shape), tensor.dtype)
        if taken is None:
            raise ValueError("a batch is larger than its slot")
        part, place = taken
        place.copy_(tensor)
    return part


def _unpack(layout: Layout, slot: Tensor) -> list[Any]:
    """The batches in memory of their own: the slot is filled again while they are in use."""
    return [
        kind(
            **{
                name: _copied(_view(slot, value)) if isinstance(value, _Part) else value
                for name, value in entry.items()
            }
        )
        for kind, entry in layout
    ]


def _copied(tensor: Tensor) -> Tensor:
    return POOL.take(tensor.shape).copy_(tensor) if _is_large(tensor) else tensor.clone()


def _is_large(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.ndim == 5


def _view(memory: Tensor, part: _Part) -> Tensor:
    count = math.prod(part.shape) * part.dtype.itemsize
    return memory[part.offset : part.offset + count].view(part.dtype).view(part.shape)
