"""Batches from one worker process to the training: our shared slots against torch's `DataLoader`.

    OMP_NUM_THREADS=1 python benchmarks/throughput/transport.py
    taskset -c 0 python benchmarks/throughput/transport.py --clock cpu

Both workers cut the same crops out of the same volume in memory. The default clock is the wall's:
the worker's part counts, so leave the machine alone. `--clock cpu` counts the training process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from script import measure, parser_of
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mim3d.data.batch import CropBatch
from mim3d.data.workers import batch_memory, made_ahead
from mim3d.foundation.randomness import generator
from mim3d.workflows.throughput import race
from mim3d.workflows.throughput.inputs import SIDE, Triple, synthetic
from mim3d.workflows.throughput.race import TUNED, Contestant, Job, require

VOLUME: Triple = (160, 160, 160)
COUNT = 8
"""Crops of a batch."""
MANY = 20
"""Batches between two looks at the clock."""
CHECKED = 4
ENDLESS = 10**6
LOADER = f"{TUNED}: torch's `DataLoader`, 1 worker"
"""What MONAI's loader is, too."""


def jobs(device: torch.device) -> Iterator[Job]:
    """Float32 crops of one volume, batch after batch."""
    volume = (400 * synthetic(VOLUME, 0)).round().to(torch.int16)
    theirs, ours = their_batches(volume), our_batches(volume)
    for number in range(CHECKED):
        require(torch.equal(next(theirs), next(ours)), f"batch {number}")
    yield Job(
        "transport",
        f"{COUNT} crops of {SIDE}³ float32, one worker",
        [
            Contestant(LOADER, lambda _: next(theirs), "reference", MANY),
            Contestant("mim3d: shared slots", lambda _: next(ours), "bit for bit", MANY),
        ],
    )


def crop(volume: Tensor, number: int) -> Tensor:
    """The int16 voxels of one crop of the sequence, a view."""
    draw = generator("transport", number)
    x, y, z = (int(draw.integers(0, side - SIDE + 1)) for side in VOLUME)
    return volume[None, x : x + SIDE, y : y + SIDE, z : z + SIDE]


class Crops(Dataset[Tensor]):
    """The sequence as torch wants it.

    Args:
        volume: `x y z`, int16.
    """

    def __init__(self, volume: Tensor) -> None:
        self.volume = volume

    def __len__(self) -> int:
        return ENDLESS * COUNT

    def __getitem__(self, index: int) -> Tensor:
        return crop(self.volume, index).float()


def their_batches(volume: Tensor) -> Iterator[Tensor]:
    """Batches in order, by the library's own collation and queue."""
    loader = DataLoader(Crops(volume), batch_size=COUNT, num_workers=1, shuffle=False)
    return iter(loader)


def our_batches(volume: Tensor) -> Iterator[Tensor]:
    """Batches in order, by `mim3d.data.workers`."""
    affine = torch.eye(4, dtype=torch.float64).expand(COUNT, 4, 4)

    def make(step: int) -> list[CropBatch]:
        voxels = batch_memory((COUNT, 1, SIDE, SIDE, SIDE))
        for place, out in enumerate(voxels):
            out.copy_(crop(volume, step * COUNT + place))
        return [CropBatch(voxels, affine, ("synthetic",) * COUNT, torch.arange(COUNT))]

    slot_bytes = COUNT * SIDE**3 * 4 + 4096
    made = made_ahead(make, range(ENDLESS), workers=1, slot_bytes=slot_bytes, describe=str)
    return (batches[0].voxels for _, batches in made)


def wall(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a call by the clock on the wall."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    """Reads the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    clock = wall if options.clock == "wall" else race.elapsed
    with mock.patch.object(race, "elapsed", clock):
        measure({f"transport_{options.clock}": jobs}, options)


if __name__ == "__main__":
    main()
