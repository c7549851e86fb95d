"""Crops of several sizes in one step: packed into one sequence, padded to one size, or one by one.

    OMP_NUM_THREADS=1 THP_MEM_ALLOC_ENABLE=1 python benchmarks/throughput/packing.py
    python benchmarks/throughput/packing.py --device cuda --crops 8

Whole pre-training steps (bf16, fused AdamW) of the same crops under the same masks. Loss and
gradients are compared in fp32 before anything is timed. Tokens are those of the crops, masked ones
among them, padding not. `longest / mean` is what filling every crop up to the most tokens costs:
MAE drops the tokens of padding before its encoder, padded or not, and can gain little more.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from script import RESULTS, parser_of, word_for
from torch import Tensor

from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig
from mim3d.config.training import OptimConfig
from mim3d.data.batch import CropBatch, CropBatches
from mim3d.foundation.atomic import write_json
from mim3d.foundation.versions import versions
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Task
from mim3d.objectives.masks import resting_ratio
from mim3d.objectives.registry import PRETEXT_TASKS
from mim3d.tokens.grid import TokenGrid, Triple
from mim3d.tokens.masking import count
from mim3d.training.optim import build_optimiser, trainable
from mim3d.workflows.throughput.inputs import moment, synthetic
from mim3d.workflows.throughput.machine import machine
from mim3d.workflows.throughput.race import Contestant, Job, race, require
from mim3d.workflows.throughput.steps import GPU_STEPS, RATE
from mim3d.workflows.throughput.table import spread

EDGE = 8
"""Voxels of a patch along each axis."""
MIXES: dict[str, dict[Triple, tuple[float, float, float]]] = {
    "two shapes of one volume": {(64, 64, 64): (1.0, 1.0, 1.0), (96, 96, 32): (1.0, 1.0, 3.0)},
    "three cohorts": {
        (96, 96, 24): (0.98, 0.98, 3.3), (48, 56, 40): (1.0, 1.0, 1.0),
        (64, 40, 64): (0.15, 0.15, 0.15),
    },
    "a whole volume of thick slices and small crops": {
        (120, 112, 40): (0.98, 0.98, 3.3), (40, 56, 40): (1.0, 1.0, 1.0),
        (64, 40, 64): (0.15, 0.15, 0.15),
    },
}  # fmt: skip
"""Crops by name, size to spacing in mm: cubes beside thick slices; of a sarcoma, a hippocampus and
a mouse brain; the same with the sarcoma's CT and the hippocampus whole."""
PADDED, ONE_BY_ONE, PACKED = "padded to one size", "size by size", "packed"


def jobs(device: torch.device, preset: Any, crops: int) -> Iterator[tuple[Job, int, float]]:
    """One job a task and mix, with the tokens of a step, and the most a crop has over the mean."""
    for name in ("mae", "simmim"):
        for mix, sizes in MIXES.items():
            torch.manual_seed(0)
            encoder = EncoderConfig(preset=preset, patch=(EDGE, EDGE, EDGE))
            config = PretextConfig(name=name, decoder_width=192, decoder_heads=3)
            task = PRETEXT_TASKS[name](VolumeViT(encoder), config).to(device)
            steps = {way: Step(task, device, parts) for way, parts in ways(sizes, crops).items()}
            equality = compared(task, steps)
            calls = GPU_STEPS if device.type == "cuda" else 1
            contestants = [
                Contestant(way, step, equality[way], calls) for way, step in steps.items()
            ]
            each = [TokenGrid.over(size, encoder.patch).n for size in sizes]
            what = f"{name} {preset}/{EDGE}, {mix}, {crops} of each size"
            longest = max(each) / statistics.mean(each)
            yield Job("packing", what, contestants), crops * sum(each), longest


class Step:
    """A step in bf16 with fused AdamW on one way of holding the crops.

    Args:
        task: shared by all ways.
        device: where it runs.
        parts: what the task is called with, one after the other; each counts by what it predicts.
    """

    def __init__(
        self, task: Task, device: torch.device, parts: Sequence[CropBatch | CropBatches]
    ) -> None:
        self.task = task
        self.device = device
        self.parts = [part.to(device) for part in parts]
        predicted = [_predicted(part) for part in parts]
        self.shares = [one / sum(predicted) for one in predicted]
        self.optimiser = build_optimiser(trainable(task), OptimConfig(lr=RATE))

    def __call__(self, number: int) -> None:
        """One update."""
        self.gradients(number, bf16=True)
        self.optimiser.step()
        self.optimiser.zero_grad()

    def gradients(self, number: int, *, bf16: bool) -> Tensor:
        """Adds the gradients of all parts; returns the loss."""
        losses = []
        for part, share in zip(self.parts, self.shares, strict=True):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                loss = self.task(part, moment(number)).loss * share
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()


