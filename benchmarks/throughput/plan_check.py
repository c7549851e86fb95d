"""What `mim3d plan` expects beside what a real step takes, on this machine's CPU or GPU.

    THP_MEM_ALLOC_ENABLE=1 python benchmarks/throughput/plan_check.py
    THP_MEM_ALLOC_ENABLE=1 python benchmarks/throughput/plan_check.py --only "mae small/16 full"
    python benchmarks/throughput/plan_check.py --gpu h200

In one process the plan is made as the command makes it: corrected by a real step of few crops and,
for comparison, not corrected. In another some real steps of the whole batch are taken. Times are
CPU time of the process (median of the steps after the first), memory is the process's largest
resident set less what it was before the task was built.

With `--gpu` the plan is what is known of that GPU, times are between CUDA events, and memory is the
most that torch's allocator handed out.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mim3d.config.data import DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig
from mim3d.config.plan import FinetunePlanConfig, PlanConfig, PretrainPlanConfig
from mim3d.config.task import DecoderConfig
from mim3d.config.training import OptimConfig, TrainingConfig
from mim3d.foundation.atomic import write_json
from mim3d.foundation.reporting import Silent
from mim3d.foundation.versions import versions
from mim3d.training.fabric import choose_precision
from mim3d.workflows.plan.machines import GPUS
from mim3d.workflows.plan.measure import RealStep, synthetic_batch
from mim3d.workflows.plan.plan import plan
from mim3d.workflows.plan.subject import AnyPlanConfig, subject_of
from mim3d.workflows.throughput.clock import elapsed

STEPS = 3
GPU_STEPS = 10
QUARTER = PretextConfig(decoder="cross", decode_fraction=0.25)
OPTIM = OptimConfig(ema=0.0)


def masked(preset: Any, edge: int, batch: int, objective: PretextConfig) -> PretrainPlanConfig:
    """MAE on crops of 96 cubed."""
    encoder = EncoderConfig(preset=preset, patch=(edge, edge, edge))
    training = TrainingConfig(batch_size=batch)
    return PretrainPlanConfig(encoder=encoder, objective=objective, training=training)


def segmenter(decoder: Any, batch: int) -> FinetunePlanConfig:
    """A decoder on small/16, three classes, crops with three different sides."""
    return FinetunePlanConfig(
        data=DataConfig(crop_size=(96, 64, 80)),
        encoder=EncoderConfig(preset="small"),
        decoder=DecoderConfig(name=decoder),
        training=TrainingConfig(batch_size=batch),
        plan=PlanConfig(classes=3),
    )


JOBS: dict[str, AnyPlanConfig] = {
    "mae small/16 full": masked("small", 16, 8, PretextConfig()),
    "mae small/16 quarter": masked("small", 16, 8, QUARTER),
    "mae tiny/8 full": masked("tiny", 8, 2, PretextConfig()),
    "mae tiny/8 quarter": masked("tiny", 8, 4, QUARTER),
    "finetune unetr": segmenter("unetr", 1),
    "finetune half": segmenter("half", 2),
    "finetune light": segmenter("light", 2),
}


GPU_JOBS: dict[str, AnyPlanConfig] = {
    "gpu mae base/8 quarter": masked("base", 8, 64, QUARTER),
    "gpu mae base/8 full": masked("base", 8, 64, PretextConfig()),
    "gpu mae large/16 quarter": masked("large", 16, 256, QUARTER),
    "gpu mae small/16 quarter": masked("small", 16, 512, QUARTER),
    "gpu finetune unetr": segmenter("unetr", 8),
    "gpu finetune half": segmenter("half", 8),
}


def planned(config: AnyPlanConfig) -> dict[str, Any]:
    """The plan as the command makes it."""
    facts = plan(config, reporter=Silent()).facts
    expected = facts["time"]["compute_seconds"]
    return {
        "planned_seconds": expected,
        "reckoned_seconds": expected / facts["time"]["correction"],
        "planned_gb": facts["memory"]["needed_gb"],
    }


def measured(config: AnyPlanConfig) -> dict[str, Any]:
    """Real steps of the whole batch."""
    return measured_here(config) if config.plan.gpu == "cpu" else measured_on_gpu(config)


def measured_on_gpu(config: AnyPlanConfig) -> dict[str, Any]:
    """Likewise on a GPU; one look at the clock after all steps, since launches run ahead."""
    subject, batch_size = subject_of(config), config.training.batch_size
    device = torch.device("cuda")
    precision = choose_precision(config.training.precision, device)
    torch.manual_seed(0)
    step = RealStep(subject.build().to(device).train(), config.optim, precision)
    batch = synthetic_batch(subject, batch_size).to(device)
    for number in range(STEPS):
        step(batch, number)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()

    def steps() -> None:
        for number in range(GPU_STEPS):
            step(batch, number)

    took = elapsed(steps, device) / GPU_STEPS
    return {"seconds": took, "gb": torch.cuda.max_memory_allocated() / 1e9, "batch": batch_size}


def measured_here(config: AnyPlanConfig) -> dict[str, Any]:
    """Likewise on the CPU."""
    subject, batch_size = subject_of(config), config.training.batch_size
    precision = choose_precision(config.training.precision, torch.device("cpu"))
    warm_up(config, precision)
    before = resident_bytes()
    torch.manual_seed(0)
    step = RealStep(subject.build().train(), config.optim, precision)
    batch, times = synthetic_batch(subject, batch_size), []
    for number in range(STEPS + 1):
        began = time.process_time()
        step(batch, number)
        times.append(time.process_time() - began)
    held = (largest_bytes() - before) / 1e9
    return {"seconds": statistics.median(times[1:]), "gb": held, "batch": batch_size}


def warm_up(config: AnyPlanConfig, precision: str) -> None:
    """A step of a tiny network: what the first step of a process loads is no memory of the task."""
    encoder = replace(config.encoder, width=24, heads=2, depth=4)
    x, y, z = encoder.patch
    data = replace(config.data, crop_size=(2 * x, 2 * y, 2 * z))
    subject = subject_of(replace(config, encoder=encoder, data=data))
    RealStep(subject.build().train(), config.optim, precision)(synthetic_batch(subject, 1), 0)


def resident_bytes() -> float:
    """Of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return float(pages * resource.getpagesize())


