"""Where the device's time goes: a trace of a few steps, its kernels sorted by what they do."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

STEPS = 3
KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("attention", ("flash", "fmha", "scaled_dot_product", "sdpa", "softmax")),
    ("convolution", ("conv", "implicit", "fprop", "dgrad", "wgrad")),
    ("matrix", ("gemm", "cutlass", "nvjet", "xmma", "wgmma", "cublas", "::mm", "addmm", "bmm")),
    ("norm", ("layer_norm", "layernorm", "gammabeta", "instance_norm", "batch_norm")),
    ("gelu", ("gelu",)),
    ("optimiser", ("adam", "multi_tensor", "foreach")),
    ("gather", ("gather", "scatter", "index", "sort")),
    ("compiled", ("triton",)),
    ("copy or cast", ("copy", "memcpy", "memset", "cat", "to_copy")),
    ("sum", ("reduce", "::sum", "::mean")),
)
"""The first kind whose part of a name is found is the kernel's; all else is elementwise."""
ON_DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})


def parts_of(call: Callable[[int], Any], device: torch.device) -> dict[str, Any]:
    """Shares of the kernels' time by kind, the share of gaps, and the longest kernels.

    On a CPU the operations stand in for kernels, so that a smoke test takes the same way.

    Args:
        call: one step, warm.
        device: where it runs.
    """
    is_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with profile(activities=activities) as prof:
        for number in range(STEPS):
            call(number)
        if is_cuda:
            torch.cuda.synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        prof.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    wanted = ON_DEVICE if is_cuda else {"cpu_op"}
    return summed([event for event in events if event.get("cat") in wanted])


def summed(events: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Shares of time by kind.

    Args:
        events: `name`, `ts` and `dur` in microseconds each.
    """
    kinds: dict[str, float] = defaultdict(float)
    names: dict[str, float] = defaultdict(float)
    spans = []
    for event in events:
        kinds[kind_of(event["name"])] += event["dur"]
        names[event["name"][:80]] += event["dur"]
        spans.append((event["ts"], event["ts"] + event["dur"]))
    if not spans:
        return {"kernels": 0}
    total = sum(kinds.values())
    busy = _union(spans)
    whole = max(stop for _, stop in spans) - min(start for start, _ in spans)
    longest = sorted(names, key=names.__getitem__, reverse=True)[:12]
    return {
        "kernels": len(spans) // STEPS,
        "ms_a_step": whole / STEPS / 1e3,
        "gaps": 1 - busy / whole if whole else 0.0,
        "shares": {
            kind: kinds[kind] / total for kind in sorted(kinds, key=kinds.__getitem__)[::-1]
        },
        "longest": {name: names[name] / total for name in longest},
    }


def kind_of(name: str) -> str:
    """What a kernel does, by its name."""
    lower = name.lower()
    for kind, parts in KINDS:
        if any(part in lower for part in parts):
            return kind
    return "elementwise"


def _union(spans: list[tuple[float, float]]) -> float:
    """Time that any span covers."""
    covered, until = 0.0, float("-inf")
    for start, stop in sorted(spans):
        covered += max(0.0, stop - max(start, until))
        until = max(until, stop)
    return covered
