"""A pre-training step that is fed, against the same step on one batch in memory (P1).

    THP_MEM_ALLOC_ENABLE=1 OMP_NUM_THREADS=1 python benchmarks/throughput/feed_end_to_end.py
    python benchmarks/throughput/feed_end_to_end.py --workers 1 --clock wall
    python benchmarks/throughput/feed_end_to_end.py --device cuda --preset base --batch 256

Feeds: crops read from the store, free and on the grid of chunks; out of volumes in memory, crop by
crop; and cut as whole batches on the device. Their crops are compared before anything is timed.
Blocks of steps take turns; the ratio fed / fixed is taken repeat by repeat.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from script import RESULTS, parser_of, word_for

from mim3d.config.data import AugmentationConfig, DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig
from mim3d.config.training import OptimConfig
from mim3d.data.batch import BatchNeeds, CropBatch
from mim3d.data.feed import Feed, make_feed
from mim3d.data.intensity import Normalisation
from mim3d.data.store import FORMAT, PreparedCase, Store, write_case
from mim3d.foundation.atomic import write_json
from mim3d.foundation.versions import versions
from mim3d.models.vit import VolumeViT
from mim3d.objectives.mae import MaskedAutoencoder
from mim3d.training.optim import build_optimiser, trainable
from mim3d.workflows.throughput.clock import elapsed
from mim3d.workflows.throughput.inputs import SIDE, Triple, moment, synthetic
from mim3d.workflows.throughput.machine import machine
from mim3d.workflows.throughput.race import require
from mim3d.workflows.throughput.table import digits, spread

VOLUME: Triple = (256, 256, 160)
CASES = 4
FLIPS = AugmentationConfig(
    flip_axes=("x", "y", "z"), turn_plane=("x", "y"), turn_probability=0.5,
    scale_intensity=0.1, shift_intensity=0.1,
)  # fmt: skip
AUGMENTATIONS = {
    "flips, turns, intensity": FLIPS,
    "and zoom": replace(FLIPS, affine_probability=0.5, zoom=0.1),
    "and affine": replace(
        FLIPS, affine_probability=0.5, zoom=0.1, rotation_degrees=(15.0, 15.0, 15.0)
    ),
}
FEEDS: dict[str, dict[str, Any]] = {
    "store": {},
    "store, on the grid": {"origin_grid": 32},
    "memory, crop by crop": {"feed": "resident", "resident_on": "host"},
    "memory, whole batches": {"feed": "resident", "resident_on": "device"},
}
ENDLESS = 10**6


def write_store(folder: Path) -> Store:
    """A cohort of synthetic CT volumes."""
    rule = Normalisation("window", -1000.0, 1000.0, air=-500.0)
    lines = []
    for number in range(CASES):
        voxels = (400 * synthetic(VOLUME, number)).round().numpy().astype(np.int16)[None]
        affine, name = np.diag([0.8, 0.8, 1.5, 1.0]), f"case_{number}"
        case = PreparedCase(name, voxels, (1.0,), (0.0,), affine, (rule,))
        written = write_case(folder, case, {}, name, "blosc")
        kept = {key: written[key] for key in ("case_id", "shape", "spacing_mm", "key")}
        source = {"subject_id": name, "part": "training", "image_key": name, "has_label": False}
        lines.append({**kept, **source, **written["file"]})
    manifest = {
        "format": FORMAT, "name": "synthetic", "cases": lines, "classes": None,
        "channel_names": ["ct"], "modalities": ["ct"], "preparation": {},
    }  # fmt: skip
    write_json(folder / "manifest.json", manifest)
    return Store(folder)


def feed_of(
    store: Store, given: dict[str, Any], change: AugmentationConfig, options: argparse.Namespace
) -> Feed:
    """One feed of the cohort."""
    data = DataConfig(crop_size=(SIDE, SIDE, SIDE), workers=options.workers, **given)
    device = torch.device(options.device)
    return make_feed(
        store, store.cases, data=data, augmentation=change, needs=BatchNeeds(),
        batch_size=options.batch, seed=0, device=device,
    )  # fmt: skip


def stepper(options: argparse.Namespace) -> Callable[[CropBatch, int], None]:
    """Forward, backward and update of an MAE with a quarter decoded by cross-attention."""
    edge = options.patch
    encoder = EncoderConfig(options.preset, patch=(edge, edge, edge),
                            channels=1, default_spacing_mm=(0.8, 0.8, 1.5))  # fmt: skip
    task = MaskedAutoencoder(
        VolumeViT(encoder), PretextConfig(decoder="cross", decode_fraction=0.25)
    )
    task.to(options.device)
    optimiser = build_optimiser(trainable(task), OptimConfig(lr=1e-4))
    device = torch.device(options.device)

    def step(batch: CropBatch, number: int) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = task(batch.to(device), moment(number)).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def compare(store: Store, change: AugmentationConfig, options: argparse.Namespace) -> None:
    """Feeds that draw from one plan must give the same crops."""
    free = [given for given in FEEDS.values() if "origin_grid" not in given]
    batches = [feed_of(store, given, change, options).batches(0, 2) for given in free]
    for found in zip(*batches, strict=True):
        first, *others = (one[0].to("cpu") for _, one in found)
        for other in others:
            near = torch.allclose(first.voxels, other.voxels, atol=1e-4)
            require(near and first.case_ids == other.case_ids, "crops of two feeds")


def time_feeds(
    store: Store, change: AugmentationConfig, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Blocks of steps in turn, the fixed batch among them."""
    device = torch.device(options.device)
    step = stepper(options)
    sources: dict[str, Iterator[tuple[int, list[CropBatch]]]] = {
        name: feed_of(store, given, change, options).batches(0, ENDLESS)
        for name, given in FEEDS.items()
    }
    fixed = next(sources["store"])[1][0].to(device)
    times: dict[str, list[float]] = {name: [] for name in ("fixed", *sources)}

    def block(name: str, steps: int) -> None:
        for number in range(steps):
            step(fixed if name == "fixed" else next(sources[name])[1][0], number)

    for name in times:
        block(name, 2)
    names = list(times)
    for repeat in range(options.repeats):
        for name in names if repeat % 2 == 0 else reversed(names):
            times[name].append(1e3 * clock(options, name, block, device) / options.steps)
    for name, ms in times.items():
        ratios = [one / own for one, own in zip(ms, times["fixed"], strict=True)]
        yield {"feed": name, "ms": ms, "fed_over_fixed": ratios,
               "median": statistics.median(ratios)}  # fmt: skip
    for source in sources.values():
        source.close()  # type: ignore[attr-defined]


