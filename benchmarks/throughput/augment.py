"""Augmentation of a batch against MONAI's transforms, sample by sample, with the same numbers (P7).

    THP_MEM_ALLOC_ENABLE=1 OMP_NUM_THREADS=1 python benchmarks/throughput/augment.py
    python benchmarks/throughput/augment.py --device cuda

MONAI is given crops in memory; ours are cut out of the volume first, since they are interpolated
from what lies around them. Where a map leads out of the crop the two differ by design, so voxels
are compared in the middle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from script import run
from torch import Tensor

from mim3d.config.data import AugmentationConfig, DataConfig
from mim3d.data import augment
from mim3d.data.batched import VolumeFacts, Volumes, cut_batch
from mim3d.data.batched_intensity import change_intensities
from mim3d.data.crop_reading import cut_crop
from mim3d.data.crops import CropPlan
from mim3d.data.numbers import draw_numbers
from mim3d.data.sampling import SamplingPlan
from mim3d.foundation.randomness import RandomStream
from mim3d.workflows.throughput import monai
from mim3d.workflows.throughput.inputs import SIDE, Triple, synthetic
from mim3d.workflows.throughput.race import SHIPPED, Contestant, Job, require

VOLUME: Triple = (192, 192, 160)
CROP: Triple = (SIDE, SIDE, SIDE)
STEP = 3
BATCHES = {"cpu": 8, "cuda": 256}
"""Crops of a batch."""
JOBS = {
    "zoom": AugmentationConfig(affine_probability=1.0, zoom=0.15, stretch=0.05),
    "rotation and zoom": AugmentationConfig(
        affine_probability=1.0, rotation_degrees=(15.0, 15.0, 15.0), zoom=0.15
    ),
    "flips, contrast, offset": AugmentationConfig(
        flip_axes=("x", "y", "z"), scale_intensity=0.2, shift_intensity=0.1
    ),
}
EVERYTHING = AugmentationConfig(
    flip_axes=("x", "y", "z"), turn_plane=("x", "y"), turn_probability=0.5,
    affine_probability=1.0, rotation_degrees=(15.0, 15.0, 15.0), zoom=0.15, scale_intensity=0.1,
    shift_intensity=0.1, gamma=0.3, noise=0.1, blur=1.0,
)  # fmt: skip


class Held:
    """One volume in memory, normalised from -1000 to 1000; what crops are cut from."""

    case_id, air = "volume", None
    spacing_mm = (1.0, 1.0, 1.0)
    affine: NDArray[np.float64] = np.eye(4)

    def __init__(self) -> None:
        self.stored = (400 * synthetic(VOLUME, 0)).round().numpy().astype(np.int16)[None]
        self.shape = self.stored.shape
        rule = np.array([[1.0], [0.0], [-1000.0], [1000.0], [-1000.0], [2000.0]])
        self.facts = VolumeFacts(self.case_id, VOLUME, self.affine, rule, None)

    def read(self, start: Any, size: Any, *, labels: bool) -> tuple[NDArray[np.int16], None]:
        """Stored voxels of a box."""
        box = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
        return self.stored[(slice(None), *box)], None

    def normalise(
        self, stored: NDArray[np.int16], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Stored voxels in normalised units."""
        values = np.empty(stored.shape, np.float32) if out is None else out
        np.copyto(values, stored)
        np.clip(values, -1000.0, 1000.0, out=values)
        values += 1000.0
        values /= 2000.0
        return values