def largest_bytes() -> float:
    """Of this process at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


CHILDREN = {"planned": planned, "measured": measured}
HEAD = (
    "| job | step, s | planned / measured | without a real step | GB | planned / measured |\n"
    "|---|---:|---:|---:|---:|---:|"
)


def child(what: str, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """What a fresh process finds."""
    words = ["--child", what, "--only", name, "--threads", str(options.threads)]
    words += ["--gpu", options.gpu] if options.gpu else []
    done = subprocess.run(
        [sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Runs every job in a process of its own and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=[*JOBS, *GPU_JOBS])
    parser.add_argument("--gpu", choices=GPUS, help="plan for, and measure on, this GPU")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="JSON file; default: none")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        config = (JOBS | GPU_JOBS)[options.only[0]]
        target = replace(config.plan, gpu=options.gpu or "cpu")
        print(json.dumps(CHILDREN[options.child](replace(config, plan=target))))
        return
    print(HEAD)
    rows = {}
    for name in options.only or (GPU_JOBS if options.gpu else JOBS):
        row = rows[name] = child("planned", name, options) | child("measured", name, options)
        print(
            f"| {name}, batch {row['batch']} | {row['seconds']:.3f} | "
            f"{row['planned_seconds'] / row['seconds']:.2f} | "
            f"{row['reckoned_seconds'] / row['seconds']:.2f} | {row['gb']:.2f} | "
            f"{row['planned_gb'] / row['gb']:.2f} |",
            flush=True,
        )
    if options.out:
        write_json(options.out, {"versions": versions(), "rows": rows})


if __name__ == "__main__":
    main()
