"""Clean-up of a label map: only the largest connected piece of each class stays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

NEIGHBOURS_26 = np.ones((3, 3, 3), dtype=bool)


def largest_components(labels: NDArray[Any]) -> NDArray[Any]:
    """Keeps the largest 26-connected component of each label; the rest becomes 0.

    Each label is searched within its own box. Of several components of the largest size the first
    one stays, in the order of x, y, z.

    Args:
        labels: `x y z`, integers of 0 or more; 0 is background.

    Returns:
        A new label map of the same type.
    """
    cleaned = labels.copy()
    boxes: list[tuple[slice, ...] | None] = list(ndimage.find_objects(labels))
    for place, box in enumerate(boxes):
        if box is None:
            continue
        mask = labels[box] == place + 1
        pieces, count = ndimage.label(mask, structure=NEIGHBOURS_26)
        if count > 1:
            sizes = np.bincount(pieces.ravel())
            sizes[0] = 0
            cleaned[box][mask & (pieces != sizes.argmax())] = 0
    return cleaned
