"""From a file's own intensities to normalised ones, by numbers measured on the whole volume.

CT: a window in Hounsfield units becomes 0 to 1. MR and other: clipped to percentiles of the body,
then mean 0 and deviation 1 over it. Statistics are taken once, of the whole volume; a crop in
training and a window in prediction are mapped by the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mim3d.data.body import Air, Modality

STATISTICS_SAMPLE = 4_000_000
"""Voxels of the body that percentiles and means are taken of, a fixed stride through them; of
integers of 16 bits, which are counted, all of them are."""
COUNTED_AT_ONCE = 2**17
PLANES = 16
SPIKE = 30.0
"""A value farther from the body's median than this many times the 5th or 95th percentile is a
spike (a defect, a hot pixel) and takes part in no statistics. Not the 1st and 99th: 0.4 % of the
voxels of a volume can be a twentieth of a small body."""
SPREAD = (5, 50, 95)
SMALLEST_DEVIATION = 1e-6
"""Of the larger of mean and range: a flatter body is constant."""


@dataclass(frozen=True)
class Normalisation:
    """The map of one channel from stored to normalised intensities.

    Args:
        kind: `window`: low to high becomes 0 to 1. `zscore`: (value - mean) / deviation.
        low: smaller values are clipped to it first.
        high: larger values are clipped to it first.
        mean: of the clipped body; only with `zscore`.
        deviation: of the clipped body; only with `zscore`.
        air: largest intensity of air, None where all is body.
    """

    kind: Literal["window", "zscore"]
    low: float
    high: float
    mean: float = 0.0
    deviation: float = 1.0
    air: float | None = None

    @property
    def shift(self) -> float:
        """What normalised 0 stands for."""
        return self.low if self.kind == "window" else self.mean

    @property
    def width(self) -> float:
        """What one normalised unit stands for."""
        return self.high - self.low if self.kind == "window" else self.deviation

    def apply(self, intensities: Any) -> Any:
        """Normalised float32 of the same shape; a NumPy array or a tensor, the input untouched."""
        if isinstance(intensities, np.ndarray):
            values = intensities.astype(np.float32)
            self.apply_in_place(values)
            return values
        values = intensities.float().clip(self.low, self.high)
        values -= self.shift
        values /= self.width
        return values

    def apply_in_place(self, intensities: NDArray[np.float32]) -> None:
        """Makes float32 intensities normalised ones where they are."""
        np.clip(intensities, self.low, self.high, out=intensities)
        if self.shift != 0.0:
            intensities -= self.shift
        if self.width != 1.0:
            intensities /= self.width

    def invert(self, normalised: Any) -> Any:
        """Intensities of normalised values, except for what was clipped; the input untouched."""
        return normalised * self.width + self.shift

    @property
    def air_normalised(self) -> float | None:
        """Normalised intensity below which a voxel is air; None where all is body.

        Where the threshold is clipped away, as -500 HU by a window from -175 HU, air is what is
        clipped to the low end.
        """
        if self.air is None:
            return None
        clipped = (min(max(self.air, self.low), self.high) - self.shift) / self.width
        least = (self.low - self.shift) / self.width
        return max(clipped, least) + 1e-4 * (self.high - self.low) / self.width

    def with_window(self, low: float, high: float) -> Normalisation:
        """The same channel under another window."""
        return replace(self, kind="window", low=low, high=high, mean=0.0, deviation=1.0)

    def as_json(self) -> dict[str, Any]:
        """What a store writes down."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Normalisation:
        """The map that `as_json` described."""
        return cls(**stored)


def measure(
    voxels: NDArray[Any],
    air: Air,
    modality: Modality,
    window_hu: tuple[float, float],
    clip_percentiles: tuple[float, float],
) -> Normalisation | None:
    """The normalisation of one channel of a whole volume.

    Args:
        voxels: `x y z`; non-finite ones are left out.
        air: its threshold.
        modality: CT takes the window, everything else percentiles and z-score.
        window_hu: the window for CT.
        clip_percentiles: for other modalities, of the body.

    Returns:
        None where the body is empty or constant.
    """
    if voxels.dtype.kind in "iu" and voxels.dtype.itemsize <= 2:
        return _measure_counts(*_counts(voxels, air), air, modality, window_hu, clip_percentiles)
    body = body_values(voxels, air)
    if modality == "ct":
        if body.size == 0 or body.min() == body.max():
            return None
        low, high = window_hu
        return Normalisation("window", low, high, air=air.threshold)
    body = without_spikes(body)
    if body.size == 0:
        return None
    low, high = (float(v) for v in np.percentile(body, clip_percentiles))
    clipped = body.clip(low, high).astype(np.float64)
    return _zscore(low, high, float(clipped.mean()), float(clipped.std()), air)


