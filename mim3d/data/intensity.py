"""From a file's own intensities to normalised ones, by numbers measured on the whole volume.

CT: a window in Hounsfield units becomes 0 to 1. MR and other: clipped to percentiles of the body,
then mean 0 and deviation 1 over it. Statistics are taken once, of the whole volume; a crop in
training and a window in prediction are mapped by the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mim3d.data.body import Air, Modality

STATISTICS_SAMPLE = 4_000_000
"""Voxels of the body that percentiles and means are taken of, a fixed stride through them."""
SPIKE = 10.0
"""A value farther from the body's median than this many times the 1st or 99th percentile is a
spike (a defect, a hot pixel) and takes part in no statistics."""
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
        numpy = isinstance(intensities, np.ndarray)
        values = intensities.astype(np.float32) if numpy else intensities.float()
        values = values.clip(self.low, self.high)
        values -= self.shift
        values /= self.width
        return values

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
    mean, deviation = float(clipped.mean()), float(clipped.std())
    if deviation <= SMALLEST_DEVIATION * max(abs(mean), high - low, 1e-30):
        return None
    return Normalisation("zscore", low, high, mean, deviation, air.threshold)


def body_values(voxels: NDArray[Any], air: Air) -> NDArray[Any]:
    """Intensities of the body, at most `STATISTICS_SAMPLE` of them by a fixed stride."""
    body = voxels[air.body(voxels)]
    return body[:: max(1, -(-body.size // STATISTICS_SAMPLE))]


def without_spikes(values: NDArray[Any]) -> NDArray[Any]:
    """The values without those far beyond the 1st and 99th percentile, see `SPIKE`."""
    if values.size == 0:
        return values
    low, middle, high = np.percentile(values, (1, 50, 99))
    if high == low:
        return values
    below, above = middle - SPIKE * (middle - low), middle + SPIKE * (high - middle)
    # A side without spread says nothing about spikes there.
    kept = (values >= (below if low < middle else -np.inf)) & (
        values <= (above if high > middle else np.inf)
    )
    return values if kept.all() else values[kept]


def infer_modality(voxels: NDArray[Any]) -> Modality:
    """CT if a voxel is at or below -500, else other."""
    finite = voxels[np.isfinite(voxels)] if voxels.dtype.kind == "f" else voxels
    return "ct" if finite.size and finite.min() <= -500 else "other"
