"""The section of `gpu.py` about crops out of volumes that lie on the device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gpu_frame import Bench, fresh, milliseconds
from gpu_steps import QUARTER, masked_task, our_call
from numpy.typing import NDArray

from mim3d.config.data import AugmentationConfig, DataConfig
from mim3d.data.batch import CropBatch
from mim3d.data.batched import VolumeFacts, Volumes, cut_batch
from mim3d.data.batched_intensity import change_intensities
from mim3d.data.numbers import CropNumbers, draw_numbers
from mim3d.data.sampling import SamplingPlan
from mim3d.workflows.throughput.inputs import Triple, synthetic
from mim3d.workflows.throughput.steps import our_step

PLAIN = AugmentationConfig()
EVERYTHING = AugmentationConfig(
    flip_axes=("x", "y", "z"), turn_plane=("x", "y"), turn_probability=0.5,
    affine_probability=1.0, rotation_degrees=(15.0, 15.0, 15.0), zoom=0.15,
    scale_intensity=0.1, shift_intensity=0.1, gamma=0.3, noise=0.1,
)  # fmt: skip
DRAWN = 4
"""Batches whose numbers are drawn ahead and take turns."""
SCALE = 400.0
"""From the synthetic volume to the integers of a scanner."""


@dataclass(frozen=True)
class Held:
    """A case of which the sampling plan needs to know where it lies, not what it holds.

    Args:
        case_id: its name.
        shape: channels and voxels along x, y, z.
    """

    case_id: str
    shape: tuple[int, int, int, int]
    spacing_mm: tuple[float, float, float] = (0.8, 0.8, 1.5)
    air: None = None

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel to millimetres."""
        return np.diag([*self.spacing_mm, 1.0])


class Resident:
    """Volumes on the device, and batches out of them.

    Args:
        bench: how many, how large, where.
    """

    def __init__(self, bench: Bench) -> None:
        sizes = bench.sizes
        self.crop: Triple = (sizes.side, sizes.side, sizes.side)
        self.count = sizes.feed_batch
        self.voxels_each = math.prod(sizes.volume)
        self.cases = {f"case {i}": Held(f"case {i}", (1, *sizes.volume))
                      for i in range(sizes.resident)}  # fmt: skip
        stored = [
            (SCALE * synthetic(sizes.volume, i, bench.device)).round().to(torch.int16).flatten()
            for i in range(sizes.resident)
        ]
        self.volumes = Volumes(torch.cat(stored), None)
        self.places = {case_id: i * self.voxels_each for i, case_id in enumerate(self.cases)}
        # Scale 1, offset 0, a window of 1,000 on both sides of 0 to 0 to 1.
        rule = np.array([[1.0], [0.0], [-1000.0], [1000.0], [-1000.0], [2000.0]])
        self.facts = {
            name: VolumeFacts(name, sizes.volume, case.affine, rule, None)
            for name, case in self.cases.items()
        }
        self.plan = SamplingPlan(
            list(self.cases), DataConfig(crop_size=self.crop), seed=0, batch_size=self.count,
            open_case=self.cases.__getitem__,
        )  # fmt: skip

    def numbers(self, config: AugmentationConfig, step: int) -> CropNumbers:
        """What is drawn on the host."""
        return draw_numbers(self.plan, config, step, range(self.count))

    def batch(self, numbers: CropNumbers, step: int) -> CropBatch:
        """What is done on the device."""
        names = [self.plan.case_id(step, index) for index in range(self.count)]
        origins = [self.places[name] for name in names]
        cut = cut_batch(
            self.volumes, origins, [self.facts[name] for name in names], numbers, self.crop
        )
        voxels, _ = change_intensities(cut.voxels, cut.valid, None, numbers)
        affine = torch.eye(4, dtype=torch.float64, device=voxels.device).expand(len(names), 4, 4)
        return CropBatch(voxels, affine, tuple(names), numbers.crop_ids)


def resident(bench: Bench) -> dict[str, Any]:
    """Crops a second with and without augmentation, and a step fed so against a fixed batch."""
    found: dict[str, Any] = {"volumes": bench.sizes.resident, "volume": bench.sizes.volume,
                             "batch": bench.sizes.feed_batch, "rows": []}  # fmt: skip
    with fresh(bench):
        held = Resident(bench)
        found["equality"] = _same_as_sliced(held)
        drawn: dict[str, list[CropNumbers]] = {}
        for name, config in (("flips", AugmentationConfig(flip_axes=("x", "y", "z"))),
                             ("everything", EVERYTHING)):  # fmt: skip
            began = time.perf_counter()
            drawn[name] = [held.numbers(config, step) for step in range(DRAWN)]
            drawing = 1e3 * (time.perf_counter() - began) / DRAWN
            ms = milliseconds(_cutting(held, drawn[name]), bench)
            found["rows"].append({
                "what": name, "ms": ms, "crops_per_second": 1e3 * held.count / ms,
                "ms_of_drawing_on_the_host": drawing,
            })  # fmt: skip
        found["step"] = _fed_step(held, drawn, bench)
    return found


def _cutting(held: Resident, drawn: list[CropNumbers]) -> Callable[[int], Any]:
    return lambda number: held.batch(drawn[number % DRAWN], number % DRAWN)


def _fed_step(held: Resident, drawn: dict[str, list[CropNumbers]], bench: Bench) -> dict[str, Any]:
    """The third network of the pre-training (base/16) fed from memory / on fixed batches."""
    preset, edge, _ = bench.sizes.runs[min(2, len(bench.sizes.runs) - 1)]
    task = masked_task(bench, preset, edge, QUARTER)
    fixed = milliseconds(our_call(task, held.count, bench), bench)
    found: dict[str, Any] = {"network": f"{preset}/{edge}, {QUARTER}", "fixed_ms": fixed}
    for name, numbers in drawn.items():
        feed = _cutting(held, numbers)
        # One batch is exchanged for a new one before every step.
        given = [feed(0)]
        update = our_step("mim3d", task, given, "").call

        def fed(number: int, feed: Any = feed, given: Any = given, update: Any = update) -> None:
            given[0] = feed(number)
            update(number)

        ms = milliseconds(fed, bench)
        found[name] = {"ms": ms, "fed_over_fixed": ms / fixed}
    return found


def _same_as_sliced(held: Resident) -> str:
    """Compares crops without augmentation with plain slices of the volumes, bit for bit."""
    numbers = held.numbers(PLAIN, 0)
    batch = held.batch(numbers, 0)
    for place, name in enumerate(batch.case_ids):
        first = numbers.to_volume[place, :3, 3].long().tolist()
        begin = held.places[name]
        volume = held.volumes.voxels[begin : begin + held.voxels_each]
        box = [slice(low, low + side) for low, side in zip(first, held.crop, strict=True)]
        stored = volume.view(held.cases[name].shape[1:])[tuple(box)].float()
        expected = (stored.clamp(-1000.0, 1000.0) + 1000.0) / 2000.0
        if not torch.equal(batch.voxels[place, 0], expected):
            raise SystemExit(f"crop {place} differs from its slice, so it is not timed")
    return "bit for bit"