def ranged(
    voxels: NDArray[Any], air: Air, intensity_range: tuple[float, float]
) -> Normalisation | None:
    """The normalisation of a channel whose scale is known: low becomes 0, high 1.

    Two values suffice here, as in a binary shape, of which the body is constant.

    Args:
        voxels: `x y z`; non-finite ones are left out.
        air: its threshold.
        intensity_range: low and high.

    Returns:
        None where the whole volume is constant.
    """
    low, high = intensity_range
    usable = voxels[np.isfinite(voxels)] if voxels.dtype.kind == "f" else voxels
    if usable.size == 0 or usable.min() == usable.max():
        return None
    return Normalisation("window", low, high, air=air.threshold)


def signed(most: float, air: Air) -> Normalisation:
    """The normalisation of signed distances: those up to `most` become -1 to 1, a surface 0.

    Args:
        most: the largest distance.
        air: its threshold.
    """
    return Normalisation("zscore", -most, most, 0.0, most, air.threshold)


def _zscore(
    low: float, high: float, mean: float, deviation: float, air: Air
) -> Normalisation | None:
    if deviation <= SMALLEST_DEVIATION * max(abs(mean), high - low, 1e-30):
        return None
    return Normalisation("zscore", low, high, mean, deviation, air.threshold)


def _counts(voxels: NDArray[Any], air: Air) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The intensities that occur in the body, rising, and how often; of integers of 16 bits."""
    start, stop = (int(voxels.min()), int(voxels.max())) if voxels.size else (0, 0)
    counts = np.zeros(stop - start + 1, np.int64)
    flat = voxels.ravel(order="K")
    for first in range(0, flat.size, COUNTED_AT_ONCE):
        part = flat[first : first + COUNTED_AT_ONCE].astype(np.int32)
        counts += np.bincount(part - start, minlength=len(counts))
    values = np.arange(start, stop + 1).astype(voxels.dtype)
    kept = air.body(values) & (counts > 0)
    return values[kept].astype(np.float64), counts[kept]


def _measure_counts(
    values: NDArray[np.float64],
    counts: NDArray[np.int64],
    air: Air,
    modality: Modality,
    window_hu: tuple[float, float],
    clip_percentiles: tuple[float, float],
) -> Normalisation | None:
    """As `measure`, of how often each intensity occurs: all voxels count, none is sorted."""
    if modality == "ct":
        low, high = window_hu
        constant = len(values) < 2
        return None if constant else Normalisation("window", low, high, air=air.threshold)
    if not len(values):
        return None
    below, above = _spike_limits(*_percentiles(values, counts, SPREAD))
    kept = (values >= below) & (values <= above)
    values, counts = values[kept], counts[kept]
    low, high = _percentiles(values, counts, clip_percentiles)
    clipped = values.clip(low, high)
    mean = float(np.average(clipped, weights=counts))
    deviation = float(np.sqrt(np.average((clipped - mean) ** 2, weights=counts)))
    return _zscore(low, high, mean, deviation, air)


def _percentiles(
    values: NDArray[np.float64], counts: NDArray[np.int64], percents: Sequence[float]
) -> list[float]:
    """As `np.percentile` (linear) of each value repeated as often as it occurs."""
    ends = np.cumsum(counts)
    ranks = np.asarray(percents, np.float64) / 100 * (ends[-1] - 1)
    lower = np.floor(ranks)
    at = values[np.searchsorted(ends, lower, side="right")]
    following = values[np.searchsorted(ends, np.ceil(ranks), side="right")]
    found: list[float] = (at + (following - at) * (ranks - lower)).tolist()
    return found


def body_values(voxels: NDArray[Any], air: Air) -> NDArray[Any]:
    """Intensities of the body, at most `STATISTICS_SAMPLE` of them by a fixed stride."""
    # The stride runs in the order of x, y, z whatever the order in memory; a few planes at a time
    # are turned in the cache.
    parts = [voxels[:0].ravel()]
    for start in range(0, len(voxels), PLANES):
        planes = np.ascontiguousarray(voxels[start : start + PLANES])
        parts.append(planes[air.body(planes)])
    body = np.concatenate(parts)
    return body[:: max(1, -(-body.size // STATISTICS_SAMPLE))]


def without_spikes(values: NDArray[Any]) -> NDArray[Any]:
    """The values without those far beyond the 5th and 95th percentile, see `SPIKE`."""
    if values.size == 0:
        return values
    below, above = _spike_limits(*np.percentile(values, SPREAD).tolist())
    kept = (values >= below) & (values <= above)
    return values if kept.all() else values[kept]


def _spike_limits(low: float, middle: float, high: float) -> tuple[float, float]:
    # A side without spread says nothing about spikes there.
    below = middle - SPIKE * (middle - low) if low < middle else -np.inf
    above = middle + SPIKE * (high - middle) if high > middle else np.inf
    return below, above


def infer_modality(voxels: NDArray[Any]) -> Modality:
    """CT if a voxel is at or below -500, else other."""
    finite = voxels[np.isfinite(voxels)] if voxels.dtype.kind == "f" else voxels
    return "ct" if finite.size and finite.min() <= -500 else "other"
