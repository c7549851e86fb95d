"""Overlap by counting: one table of how often each pair of values meets gives every Dice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mim3d.foundation.errors import ShapeError, UserError

LARGEST_VALUE = 65535
"""Label values beyond are refused: nothing writes them, and the table would not fit."""
MOST_VALUES = 1024
"""Different values in one case; more are instances rather than classes."""
PIECE = 2**17
"""Voxels counted at once: bincount widens them to eight bytes each, which so stay in the cache."""
SPARSE = 4
"""Where less than this part of a piece is labelled on either side, only that part is counted."""


@dataclass(frozen=True)
class Structure:
    """What is scored as one thing: a class (one value) or a region (several, may overlap others).

    Attributes:
        name: as it stands in the table.
        values: label values that belong to it.
    """

    name: str
    values: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Indexed:
    """Two label maps on one grid, written with small indices.

    Attributes:
        reference: `x y z`, uint8 or uint16; 0 is background.
        prediction: likewise.
        values: the label value behind each index.
    """

    reference: NDArray[Any]
    prediction: NDArray[Any]
    values: tuple[int, ...]

    def indices(self, structure: Structure) -> tuple[int, ...]:
        """The indices of a structure's values, as far as they occur."""
        return tuple(i for i, value in enumerate(self.values) if value in structure.values)


def index_maps(reference: NDArray[Any], prediction: NDArray[Any]) -> Indexed:
    """Two label maps in small numbers: values up to 255 as they are, others renumbered.

    Args:
        reference: `x y z` integers, 0 to 65535.
        prediction: likewise, on the same grid.

    Raises:
        ShapeError: the shapes differ.
        UserError: a value is negative or above 65535, or there are more than 1,024 of them.
    """
    if reference.shape != prediction.shape:
        raise ShapeError(f"label maps of {reference.shape} and {prediction.shape} do not compare")
    largest = max(_largest(reference), _largest(prediction))
    if largest <= 255:
        small = reference.astype(np.uint8, copy=False), prediction.astype(np.uint8, copy=False)
        return Indexed(*small, tuple(range(largest + 1)))
    counts = np.bincount(reference.ravel(order="K"), minlength=largest + 1)
    counts += np.bincount(prediction.ravel(order="K"), minlength=largest + 1)
    values = np.union1d(0, np.flatnonzero(counts))
    if len(values) > MOST_VALUES:
        raise UserError(
            f"two label maps hold {len(values):,} different values, too many for classes",
            remedy="score classes, not instances",
            code="too-many-classes",
        )
    table = np.zeros(largest + 1, dtype=np.uint16)
    table[values] = np.arange(len(values))
    return Indexed(table[reference], table[prediction], tuple(values.tolist()))


def _largest(labels: NDArray[Any]) -> int:
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if low < 0 or high > LARGEST_VALUE:
        raise UserError(
            f"a label map holds the value {low if low < 0 else high}, beyond 0 to {LARGEST_VALUE}",
            code="label-range",
        )
    return high


def meetings(maps: Indexed) -> NDArray[np.int64]:
    """How many voxels have index i in the reference and j in the prediction, `k k`."""
    count = len(maps.values)
    wide = np.uint16 if count <= 256 else np.uint32
    table = np.zeros(count * count, np.int64)
    # The order of counting does not matter as long as it is one order; a copy would cost.
    order: Literal["C", "F"] = "C" if maps.reference.flags.c_contiguous else "F"
    ours, theirs = maps.reference.ravel(order), maps.prediction.ravel(order)
    for start in range(0, ours.size, PIECE):
        mine, other = ours[start : start + PIECE], theirs[start : start + PIECE]
        labelled = (mine | other) != 0
        among = np.count_nonzero(labelled)
        if among * SPARSE < mine.size:
            table[0] += mine.size - among
            places = np.flatnonzero(labelled)
            mine, other = mine[places], other[places]
        pairs = np.multiply(mine, wide(count), dtype=wide)
        pairs += other
        table += np.bincount(pairs, minlength=count * count)
    return table.reshape(count, count)


def sizes(table: NDArray[np.int64], members: Sequence[int]) -> tuple[int, int, int]:
    """Voxels of a structure in the reference, in the prediction, and in both."""
    rows = table[list(members)]
    both = int(rows[:, list(members)].sum())
    return int(rows.sum()), int(table[:, list(members)].sum()), both


def dice(reference: int, prediction: int, both: int) -> float:
    """2 |A and B| / (|A| + |B|) (Dice 1945); at least one of the two is not empty."""
    return 2.0 * both / (reference + prediction)
