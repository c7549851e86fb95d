"""The way back: logits on the grid that a network saw, laid on the grid of the volume by rows.

Both grids run along the same axes, so the way is one linear interpolation an axis. A row of the
volume needs two neighbouring rows of logits and no more; it is made as soon as they are there, and
a full set of logits exists on neither grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mim3d.data.resample import UNCHANGED, axis_matrix
from mim3d.inference.windows import Box, Triple

MOST_VALUES = 1 << 24
"""Logits that are laid on the volume's grid at once: 64 MB, and twice that while it is done."""

Rows = Iterable[tuple[int, Tensor]]


@dataclass(frozen=True, eq=False)
class _Between:
    """Between which two voxels of an axis of `size` each new voxel lies: `low` and the next one.

    Attributes:
        low: (m,) int64, not descending.
        share: (m,) float32, 0 at `low` to 1 at the next.
        size: voxels of the network's axis.
    """

    low: NDArray[np.int64]
    share: NDArray[np.float32]
    size: int


class WayBack:
    """From the grid that the network saw to the volume's own.

    Args:
        from_affine: (4, 4), voxel to millimetres, of the network's grid.
        from_shape: its voxels.
        to_affine: (4, 4), voxel to millimetres, of the volume's grid.
        to_shape: its voxels.
        device: where the logits mostly lie.

    Attributes:
        box: the volume's voxels that lie at most half a voxel outside of the network's grid. What
            is beyond was cropped away and is background for certain.

    Raises:
        ValueError: the axes of the grids run along other directions.
    """

    def __init__(
        self,
        from_affine: NDArray[np.float64],
        from_shape: Triple,
        to_affine: NDArray[np.float64],
        to_shape: Triple,
        device: torch.device | str = "cpu",
    ) -> None:
        relation = np.linalg.inv(from_affine) @ to_affine
        steps = np.diag(relation)[:3]
        skew = np.abs(relation[:3, :3] - np.diag(steps)) @ np.array(to_shape)
        if skew.max() > 0.05 or steps.min() <= 0:  # voxels
            raise ValueError("the grids are turned against each other: no axis-wise map undoes it")
        sides = []
        self._between: list[_Between | None] = []
        for axis, (size, count) in enumerate(zip(from_shape, to_shape, strict=True)):
            positions = steps[axis] * np.arange(count) + relation[axis, 3]
            kept = np.flatnonzero(
                (positions >= -0.5 - UNCHANGED) & (positions <= size - 0.5 + UNCHANGED)
            )
            sides.append(slice(int(kept[0]), int(kept[-1]) + 1) if kept.size else slice(0, 0))
            self._between.append(_between(size, positions[sides[-1]]))
        self.box: Box = (sides[0], sides[1], sides[2])
        self._tensors = [
            None
            if one is None
            else (torch.from_numpy(one.low).to(device), torch.from_numpy(one.share).to(device))
            for one in self._between
        ]

    @property
    def is_straight(self) -> bool:
        """Whether the grids share their voxel centres, so that nothing is interpolated."""
        return not any(self._between)

    def lay(self, rows: Rows, axis: int) -> Iterator[tuple[int, Tensor]]:
        """Logits on the volume's grid, within `box`.

        Args:
            rows: first row and logits `k x y z` of consecutive slabs along `axis`, all of the
                network's grid; read before the next one is taken.
            axis: along which they follow each other.

        Yields:
            First row within `box` along `axis`, and logits `k x y z` of some consecutive rows.
        """
        for first, part in self._rows_along(rows, axis):
            for other in range(3):
                if other != axis:
                    part = self._interpolated(part, other)
            yield first, part

    def _rows_along(self, rows: Rows, axis: int) -> Iterator[tuple[int, Tensor]]:
        """Interpolated along `axis` alone, a bounded number of rows at a time."""
        between = self._between[axis]
        parts = self._parts(rows, axis)
        if between is None:
            yield from parts
            return
        highest = np.minimum(between.low + 1, between.size - 1)
        done, top, held = 0, 0, None
        for _, part in parts:
            held = part if held is None else torch.cat([held, part], dim=1 + axis)
            end = top + held.shape[1 + axis]
            stop = int(np.searchsorted(highest, end))
            if stop > done:
                yield done, self._interpolated(held, axis, slice(done, stop), top)
                done = stop
            # What the next row lies between stays; the rest is a view of what is freed now.
            following = int(between.low[done]) if done < len(between.low) else end
            kept = max(0, end - max(top, following))
            held = held.narrow(1 + axis, held.shape[1 + axis] - kept, kept).clone()
            top = end - kept

    def _parts(self, rows: Rows, axis: int) -> Iterator[tuple[int, Tensor]]:
        """The slabs in parts of which each makes at most `MOST_VALUES` on the volume's grid."""
        for first, logits in rows:
            voxels = len(logits)
            for other in range(3):
                side = self.box[other]
                voxels *= 1 if other == axis else max(1, side.stop - side.start)
            between = self._between[axis]
            growth = 1.0 if between is None else max(1.0, len(between.low) / between.size)
            most = max(1, int(MOST_VALUES / growth) // voxels)
            rows_here = logits.shape[1 + axis]
            for low in range(0, rows_here, most):
                count = min(most, rows_here - low)
                yield first + low, logits.narrow(1 + axis, low, count)

    def _interpolated(
        self, logits: Tensor, axis: int, rows: slice = slice(None), top: int = 0
    ) -> Tensor:
        """New voxels `rows` of an axis, of logits that begin at voxel `top` of it."""
        between, tensors = self._between[axis], self._tensors[axis]
        if between is None or tensors is None:
            return logits
        low, share = (values[rows].to(logits.device) for values in tensors)
        low = low - top
        high = (low + 1).clamp_max(between.size - 1 - top)
        shape = [1, 1, 1, 1]
        shape[1 + axis] = -1
        below = logits.index_select(1 + axis, low)
        return below.lerp_(logits.index_select(1 + axis, high), share.reshape(shape))


def _between(size: int, positions: NDArray[np.float64]) -> _Between | None:
    """None where the positions are the voxels themselves."""
    if len(positions) == size and np.abs(positions - np.arange(size)).max(initial=0) < UNCHANGED:
        return None
    matrix = axis_matrix(size, positions, "linear")
    # At the far end the last voxel has all the weight.
    low = np.minimum((matrix > 0).argmax(axis=1), max(0, size - 2))
    rows = np.arange(len(positions))
    share = matrix[rows, np.minimum(low + 1, size - 1)] if size > 1 else np.zeros(len(rows))
    return _Between(low, share.astype(np.float32), size)
