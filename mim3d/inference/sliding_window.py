"""The sliding window: a network that sees boxes gives a map of the whole volume.

Where windows overlap the network's outputs (logits) are averaged, weighted by the place within the
window, as in MONAI's `sliding_window_inference`: same windows, same weights, same result.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mim3d.config.sections import InferenceConfig
from mim3d.foundation.errors import ConfigError, ShapeError, check_shape

Triple = tuple[int, int, int]
Spacing = tuple[float, float, float]
Swaps = Sequence[tuple[int, int]]

SIGMA = 0.125
"""Deviation of the Gaussian weights as a share of the window (nnU-Net, MONAI)."""
SMALLEST_WEIGHT = 1e-3
"""Floor of the Gaussian weights, relative to the window's centre (MONAI)."""


class Predictor(Protocol):
    """What the window is slid over."""

    def __call__(self, voxels: Tensor, spacing_mm: Tensor, valid: Tensor | None, /) -> Tensor:
        """Logits `b k x y z` of voxels `b c x y z` with spacing `b 3` and valid `b x y z`."""


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
    if len(set(config.flips)) != len(config.flips):
        raise ConfigError(f"`inference.flips` names an axis twice: {config.flips}", code="flips")


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


def slide(
    voxels: Tensor,
    predictor: Predictor,
    config: InferenceConfig,
    *,
    window: Triple,
    spacing_mm: Spacing,
    swaps: Swaps = (),
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """The predictor's logits for a whole volume.

    A volume smaller than the window is padded with zeros on both sides, marked as not valid.

    Args:
        voxels: `c x y z` on the device on which to add up.
        predictor: from windows to logits.
        config: overlap, weights, flips and windows a batch; its `window` is not read.
        window: voxels of a window.
        spacing_mm: voxel size along x, y, z.
        swaps: pairs of output channels that change places when x is mirrored (left, right).
        progress: told how many windows of how many are done.

    Returns:
        `k x y z`, float32, on the same device.

    Raises:
        ConfigError: the config names an impossible window.
        ShapeError: the predictor's output does not lie on its input's grid.
    """
    check_shape(voxels, "c x y z", "slide")
    check_inference(config)
    voxels, valid, inside = _padded(voxels, window)
    x, y, z = voxels.shape[1:]
    starts = window_starts((x, y, z), window, config.overlap)
    spacing = torch.tensor(spacing_mm, dtype=torch.float32, device=voxels.device)
    weights = window_weights(window, config.weights).to(voxels.device)
    if len(starts) == 1:
        weights = torch.ones_like(weights)

    total: Tensor | None = None
    mass = torch.zeros((x, y, z), device=voxels.device)
    done = 0
    for some in _batches(starts, config.windows_per_batch):
        boxes = [_box(start, window) for start in some]
        crops = torch.stack([voxels[(slice(None), *box)] for box in boxes])
        known = None if valid is None else torch.stack([valid[box] for box in boxes])
        logits = mirrored(
            predictor, crops, spacing.expand(len(some), 3), known, config.flips, swaps
        )
        if total is None:
            total = torch.zeros((logits.shape[1], x, y, z), device=voxels.device)
        for box, output in zip(boxes, logits, strict=True):
            total[(slice(None), *box)].addcmul_(output, weights)
            mass[box] += weights
        done += len(some)
        if progress is not None:
            progress(done, len(starts))
    assert total is not None  # there is always one window
    mean: Tensor = total.div_(mass)[(slice(None), *inside)]
    return mean


def mirrored(
    predictor: Predictor,
    voxels: Tensor,
    spacing_mm: Tensor,
    valid: Tensor | None,
    flips: Sequence[str],
    swaps: Swaps = (),
) -> Tensor:
    """Mean logits over all combinations of mirrored axes, each mirrored back; float32.

    Args:
        predictor: from windows to logits.
        voxels: `b c x y z`.
        spacing_mm: `b 3`.
        valid: `b x y z` or None.
        flips: axes out of x, y, z; empty predicts once.
        swaps: pairs of output channels that change places when x is mirrored.
    """
    total: Tensor | None = None
    for chosen in _combinations(flips):
        axes = [-3 + "xyz".index(axis) for axis in chosen]
        known = None if valid is None else valid.flip(axes)
        logits = predictor(voxels.flip(axes) if axes else voxels, spacing_mm, known).float()
        if logits.ndim != 5 or logits.shape[2:] != voxels.shape[2:]:
            raise ShapeError(
                f"a window of {tuple(voxels.shape)} gave logits of {tuple(logits.shape)}, "
                "expected `b k x y z` on the same grid"
            )
        logits = logits.flip(axes) if axes else logits
        if "x" in chosen and swaps:
            logits = logits[:, _exchanged(logits.shape[1], swaps)]
        total = logits if total is None else total + logits
    assert total is not None  # the unmirrored combination is always there
    return total / float(1 << len(flips))


def _combinations(axes: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for count in range(len(axes) + 1):
        yield from itertools.combinations(axes, count)


def _exchanged(channels: int, swaps: Swaps) -> list[int]:
    order = list(range(channels))
    for left, right in swaps:
        order[left], order[right] = right, left
    return order


def _padded(
    voxels: Tensor, window: Triple
) -> tuple[Tensor, Tensor | None, tuple[slice, slice, slice]]:
    """Voxels of at least the window's size, which are valid, and where the volume lies in them."""
    sizes = voxels.shape[1:]
    lacks = [max(0, side - size) for side, size in zip(window, sizes, strict=True)]
    before = [lack // 2 for lack in lacks]
    x, y, z = (slice(low, low + size) for low, size in zip(before, sizes, strict=True))
    if not any(lacks):
        return voxels, None, (x, y, z)
    edges = [(low, lack - low) for low, lack in zip(before, lacks, strict=True)]
    flat = [width for edge in reversed(edges) for width in edge]
    padded = F.pad(voxels, flat)
    valid = torch.zeros(padded.shape[1:], dtype=torch.bool, device=voxels.device)
    valid[x, y, z] = True
    return padded, valid, (x, y, z)


def _box(start: Triple, window: Triple) -> tuple[slice, slice, slice]:
    x, y, z = (slice(s, s + w) for s, w in zip(start, window, strict=True))
    return x, y, z


def _batches(starts: Sequence[Triple], size: int) -> Iterator[Sequence[Triple]]:
    for place in range(0, len(starts), size):
        yield starts[place : place + size]
