"""Everything that a GPU can tell of mim3d's speed, in one command of ten minutes.

    python benchmarks/throughput/gpu.py --budget 540 --out benchmarks/throughput/results
    python benchmarks/throughput/gpu.py --smoke --out smoke      # on a CPU: does it all run?

Needs torch, numpy and this checkout; MONAI's columns are there if `import monai` works. Sections
run in the order of their value. Results are written anew behind each of them, so that a run which
is cut short still counts, and a section that fails or finds no time left says so in its place.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
if importlib.util.find_spec("mim3d") is None:  # a machine on which nothing is installed
    sys.path.insert(0, str(ROOT))

from gpu_frame import REAL, SMOKE, Bench, release  # noqa: E402
from gpu_report import as_markdown  # noqa: E402
from gpu_steps import (  # noqa: E402
    against_monai,
    ceilings,
    equality,
    finetuning,
    pretraining,
    profiled,
)
from gpu_volumes import window  # noqa: E402

from mim3d.foundation.atomic import write_json, write_text  # noqa: E402
from mim3d.foundation.versions import versions  # noqa: E402
from mim3d.workflows.throughput.machine import machine  # noqa: E402


def resident(bench: Bench) -> dict[str, Any]:
    """Crops out of volumes on the device; what it needs is only looked for when it runs."""
    from gpu_feed import resident as section

    return section(bench)


@dataclass(frozen=True)
class Section:
    """One part of the run.

    Args:
        name: in the result file.
        seconds: planned.
        run: measures it.
        expected: written down before anything was measured (docs: predictions).
        needs: another section without which it cannot run.
    """

    name: str
    seconds: float
    run: Callable[[Bench], dict[str, Any]]
    expected: str
    needs: str | None = None


SECTIONS = (
    Section("ceilings", 20, ceilings, "H200: bf16 790 TFLOP/s, copy 4.3 TB/s, 50 GB/s, 5 us"),
    Section("equality", 25, equality, "loss within 1e-5, gradients within 1e-4"),
    Section("pretrain", 180, pretraining, "MFU 0.5 to 0.55 as is, 0.6 compiled", "ceilings"),
    Section("monai", 60, against_monai, "S 10.2 at base/8, 8.7 at large/16", "pretrain"),
    Section("profile", 45, profiled, "gaps below 3 percent, no wait for the device"),
    Section("resident", 60, resident, "12,000 crops/s; step at most 1.05 of a fixed batch"),
    Section("finetune", 60, finetuning, "S at least 4"),
    Section("window", 70, window, "S at least 5, memory at most a quarter"),
)


FAILED = ("error", "skipped")
"""What a section without results has."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line and runs; 1 if a section failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=540, help="seconds of the whole run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    names = [section.name for section in SECTIONS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, also on a CPU")
    options = parser.parse_args(arguments)
    if not (options.smoke or torch.cuda.is_available()):
        parser.error("torch sees no GPU here; `--smoke` runs everything in tiny on a CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = SMOKE if options.smoke else REAL
    bench = Bench(device, sizes, time.monotonic() + options.budget)
    path = options.out / f"gpu_{_word(device, smoke=options.smoke)}.json"
    content = run([s for s in SECTIONS if s.name in options.only], bench, path)
    return int(any("error" in part for part in content["sections"].values()))


def run(sections: Sequence[Section], bench: Bench, path: Path) -> dict[str, Any]:
    """Runs the sections one after the other and writes the results behind each.

    Args:
        sections: in order.
        bench: the run.
        path: of the JSON; the table for people goes beside it.
    """
    content: dict[str, Any] = {
        "machine": machine(bench.device),
        "versions": versions(),
        "clocks": _clocks(),
        "sections": {},
    }
    for place, section in enumerate(sections):
        bench.reserve = sum(later.seconds for later in sections[place + 1 :])
        began = time.monotonic()
        found = _tried(section, bench)
        bench.results[section.name] = found
        content["sections"][section.name] = {
            "expected": section.expected, "seconds": time.monotonic() - began, **found
        }  # fmt: skip
        content["clocks_at_the_end"] = _clocks()
        write_json(path, content)
        write_text(path.with_suffix(".md"), as_markdown(content))
        ended = found.get("error", found.get("skipped", "done")).splitlines()[-1]
        print(f"{section.name}: {time.monotonic() - began:.0f} s, {ended}", flush=True)
    print(f"\n{as_markdown(content)}\nwritten to {path}")
    return content


def _tried(section: Section, bench: Bench) -> dict[str, Any]:
    if section.needs and not set(FAILED).isdisjoint(bench.results.get(section.needs, FAILED)):
        return {"skipped": f"`{section.needs}` gave no result"}
    if bench.left < section.seconds / 3:
        return {"skipped": f"{bench.left:.0f} s left of the budget"}
    try:
        return section.run(bench)
    except Exception:  # the others still count
        return {"error": traceback.format_exc()}
    finally:
        release(bench)


def _clocks() -> str:
    """What the driver says of the GPU's clocks, power and heat; empty without one."""
    asked = "name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _word(device: torch.device, *, smoke: bool) -> str:
    name = device.type
    if name == "cuda":
        name = torch.cuda.get_device_name(device).lower().removeprefix("nvidia ").replace(" ", "-")
    release_of_torch = ".".join(torch.__version__.split(".")[:2])
    return f"{name}_torch{release_of_torch}{'_smoke' if smoke else ''}"


if __name__ == "__main__":
    sys.exit(main())
