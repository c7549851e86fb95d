"""U: each side in a process of its own, as a user starts it.

    python benchmarks/throughput/own_process.py
    python benchmarks/throughput/own_process.py --jobs base/16 --batch 24

MONAI runs with the allocator as Python finds it, ours with the setting that the `mim3d` command
makes on a CPU (`THP_MEM_ALLOC_ENABLE=1`). The ratio is between medians, since the sides cannot
take turns; rounds alternate between them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import finetune_step
import torch
from pretrain_step import masked_job

from mim3d.foundation.atomic import write_json
from mim3d.foundation.versions import versions
from mim3d.workflows.throughput.machine import machine
from mim3d.workflows.throughput.race import SHIPPED, seconds
from mim3d.workflows.throughput.steps import Preset
from mim3d.workflows.throughput.table import spread

MASKED: dict[str, tuple[Preset, int, int, int]] = {
    "small/16": ("small", 16, 8, 384),
    "base/16": ("base", 16, 8, 384),
    "small/8": ("small", 8, 2, 384),
    "tiny/8": ("tiny", 8, 4, 192),
}
"""MAE: encoder, patch, crops of a batch, width of the full decoder."""
FINETUNE = "unetr base/16"
JOBS = (*MASKED, FINETUNE)
SIDES = {
    **dict.fromkeys(MASKED, (SHIPPED, "mim3d, full", "mim3d, quarter", "mim3d, light")),
    FINETUNE: (SHIPPED, "mim3d, `unetr`", "mim3d, `half`"),
}
"""What the contestants' names begin with."""
RESULTS = Path(__file__).parent / "results"


def timed_alone(name: str, batch: int, side: str, repeats: int) -> list[float]:
    """Milliseconds of a step, measured in a fresh process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["THP_MEM_ALLOC_ENABLE"] = "0" if side == SHIPPED else "1"
    arguments = ["--alone", name, side, "--batch", str(batch), "--repeats", str(repeats)]
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def alone(name: str, side: str, batch: int, repeats: int) -> None:
    """The child's part."""
    torch.set_num_threads(1)
    if name == FINETUNE:
        (job,) = finetune_step.jobs(torch.device("cpu"))
    else:
        preset, edge, count, width = MASKED[name]
        job = masked_job(preset, edge, batch or count, width, torch.device("cpu"))
    (one,) = (found for found in job.contestants if found.name.startswith(side))
    seconds(one, 0, torch.device("cpu"))
    print(json.dumps([1e3 * seconds(one, 1 + i, torch.device("cpu")) for i in range(repeats)]))


def main() -> None:
    """Runs the rounds and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument(
        "--batch", type=int, default=0, help="crops of a batch in place of the job's"
    )
    parser.add_argument("--repeats", type=int, default=3, help="steps timed in each process")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "own_process_cpu.json")
    parser.add_argument("--alone", nargs=2, metavar=("JOB", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        alone(*options.alone, options.batch, options.repeats)
        return
    rows = []
    print("| job | side | ms | U |\n|---|---|---:|---:|", flush=True)
    for name in options.jobs:
        sides = SIDES[name]
        times: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(options.rounds):
            for side in sides if number % 2 == 0 else reversed(sides):
                times[side] += timed_alone(name, options.batch, side, options.repeats)
        reference = statistics.median(times[SHIPPED])
        batch = 1 if name == FINETUNE else options.batch or MASKED[name][2]
        for side, found in times.items():
            u = reference / statistics.median(found)
            print(f"| {name}, batch {batch} | {side} | {spread(found)} | {u:.2f} |", flush=True)
            rows.append({"job": name, "batch": batch, "side": side, "ms": found, "u": u})
        facts = {"machine": machine(torch.device("cpu")), "versions": versions(), "rows": rows}
        write_json(options.out, facts)


if __name__ == "__main__":
    main()
