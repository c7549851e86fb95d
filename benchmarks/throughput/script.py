"""The command line that all scripts of this folder share."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from mim3d.foundation.atomic import write_json
from mim3d.foundation.versions import versions
from mim3d.workflows.throughput.machine import machine
from mim3d.workflows.throughput.race import Disagreement, Job, race
from mim3d.workflows.throughput.table import HEAD, lines, summary

Jobs = Callable[[torch.device], Iterator[Job]]
RESULTS = Path(__file__).parent / "results"


def run(story: str | None, jobs: Jobs) -> None:
    """What `python benchmarks/throughput/<script>.py` does.

    Args:
        story: the script's docstring.
        jobs: makes its jobs, results compared already.
    """
    parser = parser_of(story)
    options = parser.parse_args()
    try:
        measure({Path(sys.argv[0]).stem: jobs}, options)
    except Disagreement as error:
        raise SystemExit(str(error)) from error


def parser_of(story: str | None) -> argparse.ArgumentParser:
    """The options of every script."""
    parser = argparse.ArgumentParser(
        description=story, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch, on the CPU")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=Path, help="result file; default: results/, by script")
    return parser


def measure(scripts: Mapping[str, Jobs], options: argparse.Namespace) -> None:
    """Runs the jobs of some scripts, prints the table line by line and writes the result file.

    The file is written anew after every job, so that a run which is stopped still counts.
    """
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    name = "all" if len(scripts) > 1 else next(iter(scripts))
    path = options.out or RESULTS / f"{name}_{word_for(device)}.json"
    content: dict[str, Any] = {
        "machine": machine(device),
        "versions": versions(),
        "repeats": options.repeats,
        "seed": 0,
        "rows": [],
    }
    began = time.monotonic()
    print(HEAD, flush=True)
    for jobs in scripts.values():
        torch.manual_seed(0)
        for job in jobs(device):
            rows = race(job, options.repeats, device)
            print(lines(rows), flush=True)
            content["rows"] += map(summary, rows)
            content["seconds"] = time.monotonic() - began
            write_json(path, content)
            # Before the next job begins, this one's networks must be gone.
            del job
            gc.collect()
    print(f"\n{content['machine']}\nwritten to {path}")


def word_for(device: torch.device) -> str:
    """`cpu_torch2.13`, or the GPU's name in place of `cpu`."""
    name = device.type
    if name == "cuda":
        name = torch.cuda.get_device_name(device).lower().removeprefix("nvidia ").replace(" ", "-")
    release = ".".join(torch.__version__.split(".")[:2])
    return f"{name}_torch{release}"
