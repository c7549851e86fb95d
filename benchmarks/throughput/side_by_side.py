"""Our stages and MONAI's counterparts, side by side in one process.

    THP_MEM_ALLOC_ENABLE=1 python benchmarks/throughput/side_by_side.py
    python benchmarks/throughput/side_by_side.py --stages crops window --repeats 5
    python benchmarks/throughput/side_by_side.py --device cuda --stages pretrain finetune

Results are compared first, and a difference ends the run; then the contestants take turns. S is
MONAI as shipped (fp32, torch's default AdamW) / ours; T is MONAI brought to our precision and
optimiser / ours. The result file is written anew after every job, so that a run which is stopped
still counts. Without MONAI only our own times are printed.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from crops_and_windows import cropping, sliding
from race import Job, Row, race
from training_steps import finetuning, pretraining

from mim3d.foundation.atomic import write_json
from mim3d.foundation.versions import versions

STAGES: dict[str, Callable[[torch.device], Iterator[Job]]] = {
    "pretrain": pretraining,
    "finetune": finetuning,
    "crops": cropping,
    "window": sliding,
}
RESULTS = Path(__file__).parent / "results"
HEAD = (
    "| job | contestant | ms | S | T | results compared |\n"
    "|---|---|---:|---:|---:|---|"
)  # fmt: skip


def machine(device: torch.device) -> dict[str, Any]:
    """What the times depend on besides versions."""
    facts: dict[str, Any] = {
        "device": device.type,
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "allocator": allocator(),
        "clock": "CUDA events" if device.type == "cuda" else "CPU time of the process",
    }
    if hasattr(os, "sched_getaffinity"):
        facts["cores_allowed"] = len(os.sched_getaffinity(0))
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
    return facts


def processor() -> str:
    """Name, family and model, and whether it multiplies bf16 in hardware."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = dict(re.findall(r"^(.+?)\s*: (.*)$", text, re.MULTILINE))
    family = f"family {found.get('cpu family')}, model {found.get('model')}"
    flags = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in found.get("flags", "").split()]
    return ", ".join([found.get("model name", platform.machine()), family, *flags])


def allocator() -> str:
    """The setting that moves times on a CPU most; it counts only before torch is loaded."""
    on = os.environ.get("THP_MEM_ALLOC_ENABLE") == "1"
    return "THP_MEM_ALLOC_ENABLE=1" if on else "system"


def result_path(device: torch.device) -> Path:
    """`results/side_by_side_cpu_torch2.13.json`, or with the GPU's name."""
    name = device.type
    if name == "cuda":
        name = torch.cuda.get_device_name(device).lower().removeprefix("nvidia ").replace(" ", "-")
    release = ".".join(torch.__version__.split(".")[:2])
    return RESULTS / f"side_by_side_{name}_torch{release}.json"


def lines(rows: Sequence[Row]) -> str:
    """The part of the table that one job makes; the job stands in its first line."""
    return "\n".join(
        line(row, "" if i else f"{row.stage}: {row.what}") for i, row in enumerate(rows)
    )


def line(row: Row, job: str) -> str:
    """One line of the table."""
    cells = (
        job, row.contestant, spread(row.ms), spread(row.s), spread(row.t),
        row.equality,
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def spread(numbers: Sequence[float]) -> str:
    """Smallest, **median**, largest, to three digits."""
    if not numbers:
        return ""
    low, middle, high = map(digits, (min(numbers), statistics.median(numbers), max(numbers)))
    return f"{low}-**{middle}**-{high}"


def digits(number: float) -> str:
    """Three digits, thousands apart, nothing behind the point from 100 on."""
    return f"{number:,.0f}" if number >= 100 else f"{number:#.3g}"


def summary(row: Row) -> dict[str, Any]:
    """A row with its spread for the result file."""
    names = ("min", "median", "max")
    spreads = {
        key: dict(zip(names, (min(n), statistics.median(n), max(n)), strict=True)) if n else None
        for key, n in (("ms", row.ms), ("s", row.s), ("t", row.t))
    }
    return {**asdict(row), "spread": spreads}


def measure(options: argparse.Namespace) -> None:
    """Runs the stages, prints the table line by line and writes the result file."""
    device = torch.device(options.device)
    path = options.out or result_path(device)
    content: dict[str, Any] = {
        "machine": machine(device),
        "versions": versions(),
        "repeats": options.repeats,
        "seed": 0,
        "rows": [],
    }
    began = time.monotonic()
    print(HEAD, flush=True)
    for stage in options.stages:
        torch.manual_seed(0)
        for job in STAGES[stage](device):
            rows = race(job, options.repeats, device)
            print(lines(rows), flush=True)
            content["rows"] += map(summary, rows)
            content["seconds"] = time.monotonic() - began
            write_json(path, content)
            # Before the next job begins, this one's networks must be gone.
            del job
            gc.collect()
    print(f"\n{content['machine']}\nwritten to {path}")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch, on the CPU")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, help="result file; default: results/, by device")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measure(options)


if __name__ == "__main__":
    main()
