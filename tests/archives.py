"""Small archives of MedMNIST's form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SHAPE = (11, 13, 7)


def shapes(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Boxes of 255 in 0, each of its own place and size, `n x y z`."""
    random = np.random.default_rng(seed)
    volumes = np.zeros((count, *SHAPE), np.uint8)
    for volume in volumes:
        start = [int(random.integers(0, side - 3)) for side in SHAPE]
        stop = [int(random.integers(low + 2, side)) for low, side in zip(start, SHAPE, strict=True)]
        volume[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = 255
    return volumes


def write_archive(path: Path, *, compressed: bool = True, **arrays: NDArray) -> Path:
    """An archive of these arrays; without any, of three lists of shapes."""
    if not arrays:
        arrays = {
            "train_images": shapes(5), "train_labels": np.array([[0, 1, 0, 1, 2]], np.uint8).T,
            "val_images": shapes(2, 1), "val_labels": np.array([[1], [0]], np.uint8),
            "test_images": shapes(3, 2), "test_labels": np.array([[2], [0], [1]], np.uint8),
        }  # fmt: skip
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path