def ways(
    sizes: Mapping[Triple, tuple[float, float, float]], crops: int
) -> dict[str, list[CropBatch | CropBatches]]:
    """The same crops, so many of each size, held in three ways."""
    batches = mixed(sizes, crops)
    return {PADDED: [padded(batches)], ONE_BY_ONE: list(batches.parts), PACKED: [batches]}


def mixed(sizes: Mapping[Triple, tuple[float, float, float]], crops: int) -> CropBatches:
    """So many crops of each size, no two alike, numbered throughout."""
    parts = []
    for number, (size, spacing_mm) in enumerate(sizes.items()):
        ids = range(number * crops, (number + 1) * crops)
        voxels = torch.stack([synthetic(size, i)[None] for i in ids])
        affine = torch.diag(torch.tensor([*spacing_mm, 1.0], dtype=torch.float64))
        names = tuple(map(str, ids))
        parts.append(CropBatch(voxels, affine.repeat(crops, 1, 1), names, torch.tensor(ids)))
    return CropBatches(tuple(parts))


def padded(batches: CropBatches) -> CropBatch:
    """The same crops in the corner of the smallest box that holds each of them."""
    around = [max(sides) for sides in zip(*map(_size, batches.parts), strict=True)]
    b = len(batches.case_ids)
    voxels = torch.zeros(b, 1, *around)
    valid = torch.zeros(b, *around, dtype=torch.bool)
    start = 0
    for part in batches.parts:
        here = slice(start, start + len(part.case_ids))
        x, y, z = _size(part)
        voxels[here, :, :x, :y, :z] = part.voxels
        valid[here, :x, :y, :z] = True
        start = here.stop
    affine = torch.cat([part.affine for part in batches.parts])
    return CropBatch(voxels, affine, batches.case_ids, batches.crop_ids, valid=valid)


def compared(task: Task, steps: Mapping[str, Step]) -> dict[str, str]:
    """How far loss and gradients of each way lie from those of the padded batch, in fp32."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for way, step in steps.items():
        task.zero_grad()
        loss = step.gradients(0, bf16=False)
        grads = [p.grad.flatten() for p in task.parameters() if p.grad is not None]
        found[way] = loss, torch.cat(grads)
    task.zero_grad()
    loss, gradient = found[PADDED]
    said = {}
    for way, (its_loss, its_gradient) in found.items():
        by_loss = float((its_loss - loss).abs() / loss)
        by_gradient = float((its_gradient - gradient).norm() / gradient.norm())
        require(by_loss < 1e-4 and by_gradient < 1e-3, f"{way}: {by_loss:.0e}, {by_gradient:.0e}")
        said[way] = f"loss {by_loss:.0e}, gradient {by_gradient:.0e}"
    return said


def _size(part: CropBatch) -> Triple:
    x, y, z = part.voxels.shape[2:]
    return x, y, z


def _predicted(part: CropBatch | CropBatches) -> int:
    """Tokens that a step predicts, at the default ratio."""
    if isinstance(part, CropBatches):
        return sum(map(_predicted, part.parts))
    n = TokenGrid.over(_size(part), (EDGE, EDGE, EDGE)).n
    return len(part.case_ids) * count(resting_ratio(PretextConfig()), n)


def main() -> None:
    """Reads the command line, races, prints a table and writes the result file."""
    parser = parser_of(__doc__)
    parser.add_argument("--preset", default="small", help="of the encoder")
    parser.add_argument("--crops", type=int, default=1, help="of each size in a step")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    path: Path = options.out or RESULTS / f"packing_{word_for(device)}.json"
    rows: list[dict[str, Any]] = []
    content = {"machine": machine(device), "versions": versions(), "seed": 0, "rows": rows}
    print("| job | longest / mean | way | ms | tokens/s | padded / this | apart from padded |\n"
          "|---|---:|---|---:|---:|---:|---|")  # fmt: skip
    for job, tokens, longest in jobs(device, options.preset, options.crops):
        raced = {row.contestant: row for row in race(job, options.repeats, device)}
        for way, row in raced.items():
            gains = [a / b for a, b in zip(raced[PADDED].ms, row.ms, strict=True)]
            rate = 1e3 * tokens / statistics.median(row.ms)
            print(f"| {job.what} | {longest:.2f} | {way} | {spread(row.ms)} | {rate:,.0f} | "
                  f"{spread(gains)} | {row.equality} |", flush=True)  # fmt: skip
            rows.append({"job": job.what, "way": way, "ms": row.ms, "tokens": tokens,
                         "longest_over_mean": longest,
                         "tokens_per_second": rate, "padded_over_this": gains,
                         "equality": row.equality})  # fmt: skip
        write_json(path, content)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
