"""A crop out of a volume on disk, against MONAI's reader and its cache in memory.

OMP_NUM_THREADS=1 python benchmarks/throughput/read_crops.py
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from script import run
from torch import Tensor

from mim3d.foundation.randomness import generator
from mim3d.workflows.throughput import monai
from mim3d.workflows.throughput.inputs import SIDE, Triple, synthetic
from mim3d.workflows.throughput.race import SHIPPED, TUNED, Contestant, Job, require

VOLUME: Triple = (256, 256, 160)
"""What crops are cut from, int16."""
CROP: Triple = (SIDE, SIDE, SIDE)
CHECKED = 3
"""Crops that are compared before the race."""
CHUNK = 32
"""Side of a store's chunk, what `data.origin_grid` is for."""
MANY = 50
"""Crops between two looks at the clock, where one takes about a millisecond."""


def jobs(device: torch.device) -> Iterator[Job]:
    """96³ voxels of a volume in the file's own intensities, float32, from a warm page cache.

    MONAI has no store: as shipped it reads the whole file for every crop; tuned it keeps the volume
    in memory as float32 (`CacheDataset`), which only helps cohorts that fit.
    """
    from mim3d.config.verbs import PreparationConfig, PrepareConfig
    from mim3d.data.prepare import prepare_store
    from mim3d.data.store import open_store
    from mim3d.data.store.writing import intensities

    with tempfile.TemporaryDirectory() as folder:
        file = write_volume(Path(folder) / "source" / "volume.nii.gz")
        settings = PreparationConfig(modality="ct", crop_to_body=False, workers=0)
        prepare_store(file.parent, Path(folder) / "store", PrepareConfig(settings))
        store = open_store(Path(folder) / "store")
        with store.open(store.cases[0]) as case:
            whole, _ = case.read((0, 0, 0), VOLUME)
            for grid, words in ((1, "anywhere"), (CHUNK, "on the grid of chunks")):

                def read(number: int, grid: int = grid) -> Tensor:
                    return torch.from_numpy(case.read_intensities(start(number, grid), CROP))

                def stored(number: int, grid: int = grid) -> Tensor:
                    return torch.from_numpy(case.read(start(number, grid), CROP)[0])

                def cut(number: int, grid: int = grid) -> Tensor:
                    box = whole[(slice(None), *slices(start(number, grid)))]
                    return torch.from_numpy(intensities(box, *case.scaling()))

                equality, others = monai.ABSENT, []
                if monai.has_monai():
                    others = their_crops(file, grid)
                    equality = same_crops([one.call for one in others] + [read, cut])
                same_crops([lambda n: read(n).to(torch.int16), stored])
                yield Job(
                    "crops",
                    f"{SIDE}³ of {' x '.join(map(str, VOLUME))} int16, {words}",
                    [
                        *others,
                        Contestant("mim3d: from the store, float32", read, equality, MANY),
                        Contestant("mim3d: from the store, int16", stored, equality, MANY),
                        Contestant("mim3d: volume kept in memory, int16", cut, equality, MANY),
                    ],
                )


def their_crops(file: Path, grid: int) -> list[Contestant]:
    """MONAI's reader and cropping, from the file and from memory."""
    transforms = monai.room("transforms")
    load = transforms.LoadImage(image_only=True, ensure_channel_first=True)
    kept = load(file)

    def crop(volume: Any, number: int) -> Tensor:
        first = start(number, grid)
        last = [low + side for low, side in zip(first, CROP, strict=True)]
        cut = transforms.SpatialCrop(roi_start=first, roi_end=last)(volume)
        found: Tensor = cut.as_tensor().contiguous()
        return found

    def read(number: int) -> Tensor:
        return crop(load(file), number)

    def cut(number: int) -> Tensor:
        return crop(kept, number)

    return [
        Contestant(f"{SHIPPED}: `LoadImage`, `SpatialCrop`", read, "reference"),
        Contestant(f"{TUNED}: volume kept in memory, float32", cut, "bit for bit", MANY),
    ]


def same_crops(calls: Sequence[Callable[[int], Any]]) -> str:
    """Compares some crops bit for bit."""
    for number in range(CHECKED):
        expected, *found = (call(number) for call in calls)
        require(all(torch.equal(one, expected) for one in found), f"crop {number}")
    return "bit for bit"


def start(number: int, grid: int) -> Triple:
    """First voxel of a crop, on a multiple of the grid; the same for all contestants."""
    draw = generator("crop", number)
    x, y, z = (grid * int(draw.integers(0, (side - SIDE) // grid + 1)) for side in VOLUME)
    return x, y, z


def slices(first: Triple) -> tuple[slice, slice, slice]:
    """The crop that begins there."""
    x, y, z = (slice(low, low + SIDE) for low in first)
    return x, y, z


def write_volume(path: Path) -> Path:
    """A synthetic CT as `.nii.gz`, axes to the right, front and top, 0.8 x 0.8 x 1.5 mm."""
    nibabel: Any = importlib.import_module("nibabel")
    path.parent.mkdir(parents=True)
    numbers = (400 * synthetic(VOLUME, 0)).round().numpy().astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(numbers, np.diag([0.8, 0.8, 1.5, 1.0])), path)
    return path


if __name__ == "__main__":
    run(__doc__, jobs)
