"""One process, and two over gloo with DDP and with FSDP2: do they compute the same, and how fast.

    python benchmarks/throughput/scaling.py
    python benchmarks/throughput/scaling.py --preset small --steps 10 --processes 1 2 4

Each row is a training by `fit`, started by `torchrun` as a user would start it, on the same crops:
an MAE in fp32, whose batch the processes share. Losses and weights are compared with the first
row's; a difference beyond rounding ends the run. On one machine this shows that the processes
compute the same, not that they are fast: they share its memory's bandwidth, and here its cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig
from mim3d.config.training import OptimConfig, TrainingConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.atomic import write_json
from mim3d.foundation.randomness import generator
from mim3d.foundation.reporting import Silent
from mim3d.foundation.versions import versions
from mim3d.models.vit import VolumeViT
from mim3d.objectives.mae import MaskedAutoencoder
from mim3d.training.fabric import processes
from mim3d.training.loop import fit
from mim3d.training.run import Run

SIZE = (48, 32, 64)
BATCH = 8
LOSS_BOUND, WEIGHT_BOUND = 1e-4, 1e-3
"""Largest relative difference of a loss, largest difference of a weight; they add up otherwise."""
HEAD = (
    "| processes | strategy | last loss | weights differ by | s/step | CPU s/step of a process |\n"
    "|---:|---|---:|---:|---:|---:|"
)


class Crops:
    """Crops that depend on (step, index) alone, nowhere constant."""

    def batches(
        self, start: int, stop: int, *, rank: int = 0, world: int = 1, accumulation: int = 1
    ) -> Iterator[tuple[int, list[CropBatch]]]:
        """As `Feed` says."""
        size = BATCH // (world * accumulation)
        first = rank * size * accumulation
        for step in range(start, stop):
            yield (
                step,
                [
                    self.batch(step, range(i, i + size))
                    for i in range(first, first + size * accumulation, size)
                ],
            )

    def batch(self, step: int, indices: range) -> CropBatch:
        """The crops of these places in the step's batch."""
        count = len(indices)
        return CropBatch(
            voxels=torch.stack([self.crop(step, index) for index in indices]),
            affine=torch.eye(4, dtype=torch.float64).expand(count, 4, 4),
            case_ids=("synthetic",) * count,
            crop_ids=torch.tensor(list(indices)),
        )

    def crop(self, step: int, index: int) -> Tensor:
        """`1 x y z`."""
        noise = generator(0, step, index, "scaling").normal(size=(1, *SIZE))
        ramp = torch.linspace(-1, 1, SIZE[0])[:, None, None] + torch.linspace(-1, 2, SIZE[2])
        return torch.from_numpy(noise).float() * 0.3 + ramp


def train(folder: Path, strategy: Any, options: argparse.Namespace) -> None:
    """One of the processes of one row."""
    torch.manual_seed(0)
    # A bias of keys has no gradient but rounding, which AdamW makes as large as any other.
    encoder = EncoderConfig(
        preset=options.preset,
        patch=(8, 8, 8),
        qkv_bias=False,
        checkpointing=options.checkpointing,
        default_spacing_mm=(1.0, 1.0, 1.0),
    )
    training = TrainingConfig(
        steps=options.steps,
        batch_size=BATCH,
        accumulation=options.accumulation,
        precision="fp32",
        device="cpu",
        threads=1,
        strategy=strategy,
        log_every=1,
        pictures_every=0,
    )
    task = MaskedAutoencoder(VolumeViT(encoder), PretextConfig(decoder_width=96, decoder_heads=2))
    with Run.create_or_continue(folder / "run", {"training": {"device": "cpu"}}) as run:
        began = time.process_time()
        result = fit(task, Crops(), OptimConfig(lr=1e-4), training, run, reporter=Silent())
        spent = (time.process_time() - began) / options.steps
    if processes().rank == 0:
        seconds = BATCH / result.crops_per_second
        facts = {"loss": result.loss, "seconds": seconds, "process_seconds": spent}
        (folder / "facts.json").write_text(json.dumps(facts))


def start(folder: Path, count: int, strategy: str, arguments: list[str]) -> dict[str, Any]:
    """Starts the processes of one row and waits for them."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    words = [__file__, "--child", str(folder), strategy, *arguments]
    folder.mkdir()
    subprocess.run(
        [sys.executable, *(launch if count > 1 else []), *words],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    found: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    return found


def apart(folder: Path, reference: Path) -> float:
    """Largest difference between two runs' weights."""
    ours, theirs = (
        load_file(f / "run" / "checkpoints" / "last" / "weights.safetensors")
        for f in (folder, reference)
    )
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


def main() -> None:
    """Runs all rows, compares, prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, help="JSON file; default: none")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        train(Path(options.child[0]), options.child[1], options)
        return

    arguments = [f"--preset={options.preset}", f"--steps={options.steps}"]
    arguments += [f"--accumulation={options.accumulation}"]
    arguments += ["--checkpointing"] if options.checkpointing else []
    print(HEAD)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        reference = Path(place) / "0"
        for count in options.processes:
            for strategy in ("ddp", "fsdp") if count > 1 else ("auto",):
                folder = Path(place) / str(len(rows))
                row = start(folder, count, strategy, arguments)
                row |= {"processes": count, "strategy": strategy}
                row["difference"] = apart(folder, reference)
                rows.append(row)
                print(
                    f"| {count} | {strategy} | {row['loss']:.6f} | {row['difference']:.1e} | "
                    f"{row['seconds']:.2f} | {row['process_seconds']:.2f} |",
                    flush=True,
                )
                losses_apart = abs(row["loss"] / rows[0]["loss"] - 1)
                if losses_apart > LOSS_BOUND or row["difference"] > WEIGHT_BOUND:
                    sys.exit("the processes do not compute what one computes")
    if options.out:
        write_json(options.out, {"versions": versions(), "options": arguments, "rows": rows})


if __name__ == "__main__":
    main()
