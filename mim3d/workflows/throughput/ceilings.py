"""What this machine can do at most: the numbers that every stage's time is divided by.

Each limit is the fastest of some repeats, in a second or two, on random numbers that fit a laptop.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mim3d.training.fabric import float32_matmul
from mim3d.workflows.throughput.clock import fastest

Limit = Literal["bf16", "fp32", "copy", "read", "write", "inflate"]
Shape = tuple[int, int, int]

STEP_SHAPES: tuple[Shape, ...] = ((432, 384, 1536), (432, 768, 3072), (864, 1536, 384))
"""Rows, inputs and outputs of the linear maps of a step on a CPU: small and base, a few crops."""
GPU_SHAPES: tuple[Shape, ...] = ((8192, 8192, 8192), (16384, 768, 3072), (65536, 1024, 4096))
"""A large square, and the maps of base and large at the batches a GPU takes."""
CHECKED_SHAPE: Shape = (128, 384, 1536)
"""What the error of fp32 is measured on."""
CPU_BYTES, GPU_BYTES = 2**27, 2**32
"""Of the buffers that are copied: several times the largest cache."""
PINNED_BYTES = 2**28
LAUNCHES = 1000
INFLATED = (64, 96, 96)
"""Voxels of the volume whose decompression is timed."""


@dataclass(frozen=True)
class Ceilings:
    """Rates in FLOP or bytes a second.

    Args:
        device: where they were measured.
        bf16: matrix product, the best of step-like shapes; None where it does not run.
        fp32: the same in true fp32.
        fp32_medium: fp32 under `torch.set_float32_matmul_precision("medium")`.
        fp32_error: norm of the error over the norm of the result, against float64.
        fp32_medium_error: likewise under `medium`; 1e-3 tells that it rounds to bf16 or tf32.
        best_bf16_shape: rows, inputs, outputs of the best one.
        copy: memory read plus memory written, by a copy.
        read: memory read, by a sum.
        write: memory written, by a fill.
        inflate: bytes that leave the decompressor of `.nii.gz`, one thread.
        host_to_device: pinned memory to the device; None on a CPU.
        launch_seconds: between two launches of nothing; None on a CPU.
    """

    device: str
    bf16: float | None
    fp32: float
    fp32_medium: float
    fp32_error: float
    fp32_medium_error: float
    best_bf16_shape: Shape | None
    copy: float
    read: float
    write: float
    inflate: float
    host_to_device: float | None = None
    launch_seconds: float | None = None

    def rate(self, limit: Limit) -> float:
        """The rate a kind of work is measured against; fp32 where bf16 does not run."""
        found: float | None = getattr(self, limit)
        return self.fp32 if found is None else found

    def as_json(self) -> dict[str, Any]:
        """For the result file."""
        return asdict(self)


def measure_ceilings(
    device: torch.device,
    *,
    seconds: float = 0.15,
    shapes: Sequence[Shape] | None = None,
    buffer_bytes: int | None = None,
) -> Ceilings:
    """Measures all limits of a device.

    Args:
        device: a CPU or a CUDA device.
        seconds: spent on each of about a dozen measurements.
        shapes: rows, inputs and outputs of the matrix products; None suits the device.
        buffer_bytes: of each of two buffers that are copied; None suits the device.
    """
    is_cuda = device.type == "cuda"
    shapes = shapes or (GPU_SHAPES if is_cuda else STEP_SHAPES)
    bf16, best = None, None
    with contextlib.suppress(RuntimeError):  # a processor without any bf16 kernel
        bf16, best = max((product_rate(shape, torch.bfloat16, device, seconds), shape)
                         for shape in shapes)  # fmt: skip
    rates, errors = {}, {}
    words: tuple[Literal["highest", "medium"], ...] = ("highest", "medium")
    for precision in words:
        with float32_matmul(precision):
            rates[precision] = max(product_rate(shape, torch.float32, device, seconds)
                                   for shape in shapes)  # fmt: skip
            errors[precision] = product_error(device)
    copy, read, write = memory_rates(device, buffer_bytes or _buffer_bytes(device), seconds)
    return Ceilings(
        device=device.type,
        bf16=bf16,
        fp32=rates["highest"],
        fp32_medium=rates["medium"],
        fp32_error=errors["highest"],
        fp32_medium_error=errors["medium"],
        best_bf16_shape=best,
        copy=copy,
        read=read,
        write=write,
        inflate=inflate_rate(seconds),
        host_to_device=_host_to_device(device, seconds) if is_cuda else None,
        launch_seconds=_launch_seconds(device) if is_cuda else None,
    )


def product_rate(shape: Shape, dtype: torch.dtype, device: torch.device, seconds: float) -> float:
    """FLOP a second of a linear map as a step makes it, ten in a row on a GPU.

    Args:
        shape: rows, inputs, outputs.
        dtype: of all three matrices.
        device: where.
        seconds: how long to try.
    """
    rows, width, outputs = shape
    given, weight = (_random(size, device).to(dtype) for size in ((rows, width), (outputs, width)))
    calls = 10 if device.type == "cuda" else 1

    def product() -> None:
        for _ in range(calls):
            F.linear(given, weight)

    return 2.0 * rows * width * outputs * calls / fastest(product, device, seconds)


def product_error(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Norm of the error of a linear map over the norm of the result in float64."""
    rows, width, outputs = CHECKED_SHAPE
    given, weight = _random((rows, width), device), _random((outputs, width), device)
    exact = F.linear(given.double(), weight.double())
    found = F.linear(given.to(dtype), weight.to(dtype)).double()
    return float((found - exact).norm() / exact.norm())


