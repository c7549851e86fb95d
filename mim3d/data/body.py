"""Which voxels are body and which are air.

Body is what lies above a threshold. CT: -500 HU, half way between air and water; lung below it
counts as air. Other modalities have no scale of their own, so the threshold is looked for in the
values, twice:

1. An exact background: one value at the low end that holds a share of all voxels its neighbours do
   not have (brains extracted with zeros around, padding). Everything up to it is air.
2. Noise: the lower class of Otsu's threshold (1979), where it is far darker than the rest and fills
   a face of the volume. The threshold is 3.2 times its median (of Rayleigh noise 0.1 % lies
   above that), at most Otsu's.

Where neither is found, as in a crop inside the head, everything is body.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mim3d.data.resample import extent

Modality = Literal["ct", "mr", "other"]

AIR_HU = -500.0
SAMPLE = 500_000
"""Voxels looked at, a fixed grid of them."""
EXACT_SHARE = 0.05
"""Least share of all voxels that an exact background holds."""
EXACT_PEAK = 5.0
"""How often a background value occurs for each time the next value does."""
NOISE_RATIO = 0.15
"""Largest mean of air, as a share of the body's median. Rice noise of SNR 9 has this."""
NOISE_SHARE = 0.05
"""Least share of the voxels that noise holds."""
NOISE_FACE = 0.5
"""Least share of one face of the volume that air holds, if it lies around the body."""
BLOCK = 4
"""Side of the blocks whose means decide, in noise, which slices hold body."""


@dataclass(frozen=True)
class Air:
    """How to tell air in one channel.

    Args:
        threshold: the largest intensity of air; None where all is body.
        noisy: whether single voxels of air lie above the threshold.
    """

    threshold: float | None
    noisy: bool = False

    def body(self, voxels: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether each voxel is body; non-finite ones are not."""
        finite = np.isfinite(voxels) if voxels.dtype.kind == "f" else np.True_
        above = np.broadcast_to(finite, voxels.shape)
        return above if self.threshold is None else (voxels > self.threshold) & above


def find_air(voxels: NDArray[Any], modality: Modality) -> Air:
    """The threshold between air and body of one channel, `x y z`."""
    if modality == "ct":
        return Air(AIR_HU)
    sample = _sample(voxels)
    if sample.size < 2:
        return Air(None)
    exact = _exact_background(sample)
    rest = sample if exact is None else sample[sample > exact]
    noise = _noise_threshold(rest)
    if noise is not None and _fills_a_face(voxels, noise):
        return Air(noise, noisy=True)
    return Air(exact)


def body_mask(voxels: NDArray[Any], airs: tuple[Air, ...]) -> NDArray[np.bool_]:
    """Voxels that are body in any channel: `c x y z` to `x y z`."""
    mask = airs[0].body(voxels[0]).copy(order="K")
    for channel, air in zip(voxels[1:], airs[1:], strict=True):
        mask |= air.body(channel)
    return mask


def body_box(voxels: NDArray[Any], airs: tuple[Air, ...]) -> tuple[slice, slice, slice]:
    """The box that holds the body of all channels; empty slices where there is none.

    In noise, single voxels of air lie above the threshold everywhere; there, means of blocks
    decide.
    """
    boxes = [_channel_box(channel, air) for channel, air in zip(voxels, airs, strict=True)]
    found = [box for box in boxes if all(side.stop > side.start for side in box)]
    if not found:
        return (slice(0, 0), slice(0, 0), slice(0, 0))
    x, y, z = (
        slice(min(b[axis].start for b in found), max(b[axis].stop for b in found))
        for axis in range(3)
    )
    return (x, y, z)


def _channel_box(voxels: NDArray[Any], air: Air) -> tuple[slice, ...]:
    if air.threshold is None or not air.noisy:
        body = air.body(voxels)
        return tuple(extent(body, axis) for axis in range(3))
    means = np.asarray(voxels, np.float64)
    for axis, size in enumerate(voxels.shape):
        starts = np.arange(0, size, BLOCK)
        lengths = np.diff([*starts, size])
        means = np.add.reduceat(means, starts, axis=axis)
        means /= lengths.reshape([-1 if a == axis else 1 for a in range(3)])
    coarse = means > air.threshold
    box = []
    for axis, size in enumerate(voxels.shape):
        side = extent(coarse, axis)
        # A block below the mean can still hold the body's edge: one block more at each end.
        start, stop = max(0, (side.start - 1) * BLOCK), min(size, (side.stop + 1) * BLOCK)
        box.append(slice(start, stop) if side.stop > side.start else slice(0, 0))
    return tuple(box)


def _sample(voxels: NDArray[Any]) -> NDArray[np.float64]:
    """Finite values on a fixed grid of at most `SAMPLE` voxels."""
    step = 1
    while voxels[::step, ::step, ::step].size > SAMPLE:
        step += 1
    values = voxels[::step, ::step, ::step].astype(np.float64).ravel()
    return values[np.isfinite(values)]


def _exact_background(sample: NDArray[np.float64]) -> float | None:
    values, counts = np.unique(sample, return_counts=True)
    most = int(counts.argmax())
    others = sample.size - counts[most]
    if others == 0 or counts[most] < EXACT_SHARE * sample.size:
        return None
    below = counts[:most].sum()
    following = counts[most + 1] if most + 1 < counts.size else 0
    if below > 0.1 * others or counts[most] < EXACT_PEAK * following:
        return None
    return float(values[most])


def _noise_threshold(sample: NDArray[np.float64]) -> float | None:
    if sample.size < 100:
        return None
    # Clipped at both ends: a few voxels of -1e6 must not become the range of the histogram.
    first, last = (float(value) for value in np.quantile(sample, (0.01, 0.99)))
    base = min(0.0, first)
    values = np.clip(sample, base, last) - base
    lower = values
    # Bright fat can make the first split one between tissues; air is then in the lower part's.
    for _ in range(3):
        threshold = _otsu(lower)
        if threshold is None:
            return None
        lower = lower[lower <= threshold]
        upper = values[values > threshold]
        if lower.size < NOISE_SHARE * values.size:
            return None
        if lower.mean() <= NOISE_RATIO * np.median(upper):
            # Rayleigh noise: median 1.18, mean 1.25 deviations. A coarse type has a median of 0.
            noise = 3.2 * float(np.median(lower)) or 3.0 * float(lower.mean())
            return base + min(threshold, noise)
    return None


def _otsu(values: NDArray[np.float64]) -> float | None:
    """The threshold of largest variance between two classes, from 256 bins."""
    counts, edges = np.histogram(values, 256)
    centres = (edges[1:] + edges[:-1]) / 2
    weight = np.cumsum(counts)
    total = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = total / weight
        upper_means = (total[-1] - total) / (weight[-1] - weight)
        between = weight * (weight[-1] - weight) * (means - upper_means) ** 2
    between = np.nan_to_num(between)
    return float(edges[1 + int(between.argmax())]) if between.max() > 0 else None


def _fills_a_face(voxels: NDArray[Any], threshold: float) -> bool:
    faces = [np.moveaxis(voxels, axis, 0)[end] for axis in range(3) for end in (0, -1)]
    return any(float((face <= threshold).mean()) >= NOISE_FACE for face in faces)
