"""Whole volumes in one piece of memory, streamed in ahead of need and out when their visit ends.

A thread reads volumes in the order in which the sampling plan asks for them. A volume is read once
a visit; the feed waits for it rather than drawing more crops from those that are there.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mim3d.data.batched import Volumes
from mim3d.data.visits import Visit
from mim3d.data.workers import shared_bytes
from mim3d.foundation.errors import ResourceError

AHEAD = 2
"""Volumes that are read beyond those the next steps need."""
SLAB_BYTES = 1 << 24
"""Voxels that are read at a time: a thread that reads holds up the others of its process."""

Needs = Callable[[int], Sequence[Visit]]


class Readable(Protocol):
    """A case whose voxels can be read in slabs."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Channels and voxels along x, y, z."""

    def read_slab(
        self, first: int, count: int, *, labels: bool
    ) -> tuple[NDArray[np.int16], NDArray[np.uint8] | None]:
        """Stored voxels `c x y z` and class indices of some planes along x."""

    def close(self) -> None:
        """Closes what it is read from."""


class Room:
    """Places for volumes: of their own sizes where all stay, else equal and used again.

    Args:
        voxels: of each volume that ever comes, in one channel.
        count: volumes at a time; None keeps every one.
    """

    def __init__(self, voxels: Sequence[int], count: int | None) -> None:
        self.largest = max(voxels)
        self.size = sum(voxels) if count is None else self.largest * count
        self._is_reused = count is not None
        self._left = len(voxels)
        self._free = [self.largest * place for place in reversed(range(count or 0))]
        self._next = 0

    def take(self, voxels: int) -> int | None:
        """Where the next volume begins, or None where there is no place."""
        if self._is_reused:
            return self._free.pop() if self._free else None
        begin, self._next = self._next, self._next + voxels
        self._left -= 1
        return begin

    @property
    def is_full(self) -> bool:
        """Whether every volume came to stay."""
        return not self._is_reused and self._left == 0

    def give_back(self, begin: int) -> None:
        """The volume there may be written over."""
        if self._is_reused:
            self._free.append(begin)


