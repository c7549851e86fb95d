"""Whole volumes in one piece of memory, streamed in ahead of need and out when their visit ends.

A thread reads volumes in the order in which the sampling plan asks for them. A volume is read once
a visit; the feed waits for it rather than drawing more crops from those that are there.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mim3d.data.batched import Volumes
from mim3d.data.room import Room
from mim3d.data.visits import Visit
from mim3d.data.workers import shared_bytes

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
        self._released = steps.start - 1
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
            self._released = step
            ended = [visit for visit in self._ready if self._has_ended(visit)]
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
                    if self._is_missing(visit) and not self._bring(visit):
                        return
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _is_missing(self, visit: Visit) -> bool:
        """Whether a visit has still to be read. One that has not cannot end before it is."""
        with self._changed:
            # The loop may be done with this step already, and with the visits that were read for
            # it: read again, they would hold a place that the loop waits for.
            return visit not in self._places and not self._has_ended(visit)

    def _has_ended(self, visit: Visit) -> bool:
        return self._last_step is not None and self._last_step(visit) <= self._released

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
