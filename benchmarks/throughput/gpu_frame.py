"""What the sections of `gpu.py` share: sizes, the clock, memory, and batches that grow."""

from __future__ import annotations

import contextlib
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from mim3d.workflows.throughput.clock import elapsed
from mim3d.workflows.throughput.inputs import Triple
from mim3d.workflows.throughput.steps import Preset

WARM_UPS = 3
"""Calls before the first that is timed; one on a CPU."""
GAIN = 1.02
"""A batch twice as large must be this much faster a crop, or it does not grow further."""
FULL_MEMORY = 0.85
"""Share of the device's memory beyond which no batch grows."""


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Args:
        runs: preset, edge of a patch and first batch of the pre-training steps, by value.
        compiled: how many of them are compiled as well.
        side: voxels of a crop along each axis.
        most: crops of a batch, at most.
        repeats: of the final measurement.
        volume: voxels of the volume that windows are slid over.
        classes: of the segmenter.
        segmenter: its preset.
        segmenter_batch: crops of a fine-tuning step.
        resident: volumes held on the device.
        feed_batch: crops of a batch that is cut from them.
    """

    runs: tuple[tuple[Preset, int, int], ...]
    compiled: int
    side: int
    most: int
    repeats: int
    volume: Triple
    classes: int
    segmenter: Preset
    segmenter_batch: int
    resident: int
    feed_batch: int


REAL = Sizes(
    runs=(("base", 8, 32), ("large", 16, 64), ("base", 16, 128), ("small", 8, 64)), compiled=2,
    side=96, most=2048, repeats=10, volume=(512, 512, 300), classes=14,
    segmenter="base", segmenter_batch=4, resident=8, feed_batch=256,
)  # fmt: skip
SMOKE = Sizes(
    runs=(("tiny", 16, 1),), compiled=0, side=32, most=1, repeats=1, volume=(40, 36, 48),
    classes=3, segmenter="tiny", segmenter_batch=1, resident=2, feed_batch=2,
)  # fmt: skip
"""For a CPU: only shows that everything runs."""


@dataclass
class Bench:
    """One run of the script.

    Args:
        device: a GPU, or a CPU for a smoke test.
        sizes: how large everything is.
        deadline: on the monotonic clock.
        results: of the sections that are done, by name.
        reserve: seconds that the sections still to come are planned to take.
    """

    device: torch.device
    sizes: Sizes
    deadline: float
    results: dict[str, Any] = field(default_factory=dict)
    reserve: float = 0.0

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def has_time(self, seconds: float = 0.0) -> bool:
        """Whether the section that runs may begin something of so many seconds."""
        return self.left > self.reserve + seconds

    @property
    def bf16_peak(self) -> float:
        """FLOP a second of the best matrix product, measured in this run."""
        ceilings = self.results["ceilings"]
        return float(ceilings["bf16"] or ceilings["fp32"])


def milliseconds(call: Callable[[int], Any], bench: Bench, *, repeats: int | None = None) -> float:
    """The median time of a call, several at once where one is short.

    Args:
        call: is told how many times it was called before, so that inputs take turns.
        bench: whose device and repeats.
        repeats: in place of the bench's.
    """
    numbers = iter(range(10**9))
    for _ in range(WARM_UPS if bench.device.type == "cuda" else 1):
        call(next(numbers))
    once = elapsed(lambda: call(next(numbers)), bench.device)
    # The host must be ahead of the device: between two looks at the clock lie 50 ms at least.
    together = min(50, math.ceil(0.05 / max(once, 1e-6))) if bench.device.type == "cuda" else 1

    def some() -> None:
        for _ in range(together):
            call(next(numbers))

    times = [elapsed(some, bench.device) for _ in range(repeats or bench.sizes.repeats)]
    return 1e3 * statistics.median(times) / together


def peak_gb(bench: Bench) -> float | None:
    """Most memory that tensors took on the device since `fresh`, 10^9 bytes; None on a CPU."""
    if bench.device.type != "cuda":
        return None
    return float(torch.cuda.max_memory_allocated(bench.device)) / 1e9


def may_double(bench: Bench) -> bool:
    """Whether twice the peak still fits."""
    peak = peak_gb(bench)
    if peak is None:
        return True
    total = torch.cuda.get_device_properties(bench.device).total_memory / 1e9
    return 2 * peak < FULL_MEMORY * total


@contextlib.contextmanager
def fresh(bench: Bench) -> Iterator[None]:
    """Memory given back before and behind, and the peak counted from here."""
    release(bench)
    try:
        yield
    finally:
        release(bench)


def release(bench: Bench) -> None:
    """Gives memory back and begins a new peak."""
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(bench.device)


def growing(
    first: int, make: Callable[[int], Callable[[int], Any]], bench: Bench
) -> dict[str, Any]:
    """The fastest batch: doubled until memory is full or a crop is no longer cheaper.

    Args:
        first: crops of the first batch.
        make: from a number of crops to a step.
        bench: the run.

    Returns:
        `batch`, `ms`, `crops_per_second`, `peak_gb`, and `tried`: batch to crops a second.
    """
    best: dict[str, Any] = {}
    tried: dict[int, float] = {}
    count = first
    while True:
        release(bench)
        try:
            call = make(count)
            ms = milliseconds(call, bench, repeats=3)
            del call
        except torch.OutOfMemoryError:
            tried[count] = 0.0
            break
        tried[count] = 1e3 * count / ms
        gained = not best or tried[count] > GAIN * best["crops_per_second"]
        if gained:
            best = {"batch": count, "ms": ms, "crops_per_second": tried[count],
                    "peak_gb": peak_gb(bench)}  # fmt: skip
        may_grow = 2 * count <= bench.sizes.most and may_double(bench) and bench.has_time()
        if not (gained and may_grow):
            break
        count *= 2
    if not best:
        raise torch.OutOfMemoryError(f"a batch of {first} does not fit")
    release(bench)
    ms = milliseconds(make(best["batch"]), bench)
    return {**best, "ms": ms, "crops_per_second": 1e3 * best["batch"] / ms, "tried": tried}