class Residency:
    """The volumes that the steps of one device need, in flat memory.

    Args:
        volumes: memory for them; filled by this.
        room: places in it.
        steps: the steps, in order.
        needs: visits that a step draws from.
        last_step: the last step of a visit; None where it never ends.
        open_case: gives the case of a visit.
    """

    def __init__(
        self,
        volumes: Volumes,
        room: Room,
        steps: range,
        needs: Needs,
        last_step: Callable[[Visit], int] | None,
        open_case: Callable[[Visit], Readable],
    ) -> None:
        self.volumes = volumes
        self._room = room
        self._steps = steps
        self._needs = needs
        self._last_step = last_step
        self._open_case = open_case
        self._places: dict[Visit, int] = {}
        self._ready: dict[Visit, Any] = {}
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self._link = _Link(volumes)
        self.most_resident = 0
        self.visits_read = 0

    def admit(self, step: int) -> dict[Visit, int]:
        """Waits until all that a step needs is there; says where each visit's volume begins.

        Raises:
            Exception: whatever went wrong while volumes were read.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._stream, daemon=True, name="residency")
            self._thread.start()
        visits = list(dict.fromkeys(self._needs(step)))
        with self._changed:
            self._changed.wait_for(
                lambda: self._error is not None or all(visit in self._ready for visit in visits)
            )
            if self._error is not None and not all(visit in self._ready for visit in visits):
                raise self._error
            for visit in visits:
                self._link.use(self._ready[visit])
            return {visit: self._places[visit] for visit in visits}

    def release(self, step: int) -> None:
        """The work of all steps up to this one is queued or done; visits that end go."""
        if self._last_step is None:
            return
        with self._changed:
            ended = [visit for visit in self._ready if self._last_step(visit) <= step]
            if ended:
                self._link.mark()
            for visit in ended:
                del self._ready[visit]
                self._room.give_back(self._places.pop(visit))
            self._changed.notify_all()

    def close(self) -> None:
        """Stops the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._link.finish()

    def _stream(self) -> None:
        try:
            for step in self._steps:
                # A window always has a visit to wait for; a whole cohort is there at some time.
                if self._is_closed or self._room.is_full:
                    return
                for visit in dict.fromkeys(self._needs(step)):
                    if visit not in self._places and not self._bring(visit):
                        return
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _bring(self, visit: Visit) -> bool:
        """Reads one volume into a free place; False where this was closed meanwhile."""
        case = self._open_case(visit)
        voxels = math.prod(case.shape[1:])
        with self._changed:
            place: int | None = None
            while place is None:
                if self._is_closed:
                    return False
                place = self._room.take(voxels)
                if place is None:
                    self._changed.wait()
            self._places[visit] = place
            self.most_resident = max(self.most_resident, len(self._places))
        try:
            done = self._fill(case, place)
        finally:
            case.close()
        with self._changed:
            self._ready[visit] = done
            self.visits_read += 1
            self._changed.notify_all()
            return not self._is_closed

    def _fill(self, case: Readable, place: int) -> Any:
        channels, planes, *rest = case.shape
        plane, volume = math.prod(rest), planes * math.prod(rest)
        begins = [place * channels + channel * volume for channel in range(channels)]
        many = max(32, SLAB_BYTES // (2 * channels * plane) // 32 * 32)
        with self._link.copying():
            for first in range(0, planes, many):
                count = min(many, planes - first)
                if self._is_closed:
                    break
                labels = self.volumes.labels
                stored, found = case.read_slab(first, count, labels=labels is not None)
                for begin, channel in zip(begins, stored, strict=True):
                    self._link.copy(self.volumes.voxels, begin + first * plane, channel)
                if labels is not None and found is not None:
                    self._link.copy(labels, place + first * plane, found)
            return self._link.done()


class _Link:
    """Copies to the memory of the volumes; on a GPU beside the training, in a stream of its own."""

    def __init__(self, volumes: Volumes) -> None:
        self._device = volumes.voxels.device
        self._stream: Any = None
        self._released: Any = None
        if self._device.type == "cuda":
            self._stream = _cuda().Stream(self._device)
            self.mark()

    def copying(self) -> AbstractContextManager[Any]:
        """The stream of copies, which waits for all who still read what will be written over."""
        if self._stream is None:
            return nullcontext()
        if self._released is not None:
            self._stream.wait_event(self._released)
        context: AbstractContextManager[Any] = torch.cuda.stream(self._stream)
        return context

    def copy(self, memory: Tensor, begin: int, values: NDArray[Any]) -> None:
        """Queues a copy; pinned memory keeps the values until it is done."""
        source = torch.from_numpy(np.ascontiguousarray(values)).flatten()
        target = memory[begin : begin + source.numel()]
        # Pinned memory comes from torch's pool, which reuses it only when the copy is done.
        target.copy_(source if self._stream is None else source.pin_memory(), non_blocking=True)

    def done(self) -> Any:
        """What a reader of the copied values waits for."""
        if self._stream is None:
            return None
        event = _cuda().Event()
        event.record(self._stream)
        return event

    def use(self, event: Any) -> None:
        """Lets the caller's stream wait for a copy, without waiting itself."""
        if event is not None:
            torch.cuda.current_stream(self._device).wait_event(event)

    def finish(self) -> None:
        """Waits for all copies: their memory may be freed now."""
        if self._stream is not None:
            self._stream.synchronize()

    def mark(self) -> None:
        """Notes that what the caller's stream was told until now reads what may be free next."""
        if self._stream is not None:
            self._released = _cuda().Event()
            self._released.record(torch.cuda.current_stream(self._device))


def _cuda() -> Any:
    """Torch's room for GPUs, which declares its types in part."""
    return torch.cuda


def fitting(
    voxels: Sequence[int],
    need: int | None,
    bytes_a_voxel: int,
    free: int | None,
    where: str,
) -> Room:
    """Room for the volumes, as many ahead of need as memory allows.

    Args:
        voxels: of every volume of the cohort, in one channel.
        need: volumes that must be there at once; None is all, each once.
        bytes_a_voxel: over channels and labels.
        free: bytes of memory, None where unknown.
        where: whose memory it is.

    Raises:
        ResourceError: not even those fit.
    """
    if need is None:
        room = Room(voxels, None)
    else:
        room = Room(voxels, need + AHEAD)
        if free is not None and room.size * bytes_a_voxel > free:
            room = Room(voxels, need)
    size = room.size * bytes_a_voxel
    if free is not None and size > free:
        many = len(voxels) if need is None else need
        what = "" if need is None else " of the largest size, a window of the cohort,"
        few = "`--data.window_cases` and `--data.max_crops_per_visit`"
        raise ResourceError(
            f"`data.feed resident` needs {size / 2**30:.1f} GiB for {many} volumes{what} and "
            f"{free / 2**30:.1f} GiB of {where} are free",
            remedy=f"draw from a window of fewer cases with {few}, or set `--data.feed store`, "
            "which reads each crop from disk",
            code="memory",
        )
    return room


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can be taken on a device, None where the system does not say."""
    if device.type != "cuda":
        return available_bytes()
    free, _ = torch.cuda.mem_get_info(device)
    # What torch keeps and does not use is free for us too.
    return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def present_device(device: torch.device) -> torch.device:
    """The device with its number: threads of their own begin on the first one."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def flat_memory(count: int, device: torch.device, *, shared: bool) -> Tensor:
    """So many bytes; `shared` with the processes that are started afterwards."""
    if shared:
        return shared_bytes(count)
    return torch.empty(count, dtype=torch.uint8, device=device)


def available_bytes() -> int | None:
    """Memory that a process can take without swapping, or None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None