class Work:
    """One batch of the sampling plan and what happens to it.

    Args:
        config: of the augmentation.
        device: where whole batches are cut.
    """

    def __init__(self, config: AugmentationConfig, device: torch.device) -> None:
        self.held, self.device, self.config = Held(), device, config
        self.count = BATCHES[device.type]
        case: Any = self.held
        self.plan = SamplingPlan(
            ["volume"], DataConfig(crop_size=CROP), seed=0, batch_size=self.count,
            open_case=lambda _: case,
        )  # fmt: skip
        self.volumes = Volumes(torch.from_numpy(self.held.stored).flatten().to(device), None)

    def drawn(self, number: int) -> list[tuple[CropPlan, augment.AugmentationPlan]]:
        """Places and changes of the crops of a step."""
        random = RandomStream(0, number)
        return [
            (self.plan.draw(number, i),
             augment.draw(self.config, random.generator(i, "augment/0")))
            for i in range(self.count)
        ]  # fmt: skip

    def whole(self, number: int) -> Tensor:
        """Ours: one pass over the batch."""
        numbers = draw_numbers(self.plan, self.config, number, range(self.count))
        facts = [self.held.facts] * self.count
        cut = cut_batch(self.volumes, [0] * self.count, facts, numbers, CROP)
        return change_intensities(cut.voxels, cut.valid, None, numbers)[0]

    def single(self, number: int) -> Tensor:
        """Ours: crop by crop, as a worker does."""
        case: Any = self.held
        voxels = torch.empty((self.count, 1, *CROP))
        for out, (place, change) in zip(voxels, self.drawn(number), strict=True):
            crop = cut_crop(case, place, warp=change.warp_matrix)
            augment.apply(change, crop, out=out)
        return voxels


def jobs(device: torch.device) -> Iterator[Job]:
    """Zoom, affine, and flips with intensity; on a GPU everything at once too."""
    for name, config in JOBS.items():
        work = Work(config, device)
        contestants, equality = [], monai.ABSENT
        if monai.has_monai() and device.type == "cpu":
            contestants = [their_batch(work)]
            equality = compare(work, contestants[0].call)
        if device.type == "cpu":
            contestants.append(Contestant("mim3d: crop by crop", work.single, equality))
        contestants.append(Contestant("mim3d: whole batch", work.whole, equality))
        yield Job("augment", f"{name}, {work.count} crops of {SIDE}³", contestants)
    config = EVERYTHING if device.type == "cuda" else replace(EVERYTHING, affine_probability=0.2)
    work = Work(config, device)
    contestants = [
        Contestant("mim3d: whole batch", work.whole, "tests compare it with single crops")
    ]
    yield Job("augment", f"everything, {work.count} crops of {SIDE}³", contestants)


def their_batch(work: Work) -> Contestant:
    """MONAI's transforms with our numbers on crops that are cut and normalised already."""
    transforms = monai.room("transforms")
    case: Any = work.held
    given = {
        number: [(cut_crop(case, place).voxels, change) for place, change in work.drawn(number)]
        for number in range(STEP)
    }

    def changed(voxels: Tensor, change: augment.AugmentationPlan) -> Tensor:
        if change.warp_matrix is not None:
            matrix = np.eye(4)
            matrix[:3, :3] = change.warp_matrix
            warp = transforms.Affine(affine=matrix, padding_mode="border", image_only=True)
            voxels = warp(voxels)
        axes = [axis for axis in range(3) if change.flips[axis]]
        if axes:
            voxels = transforms.Flip(spatial_axis=axes)(voxels)
        if change.scale != 1 or change.shift != 0:
            voxels = transforms.ScaleIntensity(minv=None, maxv=None, factor=change.scale - 1)(
                voxels
            )
            voxels = transforms.ShiftIntensity(offset=change.shift)(voxels)
        return voxels

    def call(number: int) -> Tensor:
        return torch.stack([torch.as_tensor(changed(*one)) for one in given[number % STEP]])

    return Contestant(f"{SHIPPED}: sample by sample", call, "reference")


def compare(work: Work, theirs: Callable[[int], Any]) -> str:
    """Compares the middle of every crop, where no map leads out of it."""
    edge = math.ceil(SIDE / 2 * (1 - 0.55)) if work.config.affine_probability else 0
    middle = (slice(None), slice(None), *(slice(edge, SIDE - edge),) * 3)
    expected = theirs(1)[middle]
    worst = 0.0
    for ours in (work.whole, work.single):
        worst = max(worst, float((ours(1).cpu()[middle] - expected).abs().max()))
    require(worst < 1e-3, f"augmented crops differ by {worst:.1e}")
    return f"within {worst:.0e} in the middle"


if __name__ == "__main__":
    run(__doc__, jobs)
