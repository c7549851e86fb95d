"""What masks cost: every shape and guide beside a whole pre-training step.

    OMP_NUM_THREADS=1 python benchmarks/throughput/masking.py
    python benchmarks/throughput/masking.py --device cuda --preset base --crops 32

The step is of the cheapest recipe (bf16, fused AdamW, a quarter of the visible, a quarter of the
masked decoded by cross-attention), with masks of which each token is drawn by itself. Masks are
what a task makes of its crops, from keys to `TokenSplit`, the guide's weights with them. Counts are
checked before anything is timed. At most 2 percent of a step is asked for.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from script import RESULTS, parser_of, word_for

from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import GuideConfig, MaskShape, PretextConfig
from mim3d.config.training import OptimConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.atomic import write_json
from mim3d.foundation.versions import versions
from mim3d.models.vit import VolumeViT
from mim3d.objectives.mae import MaskedAutoencoder
from mim3d.objectives.masks import Masks
from mim3d.tokens.masking import TokenSplit
from mim3d.tokens.patches import pad_to_patches
from mim3d.training.optim import build_optimiser, trainable
from mim3d.workflows.throughput.inputs import SIDE, batches, moment
from mim3d.workflows.throughput.machine import machine
from mim3d.workflows.throughput.race import Contestant, Job, race, require
from mim3d.workflows.throughput.steps import GPU_STEPS, RATE
from mim3d.workflows.throughput.table import spread

RECIPE = PretextConfig(decoder="cross", decode_fraction=0.25)
SPLIT = replace(RECIPE, mask_ratio=0.45, drop_ratio=0.3)
GUIDES = {
    "unguided": GuideConfig(),
    "body, half": GuideConfig(by="body", share=(0.5, 0.5)),
    "label map, sharp": GuideConfig(by="map", temperature=0.0),
}
SHAPES: tuple[MaskShape, ...] = ("uniform", "block", "tube", "slab")
ASKED = 0.02
"""Share of a step."""


def contestants(device: torch.device, preset: Any, crops: int) -> Iterator[Contestant]:
    """The step first, then masks of every shape under every guide."""
    encoder = VolumeViT(EncoderConfig(preset=preset, patch=(8, 8, 8)))
    given = [
        replace(batch, air=torch.zeros((crops, 1), device=device))
        for batch in batches(crops, device)
    ]
    task = MaskedAutoencoder(encoder, RECIPE).to(device)
    yield Contestant("step", _step(task, given), "-", GPU_STEPS if device.type == "cuda" else 1)
    for shape in SHAPES:
        for name, guide in GUIDES.items():
            masks = Masks(encoder, replace(SPLIT, masking=shape, guide=guide))
            made = _split(masks, given[0], 0)
            n = math.prod([SIDE // 8] * 3)
            counts = (made.masked.shape[1], made.dropped.shape[1], made.visible.shape[1])
            require(counts == (778, 518, n - 778 - 518), f"{shape}, {name}: {counts}")
            yield Contestant(f"{shape}, {name}", _splitting(masks, given), "exact counts", 20)


def _step(task: MaskedAutoencoder, given: list[CropBatch]) -> Callable[[int], None]:
    optimiser = build_optimiser(trainable(task), OptimConfig(lr=RATE))

    def step(number: int) -> None:
        batch = given[number % len(given)]
        with torch.autocast(batch.voxels.device.type, torch.bfloat16):
            loss = task(batch, moment(number)).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def _splitting(masks: Masks, given: list[CropBatch]) -> Callable[[int], TokenSplit]:
    return lambda number: _split(masks, given[number % len(given)], number)


def _split(masks: Masks, batch: CropBatch, number: int) -> TokenSplit:
    crop = pad_to_patches(batch.voxels, None, (8, 8, 8))
    now = moment(number)
    return masks.masking(batch, crop, now).split(now.keys(batch, "mask"))


def main() -> None:
    """Reads the command line, times, prints a table and writes the result file."""
    parser = parser_of(__doc__)
    parser.add_argument("--preset", default="small", help="of the encoder")
    parser.add_argument("--crops", type=int, default=2, help="in a step")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    path: Path = options.out or RESULTS / f"masking_{word_for(device)}.json"
    what = f"MAE {options.preset}/8, {options.crops} x {SIDE}^3"
    job = Job("masking", what, list(contestants(device, options.preset, options.crops)))

    step, *rows = race(job, options.repeats, device)
    whole = statistics.median(step.ms)
    print(f"{what}: {spread(step.ms)} ms a step\n\n| masks | ms | of a step |\n|---|---:|---:|")
    found: list[dict[str, Any]] = []
    for row in rows:
        share = statistics.median(row.ms) / whole
        missed = "" if share <= ASKED else ", missed"
        print(f"| {row.contestant} | {spread(row.ms)} | {share:.2%}{missed} |", flush=True)
        found.append({"masks": row.contestant, "ms": row.ms, "of_a_step": share})
    content = {"machine": machine(device), "versions": versions(), "seed": 0, "job": what,
               "step_ms": step.ms, "rows": found}  # fmt: skip
    write_json(path, content)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
