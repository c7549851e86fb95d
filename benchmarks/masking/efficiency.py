"""What MSMAE's masking saves: FLOP, time and memory of a step, in one run.

    OMP_NUM_THREADS=1 python benchmarks/masking/efficiency.py
    python benchmarks/masking/efficiency.py --preset base --size 224,224,1 --patch 16,16,1 \\
        --decoder 512,8,16 --crops 1

Pre-training: MAE's split beside MSMAE's, with its guide and its supervised term. Fine-tuning to two
classes: all tokens beside a quarter of them. Prediction: the same. A step is forward, backward and
update by fused AdamW in fp32 (`--precision bf16` under autocast) on synthetic crops. FLOP are those
of all kernels (torch's counter); memory is what a fresh process holds at most for weights,
gradients, optimiser and step together; times alternate in one process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import GuideConfig, PretextConfig, SupervisedConfig
from mim3d.config.task import ClassificationConfig
from mim3d.config.training import OptimConfig
from mim3d.data.asked_target import AskedTarget
from mim3d.data.batch import CropBatch
from mim3d.foundation.atomic import write_json
from mim3d.foundation.versions import versions
from mim3d.models.classifier import VolumeClassifier
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Task
from mim3d.objectives.classification import Classification
from mim3d.objectives.mae import MaskedAutoencoder
from mim3d.objectives.weight_maps import VolumeGrid
from mim3d.training.optim import build_optimiser, trainable
from mim3d.workflows.throughput.inputs import Triple, moment, synthetic
from mim3d.workflows.throughput.machine import machine
from mim3d.workflows.throughput.race import Contestant, Job, race
from mim3d.workflows.throughput.table import digits, spread

CASE = "synthetic"
KEEP = 0.25
"""Share of the tokens that are seen, in MAE and MSMAE alike."""
HEAD = (
    "| what | way | GFLOP | of the first | ms | of the first | MB | of the first |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|"
)
FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FUSED_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
UNCOUNTED = {
    FUSED: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    FUSED_BACKWARD: lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v),
}
"""torch 2.13 counts nothing for the fused attention of a CPU."""
Call = Callable[[int], Any]


@dataclass(frozen=True)
class Scene:
    """Of what size everything is.

    Args:
        encoder: with a class token, as MSMAE's.
        decoder: width, depth and heads of that of pre-training.
        size: voxels of a crop.
        crops: of a step.
        precision: `fp32` or `bf16`.
        device: where it runs.
    """

    encoder: EncoderConfig
    decoder: Triple
    size: Triple
    crops: int
    precision: str
    device: torch.device

    def batch(self) -> CropBatch:
        """Crops of one volume, at its place, of two classes in turn."""
        voxels = torch.stack([synthetic(self.size, i)[None] for i in range(self.crops)])
        affine = torch.eye(4, dtype=torch.float64).repeat(self.crops, 1, 1)
        names, ids = (CASE,) * self.crops, torch.arange(self.crops)
        targets = (ids % 2).float()[:, None]
        return CropBatch(voxels, affine, names, ids, targets=targets).to(self.device)

    @property
    def grids(self) -> dict[str, VolumeGrid]:
        """Where the voxels of the volume lie."""
        return {CASE: VolumeGrid(self.size, torch.eye(4, dtype=torch.float64).numpy())}


def ways(scene: Scene) -> dict[str, dict[str, Callable[[], Call]]]:
    """By what is done, each way of it; calling one builds its networks."""
    width, depth, heads = scene.decoder
    mae = PretextConfig(
        mask_ratio=1 - KEEP, decoder_width=width, decoder_depth=depth, decoder_heads=heads
    )
    split = replace(mae, mask_ratio=0.45, drop_ratio=0.3)
    guided = replace(split, guide=GuideConfig(by="attention"))
    msmae = replace(guided, supervised=SupervisedConfig(target="label", classes=(0.0, 1.0)))
    pretraining = {
        "MAE: 0.75 masked": mae,
        "0.45 masked, 0.30 dropped": split,
        "+ led by attention": guided,
        "+ supervised: MSMAE": msmae,
    }
    kept = ClassificationConfig(keep=KEEP, keep_at_test=True)
    finetuning = {
        "all tokens": ClassificationConfig(),
        "a quarter, by chance": kept,
        "a quarter, by attention": replace(kept, keep_by="attention"),
    }
    return {
        "pre-training step": {
            name: lambda asked=asked: pretraining_step(scene, asked)
            for name, asked in pretraining.items()
        },
        "fine-tuning step": {
            name: lambda asked=asked: finetuning_step(scene, asked)
            for name, asked in finetuning.items()
        },
        "prediction": {
            name: lambda asked=asked: prediction(scene, asked) for name, asked in finetuning.items()
        },
    }


def pretraining_step(scene: Scene, config: PretextConfig) -> Call:
    """A step of masked pre-training."""
    torch.manual_seed(0)
    task = MaskedAutoencoder(VolumeViT(scene.encoder), config)
    task.remember(scene.grids)
    return _step(scene, task)


def finetuning_step(scene: Scene, config: ClassificationConfig) -> Call:
    """A step of fine-tuning to two classes."""
    torch.manual_seed(0)
    task = _classification(scene, config)
    task.remember(scene.grids)
    return _step(scene, task)


def prediction(scene: Scene, config: ClassificationConfig) -> Call:
    """Answers for as many crops as a step has."""
    torch.manual_seed(0)
    network, batch = _classification(scene, config).network.to(scene.device).eval(), scene.batch()

    @torch.no_grad()
    def predict(number: int) -> None:
        with torch.autocast(scene.device.type, torch.bfloat16, enabled=scene.precision == "bf16"):
            network(batch.voxels, batch.spacing_mm)

    return predict


def _classification(scene: Scene, config: ClassificationConfig) -> Classification:
    table = [AskedTarget("label", (0.0, 1.0), counts=(1, 1))]
    network = VolumeClassifier(
        VolumeViT(scene.encoder),
        2,
        pool="class_token",
        keep=config.keep,
        keep_by=config.keep_by,
        keep_at_test=config.keep_at_test,
    )
    return Classification(network, config, table)


def _step(scene: Scene, task: Task) -> Call:
    task = task.to(scene.device).train()
    optimiser, batch = build_optimiser(trainable(task), OptimConfig()), scene.batch()

    def step(number: int) -> None:
        now = moment(number)
        with torch.autocast(scene.device.type, torch.bfloat16, enabled=scene.precision == "bf16"):
            loss = task(batch, now).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        task.after_update(now)

    return step


def flop(build: Callable[[], Call]) -> int:
    """Of the second call, when maps are known."""
    call = build()
    call(0)
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
        call(1)
    return counter.get_total_flops()


def peak_mb(build: Callable[[], Call], device: torch.device) -> float:
    """The most that building and three calls hold; on a CPU in a process of its own (Linux)."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        _calls(build)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    child = fork.Process(target=_measured, args=(build, theirs))
    child.start()
    theirs.close()
    megabytes: float = ours.recv()
    child.join()
    return megabytes


