"""Files and label maps that the scripts about volumes share: a CT with noise, and organs."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim3d.foundation.randomness import generator
from mim3d.workflows.throughput.inputs import Triple

Spacing = tuple[float, float, float]

ORGANS = 13
SPECKS = 3
"""Distant false voxels of each organ, as real predictions have them: they stretch its box."""


def ct(size: Triple) -> NDArray[np.int16]:
    """A body of two waves and a product, with noise of 15 HU, in air with noise of 4 HU."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, side, dtype=np.float32) for side in size),
                          indexing="ij", sparse=True)  # fmt: skip
    body = (x / 0.75) ** 2 + (y / 0.6) ** 2 + 0 * z < 1
    tissue = 40 + 80 * np.sin(9 * x + 2 * y) * np.cos(7 * z) + 60 * x * y
    noise = generator("phantom").standard_normal(size, np.float32)
    voxels = np.where(body, tissue + 15 * noise, -1000 + 4 * noise)
    return np.rint(voxels).astype(np.int16)


def write_ct(path: Path, size: Triple, spacing_mm: Spacing) -> Path:
    """The CT as `.nii.gz`, its axes to the left and the back as most scanners write them."""
    x, y, z = spacing_mm
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel: Any = importlib.import_module("nibabel")
    nibabel.save(nibabel.Nifti1Image(ct(size), np.diag([-x, -y, z, 1.0])), path)
    return path


def organs(size: Triple, *, moved: bool) -> NDArray[np.uint8]:
    """Ellipsoids; moved ones have other axes and centres, and specks far away."""
    labels = np.zeros(size, np.uint8)
    draw, shift = generator("organs"), generator("moved")
    room = np.array(size)
    for value in range(1, ORGANS + 1):
        half = np.exp(draw.uniform(np.log(0.02 * room), np.log((0.16, 0.16, 0.3) * room)))
        centre = draw.uniform(0.2 * room, 0.8 * room)
        if moved:
            half *= 1 + shift.uniform(-0.08, 0.08, 3)
            centre += shift.uniform(-0.008, 0.008, 3) * room
        _fill(labels, centre, half, value)
    for value in range(1, ORGANS + 1) if moved else ():
        for _ in range(SPECKS):
            _fill(labels, shift.uniform(2, room - 3), np.array([1.6, 1.6, 1.1]), value)
    return labels


def _fill(
    labels: NDArray[np.uint8], centre: NDArray[np.float64], half: NDArray[np.float64], value: int
) -> None:
    low = np.maximum(0, np.floor(centre - half)).astype(int)
    high = np.minimum(labels.shape, np.ceil(centre + half).astype(int) + 1)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    parts = zip(np.ogrid[box], centre, half, strict=True)
    labels[box][sum(((places - c) / h) ** 2 for places, c, h in parts) <= 1] = value