def clock(
    options: argparse.Namespace, name: str, block: Callable[[str, int], None], device: torch.device
) -> float:
    """Seconds of a block of steps."""
    if options.clock == "cpu":
        return elapsed(lambda: block(name, options.steps), device)
    began = time.perf_counter()
    block(name, options.steps)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def main() -> None:
    """Reads the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10, help="in a block; repeats blocks a feed")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--only", nargs="+", choices=AUGMENTATIONS, default=list(AUGMENTATIONS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    path = options.out or RESULTS / f"feed_end_to_end_{word_for(device)}.json"
    settings = {key: value for key, value in vars(options).items() if key != "out"}
    content: dict[str, Any] = {"machine": machine(device), "versions": versions(),
                               "settings": settings, "rows": []}  # fmt: skip
    print("| augmentation | feed | ms a step | fed / fixed |\n|---|---|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder))
        for name in options.only:
            compare(store, AUGMENTATIONS[name], options)
            for row in time_feeds(store, AUGMENTATIONS[name], options):
                ratio = spread(row["fed_over_fixed"])
                print(f"| {name} | {row['feed']} | {spread(row['ms'])} | {ratio} |", flush=True)
                content["rows"].append({"augmentation": name, **row})
                write_json(path, content)
    print(f"\n{json.dumps(content['machine'])}\nwritten to {path}, median ratios to two digits: "
          + ", ".join(digits(row["median"]) for row in content["rows"]))  # fmt: skip


if __name__ == "__main__":
    main()
