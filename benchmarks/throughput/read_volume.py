"""A whole `.nii.gz` into an int16 array in RAS+, its check value compared, against `LoadImage`.

OMP_NUM_THREADS=1 python benchmarks/throughput/read_volume.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from phantoms import write_ct
from script import run

from mim3d.data.files import read_volume
from mim3d.workflows.throughput import monai
from mim3d.workflows.throughput.inputs import Triple
from mim3d.workflows.throughput.race import SHIPPED, Contestant, Job, require

SIZE: Triple = (512, 512, 160)


def jobs(device: torch.device) -> Iterator[Job]:
    """From a warm page cache, on the CPU whatever the device."""
    with tempfile.TemporaryDirectory() as folder:
        file = write_ct(Path(folder) / "volume.nii.gz", SIZE, (0.8, 0.8, 3.0))
        voxels = read_volume(file).voxels
        require(voxels.dtype == np.int16, f"voxels of {voxels.dtype}")
        others, equality = [], monai.ABSENT
        if monai.has_monai():
            load = monai.room("transforms").LoadImage(image_only=True)
            # MONAI leaves the file's axes as they are: left and back are ours turned round.
            theirs = load(file).numpy()[::-1, ::-1]
            require(np.array_equal(theirs, voxels[0]), "voxels")
            others, equality = (
                [Contestant(f"{SHIPPED}: `LoadImage`", lambda _: load(file), "reference")],
                "all voxels",
            )
            del theirs
        del voxels
        ours = Contestant("mim3d: `read_volume`", lambda _: read_volume(file), equality)
        what = f"{' x '.join(map(str, SIZE))} int16 `.nii.gz`, {file.stat().st_size / 1e6:.0f} MB"
        yield Job("read", what, [*others, ours], is_warm=True)


if __name__ == "__main__":
    run(__doc__, jobs)
