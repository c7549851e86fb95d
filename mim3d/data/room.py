"""Room for whole volumes: what is free, how many fit, and where each of them lies."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mim3d.foundation.errors import ResourceError
from mim3d.foundation.machine import available_bytes

AHEAD = 2
"""Volumes that are read beyond those the next steps need."""
RESERVE = 0.2
"""Part of a GPU's memory that volumes leave alone: activations come after them."""


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


def fitting(
    voxels: Sequence[int],
    need: int | None,
    bytes_a_voxel: int,
    free: int | None,
    device: torch.device,
) -> Room:
    """Room for the volumes, as many ahead of need as memory allows.

    Args:
        voxels: of every volume of the cohort, in one channel.
        need: volumes that must be there at once; None is all, each once.
        bytes_a_voxel: over channels and labels.
        free: bytes of memory (`free_bytes`), None where unknown.
        device: whose memory it is.

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
        on_gpu = device.type == "cuda"
        kept = f" beside the {RESERVE:.0%} kept for the training" if on_gpu else ""
        raise ResourceError(
            f"`data.feed resident` needs {size / 2**30:.1f} GiB for {many} volumes{what} and "
            f"{free / 2**30:.1f} GiB of the memory of `{device}` are free{kept}",
            remedy=remedy(on_gpu=on_gpu),
            code="memory",
        )
    return room


def remedy(*, on_gpu: bool) -> str:
    """What helps where volumes do not fit."""
    host = "keep them in the machine's memory with `--data.resident_on host`, " if on_gpu else ""
    return (
        "draw from a window of fewer cases with `--data.window_cases` and "
        f"`--data.max_crops_per_visit`, {host}or set `--data.feed store`, which reads each crop "
        "from disk"
    )


def free_bytes(device: torch.device) -> int | None:
    """Bytes that volumes can take on a device, None where the system does not say."""
    if device.type != "cuda":
        return available_bytes()
    free, total = torch.cuda.mem_get_info(device)
    # What torch keeps and does not use is free for us too.
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(int(free - RESERVE * total), 0)