def _measured(build: Callable[[], Call], report: Any) -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is now's size
    before = _resident("VmRSS")
    _calls(build)
    report.send(_resident("VmHWM") - before)


def _calls(build: Callable[[], Call]) -> None:
    call = build()
    for number in range(3):
        call(number)


def _resident(word: str) -> float:
    found = re.search(rf"^{word}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def rows(scene: Scene, repeats: int) -> Iterator[dict[str, Any]]:
    """One a way, as far as it is measured: memory first, for a fresh process has no past."""
    every = ways(scene)
    memory = {(what, way): peak_mb(build, scene.device)
              for what, each in every.items() for way, build in each.items()}  # fmt: skip
    for what, each in every.items():
        work = {way: flop(build) for way, build in each.items()}
        contestants = [Contestant(way, build(), "-") for way, build in each.items()]
        job = Job("masking", what, contestants)
        for row in race(job, repeats, scene.device):
            way = row.contestant
            yield {"what": what, "way": way, "flop": work[way], "ms": row.ms,
                   "mb": memory[what, way]}  # fmt: skip


def line(row: dict[str, Any], first: dict[str, Any]) -> str:
    """A row of the table, beside the first way of the same."""
    time = statistics.median(row["ms"]) / statistics.median(first["ms"])
    cells = (
        row["what"], row["way"], digits(row["flop"] / 1e9), f"{row['flop'] / first['flop']:.0%}",
        spread(row["ms"]), f"{time:.0%}", digits(row["mb"]), f"{row['mb'] / first['mb']:.0%}",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def numbers(text: str) -> Triple:
    """Three numbers parted by commas."""
    x, y, z = map(int, text.split(","))
    return x, y, z


def main() -> None:
    """Reads the command line, measures, prints the table and writes the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="tiny", help="of the encoder")
    parser.add_argument("--size", type=numbers, default=(64, 64, 64), help="voxels of a crop")
    parser.add_argument("--patch", type=numbers, default=(8, 8, 8))
    parser.add_argument("--decoder", type=numbers, default=(96, 2, 3), help="width, depth, heads")
    parser.add_argument("--crops", type=int, default=4, help="of a step")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "efficiency.json"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    encoder = EncoderConfig(preset=options.preset, patch=options.patch, class_token=True,
                            channels=1)  # fmt: skip
    scene = Scene(encoder, options.decoder, options.size, options.crops, options.precision, device)
    found: list[dict[str, Any]] = []
    print(HEAD)
    for row in rows(scene, options.repeats):
        found.append(row)
        first = next(one for one in found if one["what"] == row["what"])
        print(line(row, first), flush=True)
    asked = {key: str(value) for key, value in vars(options).items() if key != "out"}
    write_json(options.out, {"machine": machine(device), "versions": versions(), "asked": asked,
                             "rows": found})  # fmt: skip


if __name__ == "__main__":
    main()
