"""From a file to a network's input on a grid of 1.5 mm, and from a file to a store.

OMP_NUM_THREADS=1 python benchmarks/throughput/prepare.py
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from phantoms import write_ct
from resample import ORDERS
from script import run

from mim3d.config.verbs import PreparationConfig, PrepareConfig
from mim3d.data.files import read_volume
from mim3d.data.intensity import Normalisation
from mim3d.data.prepare import prepare_store
from mim3d.data.resample import Order, resample_to
from mim3d.workflows.throughput import monai
from mim3d.workflows.throughput.inputs import Triple
from mim3d.workflows.throughput.race import SHIPPED, Contestant, Job, require

SIZE: Triple = (256, 256, 100)
OLD_MM = (0.8, 0.8, 3.0)
NEW_MM = (1.5, 1.5, 1.5)
WINDOW_HU = (-175.0, 250.0)
TOLERANCE = 1e-5
"""Of the window; within the old grid, beyond which the two sides extend it in two ways."""


def jobs(device: torch.device) -> Iterator[Job]:
    """On the CPU whatever the device, one process, from a warm page cache."""
    size = " x ".join(map(str, SIZE))
    with tempfile.TemporaryDirectory() as folder:
        file = write_ct(Path(folder) / "source" / "volume.nii.gz", SIZE, OLD_MM)
        for order in ORDERS:
            if monai.has_monai():
                yield Job("prepare", f"{size} file to [0, 1], {order}", chain(file, order))

        fresh = itertools.count()

        def store(_: int) -> Any:
            rule = PreparationConfig(modality="ct", spacing_mm=NEW_MM, workers=0)
            return prepare_store(file.parent, Path(folder) / f"{next(fresh)}", PrepareConfig(rule))

        ours = Contestant("mim3d: `prepare_store`", store, "MONAI has no store: speed only")
        yield Job("prepare", f"{size} file to a store, 1.5 mm, linear", [ours])


def chain(file: Path, order: Order) -> list[Contestant]:
    """Read, turn to RAS+, resample, window: equal to MONAI on the grid that MONAI takes."""
    transforms = monai.room("transforms")
    theirs = transforms.Compose(
        [
            transforms.LoadImage(image_only=True),
            transforms.EnsureChannelFirst(),
            transforms.Orientation(axcodes="RAS", labels=None),
            transforms.Spacing(NEW_MM, **ORDERS[order][1]),
            transforms.ScaleIntensityRange(*WINDOW_HU, 0.0, 1.0, clip=True),
        ]
    )
    window = Normalisation("window", *WINDOW_HU)
    reference = theirs(file)
    affine, shape = reference.affine.numpy(), tuple(reference.shape[1:])

    def ours(_: int) -> NDArray[np.float32]:
        volume = read_volume(file)
        values = resample_to(volume.voxels, volume.affine, affine, shape, order)
        window.apply_in_place(values)
        return values

    apart = float(np.abs(ours(0) - reference.numpy())[within(file, affine, shape)].max())
    require(apart < TOLERANCE, f"{order}: {apart:.0e} of the window")
    name = "`LoadImage`, `Orientation`, `Spacing`, `ScaleIntensityRange`"
    return [
        Contestant(f"{SHIPPED}: {name}", lambda _: theirs(file), "reference"),
        Contestant("mim3d: read, resampled, windowed", ours, f"{apart:.0e} of the window"),
    ]


def within(file: Path, affine: NDArray[np.float64], shape: Triple) -> tuple[slice, ...]:
    """The voxels of a grid that lie between the outer voxel centres of the file's."""
    relation = np.linalg.inv(read_volume(file).affine) @ affine
    box = [slice(None)]
    for axis, (count, size) in enumerate(zip(shape, SIZE, strict=True)):
        places = relation[axis, axis] * np.arange(count) + relation[axis, 3]
        inside = np.flatnonzero((places >= -1e-6) & (places <= size - 1 + 1e-6))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)


if __name__ == "__main__":
    run(__doc__, jobs)
