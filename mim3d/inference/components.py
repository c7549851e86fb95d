"""Clean-up of a label map: only the largest connected piece of each class stays.

Pieces are joined from runs, the stretches of one value along the axis that is densest in memory:
an organ has a run where it has dozens of voxels, and one pass finds those of all classes. A map
that is more noise than organs has too many of them; there each class is flooded in its own box.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

NEIGHBOURS_26 = np.ones((3, 3, 3), dtype=bool)
RUN_SHARE = 16
"""With more than one run in so many voxels, flooding boxes is faster than joining runs."""
ROWS_BESIDE = ((0, 1), (1, -1), (1, 0), (1, 1))
"""Steps from a row to those beside it that 26 neighbours reach, each pair of rows once."""


@dataclass(frozen=True, eq=False)
class Runs:
    """Stretches of one value along the last axis of a label map, in the order of the voxels.

    Attributes:
        starts: flat index of each one's first voxel.
        lengths: voxels of each.
        values: its label.
    """

    starts: NDArray[np.intp]
    lengths: NDArray[np.intp]
    values: NDArray[Any]


def largest_components(labels: NDArray[Any]) -> NDArray[Any]:
    """Keeps the largest 26-connected component of each label; the rest becomes 0.

    Of several components of the largest size the first one stays, in the order of x, y, z.

    Args:
        labels: `x y z`, integers of 0 or more; 0 is background.

    Returns:
        A new label map of the same type, in memory in the order of the given one.
    """
    order = sorted(range(3), key=lambda axis: -labels.strides[axis])
    back = np.argsort(order)
    turned = np.ascontiguousarray(labels.transpose(order))
    runs = _runs(turned)
    if runs is None:
        return _flooded(labels)
    pieces = _pieces(runs, turned.shape)
    size = np.bincount(pieces, runs.lengths)
    value = np.zeros(len(size), runs.values.dtype)
    value[pieces] = runs.values
    # Along every axis the first voxel of a run is the foremost one, in any order of the axes.
    where = np.unravel_index(runs.starts, turned.shape)
    foremost = np.full(len(size), labels.size)
    np.minimum.at(
        foremost, pieces, np.ravel_multi_index([where[axis] for axis in back], labels.shape)
    )
    ranked = np.lexsort((foremost, -size, value))
    is_first = np.ones(len(ranked), np.bool_)
    is_first[1:] = value[ranked][1:] != value[ranked][:-1]
    dropped = np.isin(pieces, ranked[~is_first])
    cleaned = turned.copy()
    cleaned.reshape(-1)[_voxels(runs.starts[dropped], runs.lengths[dropped])] = 0
    return cleaned.transpose(back)


def _runs(labels: NDArray[Any]) -> Runs | None:
    """All runs of labels above 0; None where there are too many."""
    parts = [(np.empty(0, np.intp), np.empty(0, np.intp), labels.reshape(-1)[:0])]
    left = labels.size // RUN_SHARE
    for part in _runs_by_slab(labels):
        left -= len(part[0])
        if left < 0:
            return None
        parts.append(part)
    starts, stops, values = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Runs(starts, stops - starts, values)


def _runs_by_slab(
    labels: NDArray[Any],
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[Any]]]:
    """First voxels, voxels behind the last, and values, for each plane with labels."""
    columns = labels.shape[2]
    for number, slab in enumerate(labels):
        if slab.max(initial=0) == 0:
            continue
        line = slab.reshape(-1)
        changes = np.ones(line.size + 1, np.bool_)
        np.not_equal(line[1:], line[:-1], out=changes[1:-1])
        changes[::columns] = True
        borders = np.flatnonzero(changes)
        values = line[borders[:-1]]
        labelled = values != 0
        borders += number * line.size
        yield borders[:-1][labelled], borders[1:][labelled], values[labelled]


def _pieces(runs: Runs, shape: tuple[int, ...]) -> NDArray[np.int32]:
    """The number of the component that each run belongs to."""
    _, rows, columns = shape
    row, low = np.divmod(runs.starts, columns)
    high = low + runs.lengths
    # One more row on either side and one more column, so that no step leads into another plane
    # and no run into another row.
    row = row // rows * (rows + 2) + row % rows + 1
    width = columns + 1
    begins, ends = row * width + low, row * width + high
    here, there = [], []
    for plane, beside in ROWS_BESIDE:
        step = (plane * (rows + 2) + beside) * width
        # Voxels touch by a corner as well: a run may end where the other begins.
        first = np.searchsorted(ends, begins + step)
        last = np.searchsorted(begins, ends + step, side="right")
        count = np.maximum(last - first, 0)
        here.append(np.repeat(np.arange(len(row)), count))
        there.append(_voxels(first, count))
    one, other = np.concatenate(here), np.concatenate(there)
    same = runs.values[one] == runs.values[other]
    one, other = one[same], other[same]
    graph = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(len(row), len(row)))
    pieces: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return pieces


def _voxels(starts: NDArray[np.intp], lengths: NDArray[np.intp]) -> NDArray[np.intp]:
    """Every number from each start on, as many as its length says, one range after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    numbers: NDArray[np.intp] = np.arange(total) + np.repeat(starts - (ends - lengths), lengths)
    return numbers


def _flooded(labels: NDArray[Any]) -> NDArray[Any]:
    """The same by flooding each label's mask within its box."""
    cleaned = labels.copy(order="K")
    boxes: list[tuple[slice, ...] | None] = list(ndimage.find_objects(labels))
    for place, box in enumerate(boxes):
        if box is None:
            continue
        mask = np.ascontiguousarray(labels[box] == place + 1)
        pieces, count = ndimage.label(mask, structure=NEIGHBOURS_26)
        if count > 1:
            sizes = np.bincount(pieces.ravel())
            sizes[0] = 0
            cleaned[box][mask & (pieces != sizes.argmax())] = 0
    return cleaned
