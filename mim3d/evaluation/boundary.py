"""The surface voxels of all classes of a label map, found in one pass.

A voxel is on the surface of its class where one of its 6 neighbours has another value, or where it
lies at the map's border. All classes are looked for at once, a slab at a time, so that the work
hangs neither on the number of classes nor on how far stray voxels stretch their boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Boundary:
    """Where the values of a label map change, background aside.

    Attributes:
        labels: `x y z`, C-contiguous; 0 is background.
        places: flat indices of voxels with another value or the border beside them, by value.
        starts: for each value, where its part of `places` begins; one more for the end.
    """

    labels: NDArray[Any]
    places: NDArray[np.intp]
    starts: NDArray[np.intp]

    def points(self, members: Sequence[int]) -> NDArray[np.intp]:
        """(n, 3) voxels on the surface of what some values (none of them 0) form together."""
        parts = [self._of(member) for member in members]
        places = np.concatenate(parts) if parts else self.places[:0]
        points = np.stack(np.unravel_index(places, self.labels.shape), axis=1)
        return points if len(parts) == 1 else points[self._outside_beside(points, members)]

    def _of(self, value: int) -> NDArray[np.intp]:
        first, last = self.starts[[min(value, len(self.starts) - 1),
                                   min(value + 1, len(self.starts) - 1)]]  # fmt: skip
        return self.places[first:last]

    def _outside_beside(
        self, points: NDArray[np.intp], members: Sequence[int]
    ) -> NDArray[np.bool_]:
        """Whether each point has the border, or a value that is no member, beside it."""
        found = np.zeros(len(points), np.bool_)
        for axis, size in enumerate(self.labels.shape):
            for step in (-1, 1):
                beside = points.copy()
                beside[:, axis] += step
                found |= (beside[:, axis] < 0) | (beside[:, axis] == size)
                beside[:, axis] %= size
                found |= ~np.isin(self.labels[tuple(beside.T)], members)
        return found


def boundary(labels: NDArray[Any]) -> Boundary:
    """Finds where the values of a label map change.

    Args:
        labels: `x y z`, uint8 or uint16.
    """
    labels = np.ascontiguousarray(labels)
    found = [np.empty(0, np.intp)]
    for number, slab in enumerate(labels):
        if slab.max(initial=0) == 0:
            continue
        changes = _changes(slab)
        for other in (number - 1, number + 1):
            if 0 <= other < len(labels):
                changes |= slab != labels[other]
            else:
                changes[:] = True
        changes &= slab != 0
        found.append(np.flatnonzero(changes) + number * slab.size)
    places = np.concatenate(found)
    values = labels.reshape(-1)[places]
    by_value = np.argsort(values, kind="stable")  # a radix sort for integers of up to 16 bits
    starts = np.concatenate(([0], np.cumsum(np.bincount(values, minlength=1))))
    return Boundary(labels, places[by_value], starts)


def _changes(slab: NDArray[Any]) -> NDArray[np.bool_]:
    """Voxels of a plane with another value or the plane's border beside them, by 4 neighbours."""
    changes = np.zeros(slab.shape, np.bool_)
    lines, line = changes.reshape(-1), slab.reshape(-1)
    # As one long row: what is compared across its breaks lies at the border anyway.
    along = line[1:] != line[:-1]
    lines[1:] |= along
    lines[:-1] |= along
    across = slab[1:] != slab[:-1]
    changes[1:] |= across
    changes[:-1] |= across
    changes[[0, -1]] = True
    changes[:, [0, -1]] = True
    return changes