def memory_rates(device: torch.device, count: int, seconds: float) -> tuple[float, float, float]:
    """Bytes a second of copying (read plus written), reading and writing.

    Args:
        device: where the buffers lie.
        count: bytes of each.
        seconds: how long to try, each.
    """
    source = torch.empty(count // 4, device=device).uniform_(generator=_generator(device))
    target = torch.empty_like(source)
    copy = fastest(lambda: target.copy_(source), device, seconds)
    read = fastest(lambda: source.sum(), device, seconds)
    write = fastest(lambda: target.fill_(0.5), device, seconds)
    return 2 * source.nbytes / copy, source.nbytes / read, source.nbytes / write


def inflate_rate(seconds: float) -> float:
    """Bytes a second that the fastest decompressor here gives of a noisy volume in int16."""
    random = np.random.Generator(np.random.Philox(0))
    ramp = np.add.outer(np.arange(INFLATED[0]), np.add.outer(*map(np.arange, INFLATED[1:])))
    voxels = (4 * ramp + random.normal(0, 8, INFLATED)).astype(np.int16)
    squeezed = zlib.compress(voxels.tobytes(), 4)
    room: Any = import_module("isal.isal_zlib" if find_spec("isal") else "zlib")
    return voxels.nbytes / fastest(
        lambda: room.decompress(squeezed, bufsize=voxels.nbytes), torch.device("cpu"), seconds
    )


def _host_to_device(device: torch.device, seconds: float) -> float:
    pinned = torch.empty(PINNED_BYTES, dtype=torch.uint8).pin_memory()
    target = torch.empty_like(pinned, device=device)
    return PINNED_BYTES / fastest(lambda: target.copy_(pinned, non_blocking=True), device, seconds)


def _launch_seconds(device: torch.device) -> float:
    one = torch.zeros(1, device=device)

    def launches() -> None:
        for _ in range(LAUNCHES):
            one.add_(1)

    return fastest(launches, device, 0.0) / LAUNCHES


def _buffer_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return CPU_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return int(min(GPU_BYTES, free // 8))


def _random(size: tuple[int, int], device: torch.device) -> Tensor:
    return torch.randn(size, device=device, generator=_generator(device))


def _generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)
