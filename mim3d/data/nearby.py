"""Where a further view of a crop lies: anywhere that leaves enough of the first in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mim3d.config.data import Triple

TRIES = 64
"""Places that are drawn at once; at least about one in six is near enough."""
ROUNDING = 1e-9
"""A share such as 0.9 of 10 voxels is 9 voxels, whatever its float says."""


def draw_nearby(
    start: Triple,
    size: Triple,
    possible: Sequence[NDArray[np.int64]],
    min_overlap: float,
    random: np.random.Generator,
) -> Triple:
    """The start of a crop that shares enough voxels with another of the same size.

    All places that do are equally likely. Two boxes that are shifted by d share the product over
    the axes of 1 - |d| / size of their voxels, hence along one axis |d| is at most
    (1 - min_overlap) * size.

    Args:
        start: first voxel of the other crop; one of the possible.
        size: voxels along x, y, z.
        possible: starts along each axis.
        min_overlap: smallest share of a crop's voxels that both have, 0 to 1; at 0 any of the
            possible places will do.
        random: of this view.
    """
    first, sides = np.array(start), np.array(size)
    near = list(possible)
    if min_overlap > 0:
        reach = (1 - min_overlap) * sides + ROUNDING
        near = [p[np.abs(p - s) <= r] for p, s, r in zip(near, first, reach, strict=True)]
    counts = [len(starts) for starts in near]
    while True:
        # By rejection: the place itself always counts, so that this ends.
        chosen = random.integers(counts, size=(TRIES, 3))
        drawn = np.stack([p[chosen[:, axis]] for axis, p in enumerate(near)], axis=1)
        shared = np.prod(1 - np.minimum(np.abs(drawn - first) / sides, 1), axis=1)
        enough = np.flatnonzero(shared >= min_overlap - ROUNDING)
        if len(enough):
            x, y, z = drawn[enough[0]].tolist()
            return x, y, z
