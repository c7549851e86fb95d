"""Where the windows of a sliding window lie, how they count, and in which order they run.

Same windows and same weights as MONAI's `sliding_window_inference`. They run along the axis on
which the volume is longest beside its window: what must be held while they overlap is then least.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mim3d.config.inference import InferenceConfig
from mim3d.foundation.errors import ConfigError

Triple = tuple[int, int, int]
Box = tuple[slice, slice, slice]

SIGMA = 0.125
"""Deviation of the Gaussian weights as a share of the window (nnU-Net, MONAI)."""
SMALLEST_WEIGHT = 1e-3
"""Floor of the Gaussian weights, relative to the window's centre (MONAI)."""


@dataclass(frozen=True)
class WindowCount:
    """How many windows passed the network, and how many were left out as nothing but air."""

    run: int
    skipped: int = 0

    def __add__(self, other: WindowCount) -> WindowCount:
        """Both together, as for several runs over one volume."""
        return WindowCount(self.run + other.run, self.skipped + other.skipped)


@dataclass(frozen=True)
class Sweep:
    """The windows of one volume in the order in which they run.

    Attributes:
        size: voxels of the volume, padded to the window's size where it is smaller.
        inside: where the volume lies in that.
        window: voxels of a window.
        axis: along which windows advance, 0 to 2.
        starts: first voxels of the windows that run, in the padded volume, ascending along `axis`.
        skipped: windows left out.
        is_padded: whether the volume is smaller than a window along some axis.
    """

    size: Triple
    inside: Box
    window: Triple
    axis: int
    starts: tuple[Triple, ...]
    skipped: int = 0

    @property
    def is_padded(self) -> bool:
        """Whether the volume is smaller than a window along some axis."""
        return any(
            side.stop - side.start < n for side, n in zip(self.inside, self.size, strict=True)
        )

    @property
    def count(self) -> WindowCount:
        """Windows run and skipped."""
        return WindowCount(len(self.starts), self.skipped)

    def box(self, start: Triple) -> Box:
        """The window that begins there."""
        x, y, z = (slice(s, s + w) for s, w in zip(start, self.window, strict=True))
        return x, y, z


def check_inference(config: InferenceConfig) -> None:
    """Raises `ConfigError` for a sliding window that cannot be slid."""
    if not 0 <= config.overlap < 1:
        raise ConfigError(
            f"`inference.overlap` is {config.overlap}, expected 0 to below 1", code="overlap"
        )
    if config.windows_per_batch < 1:
        raise ConfigError(
            f"`inference.windows_per_batch` is {config.windows_per_batch}, expected 1 or more",
            code="windows-per-batch",
        )
    if config.window is not None and min(config.window) < 1:
        raise ConfigError(
            f"`inference.window` is {config.window}, expected 1 voxel or more along each axis",
            code="window",
        )
    if len(set(config.mirrored)) != len(config.mirrored):
        raise ConfigError(f"`inference.flips` names an axis twice: {config.mirrored}", code="flips")


def plan_sweep(
    shape: Triple, window: Triple, overlap: float, body: NDArray[np.bool_] | None = None
) -> Sweep:
    """Where windows lie in a volume, and which of them run.

    A volume smaller than the window is padded on both sides.

    Args:
        shape: voxels of the volume.
        window: voxels of a window.
        overlap: share of a window that the next one covers again.
        body: `x y z`; windows without any body voxel are skipped. If no voxel at all is body, or
            with None, every window runs.
    """
    lacks = [max(0, side - n) for side, n in zip(window, shape, strict=True)]
    x, y, z = (n + lack for n, lack in zip(shape, lacks, strict=True))
    inside = [slice(lack // 2, lack // 2 + n) for lack, n in zip(lacks, shape, strict=True)]
    shares = [side / n for side, n in zip(window, (x, y, z), strict=True)]
    axis = shares.index(min(shares))
    starts = sorted(window_starts((x, y, z), window, overlap), key=lambda start: start[axis])
    plan = Sweep((x, y, z), (inside[0], inside[1], inside[2]), window, axis, tuple(starts))
    if body is None:
        return plan
    kept = tuple(start for start in starts if _holds_body(plan, start, body))
    if not kept:
        return plan
    return Sweep(plan.size, plan.inside, window, axis, kept, len(starts) - len(kept))


def _holds_body(plan: Sweep, start: Triple, body: NDArray[np.bool_]) -> bool:
    sides = [
        slice(max(0, low - inside.start), low + side - inside.start)
        for low, side, inside in zip(start, plan.window, plan.inside, strict=True)
    ]
    return bool(body[tuple(sides)].any())


def fitted(window: Triple, shape: Triple) -> Triple:
    """The window, no larger than the volume: then none of it is padding."""
    x, y, z = map(min, window, shape)
    return x, y, z


def axis_starts(size: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along one axis: in equal strides, the last one pushed back inside.

    Args:
        size: voxels of the axis, at least `window`.
        window: voxels of a window.
        overlap: share of a window that the next one covers again.
    """
    stride = max(1, int(window * (1 - overlap)))
    last = size - window
    return [min(place * stride, last) for place in range(math.ceil(last / stride) + 1)]


def window_starts(size: Triple, window: Triple, overlap: float) -> list[Triple]:
    """First voxels of all windows, x slowest; together they cover every voxel.

    Args:
        size: voxels of the volume, at least the window's along each axis.
        window: voxels of a window.
        overlap: share of a window that the next one covers again.
    """
    x, y, z = (axis_starts(s, w, overlap) for s, w in zip(size, window, strict=True))
    return list(itertools.product(x, y, z))


def window_weights(window: Triple, kind: str) -> Tensor:
    """Weight of each voxel of a window, `x y z` float32, above 0 everywhere.

    `constant` is 1; `gaussian` falls off from the centre with a deviation of an eighth of the
    window, so that voxels whose surroundings the network saw count most.
    """
    if kind == "constant":
        return torch.ones(window)
    x, y, z = (_bell(side) for side in window)
    weights = x[:, None, None] * y[None, :, None] * z[None, None, :]
    return weights.clamp_min(max(float(weights.min()), SMALLEST_WEIGHT))


def _bell(side: int) -> Tensor:
    offset = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
    return torch.exp(-(offset**2) / (2 * (SIGMA * side) ** 2))


def in_parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Consecutive parts of at most `size`."""
    return [items[place : place + size] for place in range(0, len(items), size)]
