"""What a prediction will take, told before its first window: windows, memory, time.

One batch of empty windows passes the network first. It shows the time of a window and what the
network holds while it runs; what sums, labels and probabilities take follows from their shapes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mim3d.foundation.memory import gigabytes, resident_bytes, watched
from mim3d.foundation.reporting import duration
from mim3d.inference.relief import Relief
from mim3d.inference.sliding_window import Predictor
from mim3d.inference.windows import Sweep, Triple, WindowCount

MARGIN = 1.05
"""The allocator holds somewhat more than what lives."""
LIBRARIES = 32 << 20
"""Bytes of kernels and caches that libraries make with the first windows of a shape."""
NOTABLE = 1.2
"""A volume that needs so many times as much as those before it is told of."""
OUTPUT_COPIES = 3
"""Of a label map while it is written: rows as they come, the volume, the bytes of the file."""


@dataclass(frozen=True)
class Load:
    """What a pass over a volume holds besides the network, in shapes.

    Args:
        sweep: its windows.
        channels: of a window.
        outputs: of the network.
        flips: mirrored axes.
        with_mass: whether weights are added up too.
        volume: voxels of the file's own grid.
        with_probabilities: whether those of the whole volume are collected.
    """

    sweep: Sweep
    channels: int
    outputs: int
    flips: int
    with_mass: bool
    volume: Triple
    with_probabilities: bool

    @property
    def sum_bytes(self) -> int:
        """Of the rows that windows still touch, and of the voxels that are compared in them."""
        rows = 4 * torch.Size(self.sweep.size).numel()
        rows = rows * self.sweep.window[self.sweep.axis] // self.sweep.size[self.sweep.axis]
        # Beside the sums: their largest, a mask, and the weights.
        return rows * (self.outputs + self.with_mass + 2)

    @property
    def output_bytes(self) -> int:
        """Of what is collected for the whole volume."""
        labels = OUTPUT_COPIES * (1 if self.outputs <= 256 else 2)
        return torch.Size(self.volume).numel() * labels + self.probability_bytes

    @property
    def probability_bytes(self) -> int:
        """Of the probabilities of the whole volume; 0 where only labels are collected."""
        return torch.Size(self.volume).numel() * 4 * self.outputs * self.with_probabilities


@dataclass(frozen=True)
class Need:
    """The plan of one pass.

    Args:
        windows: that pass the network, and that are skipped.
        peak_bytes: of this process in the machine's memory; None where the system does not say.
        device_bytes: at most on the GPU; None without one.
        seconds: of all windows.
        probability_bytes: of the peak, for probabilities of the whole volume: those that are asked
            for, or those of several runs.
    """

    windows: WindowCount
    peak_bytes: int | None
    device_bytes: int | None
    seconds: float
    probability_bytes: int = 0

    def __str__(self) -> str:
        parts = [f"{self.windows.run:,} windows"]
        parts += [f"{self.windows.skipped:,} of air skipped"] if self.windows.skipped else []
        if self.peak_bytes is not None:
            parts.append(f"at most {gigabytes(self.peak_bytes)} of memory")
        if self.probability_bytes:
            parts.append(
                f"{gigabytes(self.probability_bytes)} of it for probabilities of the whole volume"
            )
        if self.device_bytes is not None:
            parts.append(f"{gigabytes(self.device_bytes)} on the GPU")
        return ", ".join([*parts, f"about {duration(self.seconds)}"])


class Forecast:
    """Plans of the volumes of one command; a network is tried out once.

    Args:
        say: told of the plan of the first volume, and of those that need notably more.
    """

    def __init__(self, say: Callable[[Need], None]) -> None:
        self._say = say
        self._trials: dict[tuple[object, ...], _Trial] = {}
        self._most = -1.0
        self.needs: list[Need] = []

    def tell(self, predictor: Predictor, load: Load, relief: Relief) -> None:
        """Reckons a pass, before its first window; says so where it is notable."""
        at_once = min(max(1, relief.at_once), len(load.sweep.starts) << load.flips)
        key = (load.sweep.window, load.channels, at_once, predictor)
        if key not in self._trials:
            self._trials[key] = _try_out(predictor, load, relief, at_once)
        trial = self._trials[key]
        on_gpu = relief.device.type == "cuda"
        sums_on_gpu = relief.sums_on.type == "cuda"
        now, peak = resident_bytes(), None
        if now is not None and trial.held is not None:
            sums = 0 if sums_on_gpu else load.sum_bytes
            peak = int(now + LIBRARIES + MARGIN * (trial.held + sums + load.output_bytes))
        on_device = None
        if on_gpu:
            standing = torch.cuda.memory_allocated(relief.device)
            on_device = standing + trial.device + (load.sum_bytes if sums_on_gpu else 0)
        count = len(load.sweep.starts) << load.flips
        seconds = trial.seconds * count
        need = Need(load.sweep.count, peak, on_device, seconds, load.probability_bytes)
        self.needs.append(need)
        if (peak or 0) > NOTABLE * self._most:
            self._most = peak or 0
            self._say(need)


@dataclass(frozen=True)
class _Trial:
    """What one window takes: seconds, and bytes that a batch holds while it runs."""

    seconds: float
    held: int | None
    device: int


def _try_out(predictor: Predictor, load: Load, relief: Relief, at_once: int) -> _Trial:
    on_gpu = relief.device.type == "cuda"
    while True:
        if on_gpu:
            before = torch.cuda.memory_allocated(relief.device)
            torch.cuda.reset_peak_memory_stats(relief.device)
        try:
            with watched() as peak:
                began = time.monotonic()
                crops = torch.zeros((at_once, load.channels, *load.sweep.window))
                spacing = torch.ones((at_once, 3), device=relief.device)
                predictor(crops.to(relief.device), spacing, None).float()
                if on_gpu:
                    torch.cuda.synchronize(relief.device)
                seconds = time.monotonic() - began
            break
        except Exception as error:
            relief.after(error)
            at_once = min(at_once, relief.at_once)
    # What the allocator keeps for the next batch counts as standing already.
    left = resident_bytes()
    held = None if peak.bytes is None or left is None else peak.bytes - left
    device = torch.cuda.max_memory_allocated(relief.device) - before if on_gpu else 0
    return _Trial(seconds / at_once, held, device)
