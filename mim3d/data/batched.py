"""A whole batch of crops in one vectorised pass, on the device that holds the volumes.

Shift, zoom, rotation, mirroring and turn of a crop are one map from its voxels to the volume's. A
crop that lands on whole voxels is gathered, bit for bit what the path by single crops gives; others
are gathered with the margin they need, normalised and interpolated once. Nothing here waits for the
device, and no loop goes over voxels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from mim3d.config.data import Triple
from mim3d.data.batch import moved
from mim3d.data.blur import blur, reach
from mim3d.data.classes import IGNORE_INDEX
from mim3d.data.numbers import CropNumbers

CHUNK_VOXELS = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Voxels that are gathered at once. Indices take eight bytes each: 0.5 GB on a GPU."""


@dataclass(frozen=True)
class VolumeFacts:
    """What is needed of a case beside its voxels.

    Args:
        case_id: its name.
        shape: voxels along x, y, z.
        affine: `4 4`, voxel to millimetres.
        rule: `6 c`, float64: scale, offset, low, high, shift and width of the normalisation.
        air: `c`, float32, normalised threshold of air, or None where unknown.
    """

    case_id: str
    shape: Triple
    affine: NDArray[np.float64]
    rule: NDArray[np.float64]
    air: NDArray[np.float32] | None


@dataclass(frozen=True)
class Volumes:
    """Volumes one after the other in flat memory.

    Args:
        voxels: `n`, int16, as stored; the channels of a volume one after the other, z fastest.
        labels: class indices in the same order, or None; a volume that begins at voxel o of a
            channel has its labels at o and its voxels at o times the number of channels.
    """

    voxels: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class CutBatch:
    """Crops after every change of geometry, normalised.

    Args:
        voxels: `b c x y z`, float32, 0 at padding.
        labels: `b x y z`, uint8, `IGNORE_INDEX` at padding, or None.
        valid: `b x y z`, False at padding, or None where there is none.
    """

    voxels: Tensor
    labels: Tensor | None
    valid: Tensor | None


def cut_batch(
    volumes: Volumes,
    origins: Sequence[int],
    facts: Sequence[VolumeFacts],
    numbers: CropNumbers,
    size: Triple,
) -> CutBatch:
    """Cuts, mirrors, turns, warps and normalises all crops of a batch.

    Args:
        volumes: on the device.
        origins: where each crop's volume begins, in voxels of a channel, `b`.
        facts: of each crop's volume, `b`.
        numbers: of the crops.
        size: voxels of a crop along x, y, z.
    """
    device, count = volumes.voxels.device, len(facts)
    layout = _Layout(origins, facts, numbers, size)
    table = to_device(layout.table, device)
    rules = to_device(np.stack([f.rule for f in facts]), device).float()[..., None, None, None]
    channels = rules.shape[2]
    is_padded = bool(layout.padded.any())
    whole = CutBatch(
        torch.empty((count, channels, *size), device=device),
        None
        if volumes.labels is None
        else torch.empty((count, *size), dtype=torch.uint8, device=device),
        torch.ones((count, *size), dtype=torch.bool, device=device) if is_padded else None,
    )
    room = CHUNK_VOXELS.get(device.type, CHUNK_VOXELS["cpu"])
    for rows in layout.chunks(room):
        # Rows of one kind that follow each other need no copy into place.
        first, last = rows[0], rows[-1] + 1
        is_run = last - first == len(rows)
        where = slice(first, last) if is_run else to_device(np.array(rows), device)
        part = _Part(table[where], rules[where], layout, rows)
        cut = part.warped(volumes) if layout.warped[rows[0]] else part.whole_voxels(volumes)
        whole.voxels[where] = cut.voxels
        if whole.valid is not None and cut.valid is not None:
            whole.valid[where] = cut.valid
        if whole.labels is not None and cut.labels is not None:
            whole.labels[where] = cut.labels
    return whole


class _Layout:
    """Numbers of the crops on the host: one row a crop, and which rows are worked on together."""

    def __init__(
        self,
        origins: Sequence[int],
        facts: Sequence[VolumeFacts],
        numbers: CropNumbers,
        size: Triple,
    ) -> None:
        self.size = np.array(size)
        self.warped = numbers.warped.numpy()
        matrix, orientation = numbers.to_volume.numpy(), numbers.orientation.numpy()
        shapes = np.array([f.shape for f in facts], np.float64)
        turns = orientation[:, :3, :3]
        self.axes = np.abs(turns).argmax(axis=2)  # axis of the result behind each of the crop's
        signs = turns.sum(axis=2)
        begins = orientation[:, :3, 3]

        corners = np.array(list(np.ndindex(2, 2, 2))) * (self.size - 1)
        ends = corners @ matrix[:, :3, :3].transpose(0, 2, 1) + matrix[:, None, :3, 3]
        lowest, highest = ends.min(axis=1), ends.max(axis=1)
        # A box is convex: where its corners lie in the volume, all of it does.
        self.padded = ((lowest < -0.5) | (highest > shapes - 0.5)).any(axis=1)
        self.smoothing = numbers.smoothing.numpy()
        further = reach(numbers.smoothing).numpy()
        first = np.clip(np.floor(lowest) - further, 0, shapes - 1)
        last = np.clip(np.floor(highest) + 2 + further, first + 1, shapes)
        self.boxes = (last - first).astype(np.int64)
        columns = (
            np.array(origins, np.float64)[:, None], shapes, matrix[:, :3].reshape(-1, 12),
            signs, begins, first, last - first, self.padded[:, None],
        )  # fmt: skip
        # float64 holds every index exactly; one array is one copy to the device.
        self.table = np.concatenate(columns, axis=1)

    def chunks(self, room: int) -> Iterator[list[int]]:
        """Rows of one kind, as many as fit into the room."""
        kinds = [(bool(w), *axes) for w, axes in zip(self.warped, self.axes.tolist(), strict=True)]
        for kind in sorted(set(kinds)):
            rows = [row for row, other in enumerate(kinds) if other == kind]
            while rows:
                taken = 1
                while taken < len(rows) and self._voxels(rows[: taken + 1]) <= room:
                    taken += 1
                yield rows[:taken]
                rows = rows[taken:]

    def _voxels(self, rows: list[int]) -> int:
        side = self.boxes[rows].max(axis=0) if self.warped[rows[0]] else self.size
        return int(side.prod()) * len(rows)


class _Part:
    """Some crops that are warped or are not, all with the same axes."""

    def __init__(self, table: Tensor, rules: Tensor, layout: _Layout, rows: list[int]) -> None:
        widths = (1, 3, 12, 3, 3, 3, 3, 1)
        columns: tuple[Tensor, ...] = torch.split_with_sizes(table, widths, dim=1)
        origin, shape, matrix, signs, begins, first, box, padded = columns
        self.origin, self.shape = origin[:, 0].long(), shape.long()
        self.matrix = matrix.view(-1, 3, 4)
        self.signs, self.begins = signs, begins
        self.first, self.box, self.padded = first.long(), box.long(), padded[:, 0] > 0
        self.rules = rules
        self.size = tuple(int(n) for n in layout.size)
        self.axes: list[int] = layout.axes[rows[0]].tolist()
        self.sides = [int(n) for n in layout.boxes[rows].max(axis=0)]
        self.is_padded = bool(layout.padded[rows].any())
        self.smoothing = layout.smoothing[rows]
        self.device = table.device

    def whole_voxels(self, volumes: Volumes) -> CutBatch:
        """Crops whose voxels are voxels of the volume, in the orientation of the result."""
        places = [(self._crop_voxels(axis) + self.matrix[:, axis, 3:]).long() for axis in range(3)]
        index = self._index(places, self.axes)
        valid = self._within(places) if self.is_padded else None
        voxels = self._normalised(volumes.voxels, index)
        labels = None
        if volumes.labels is not None:
            labels = volumes.labels[index + _wide(self.origin, 3)]
        return _padded(voxels, labels, valid)

    def warped(self, volumes: Volumes) -> CutBatch:
        """Crops between voxels of the volume, in their own orientation first."""
        box = [
            self.first[:, axis, None] + torch.arange(side, device=self.device)
            for axis, side in enumerate(self.sides)
        ]
        # A box that reaches beyond the volume repeats its last voxels, as "border" would.
        values = self._normalised(volumes.voxels, self._index(box, (0, 1, 2)))
        places = self._places()
        if self.smoothing.any():
            values = blur(values, self._within_box(box), self.smoothing.tolist())
            # What stands beyond the box is no longer its last voxels.
            inside = [self._clamped(place, axis) for axis, place in enumerate(places)]
        else:
            inside = places
        grid = torch.empty((*places[0].shape, 3), device=self.device)
        for axis, place in enumerate(inside):
            side = self.sides[axis]
            shift = (1.0 - 2.0 * self.first[:, axis].double()) / side - 1.0
            torch.add(_wide(shift.float(), 3), place, alpha=2.0 / side, out=grid[..., 2 - axis])
        voxels = grid_sample(
            values, grid, mode="bilinear", padding_mode="border", align_corners=False
        )
        del values, grid, inside
        valid = self._inside(places) if self.is_padded else None
        labels = None
        if volumes.labels is not None:
            labels = volumes.labels[self._nearest(places) + _wide(self.origin, 3)]
        order = [1 + self.axes.index(axis) for axis in range(3)]
        return _padded(
            voxels.permute(0, 1, *(axis + 1 for axis in order)),
            None if labels is None else labels.permute(0, *order),
            None if valid is None else valid.permute(0, *order),
        )

    def _crop_voxels(self, axis: int) -> Tensor:
        """The crop's voxels along one of its axes in the order of the result, `b n`, float64."""
        count = torch.arange(self.size[axis], dtype=torch.float64, device=self.device)
        found: Tensor = self.signs[:, axis, None] * count + self.begins[:, axis, None]
        return found

    def _index(self, places: Sequence[Tensor], axes: Sequence[int]) -> Tensor:
        """Places along the volume's axes as one index into a channel; `axes` of the result."""
        ny, nz = self.shape[:, 1], self.shape[:, 2]
        strides = (ny * nz, nz, torch.ones_like(nz))
        parts: list[Tensor] = []
        for axis, place in enumerate(places):
            inside = place.clamp_min(0).minimum(self.shape[:, axis, None] - 1)
            parts.append(_spread(inside * strides[axis][:, None], axes[axis]))
        return parts[0] + (parts[1] + parts[2])

    def _normalised(self, stored: Tensor, index: Tensor) -> Tensor:
        """Gathers every channel and applies the rule of its volume, `b c ...`."""
        channels = self.rules.shape[2]
        volume = self.shape.prod(dim=1)
        values = torch.empty((len(index), channels, *index.shape[1:]), device=self.device)
        for channel in range(channels):
            begin = self.origin * channels + volume * channel
            values[:, channel] = stored[index + _wide(begin, 3)]
        # Operation by operation as one crop is normalised, so that the bits are the same.
        scale, offset, low, high, shift, width = self.rules.unbind(dim=1)
        values.mul_(scale).add_(offset)
        torch.minimum(torch.maximum(values, low, out=values), high, out=values)
        return values.sub_(shift).div_(width)

    def _within(self, places: Sequence[Tensor]) -> Tensor:
        valid: Tensor | None = None
        for axis, place in enumerate(places):
            good = (place >= 0) & (place < self.shape[:, axis, None])
            spread = _spread(good, self.axes[axis])
            valid = spread if valid is None else valid & spread
        assert valid is not None
        return valid

    def _places(self) -> list[Tensor]:
        """Volume coordinates of every voxel, in the crop's orientation, three times `b x y z`."""
        rows = self.matrix.float()
        x, y, z = (self._crop_voxels(axis).float() for axis in range(3))
        found = []
        for axis in range(3):
            row = rows[:, axis]
            inner = _spread(row[:, 2:3] * z + row[:, 3:], 2)
            found.append(_spread(row[:, :1] * x, 0) + (_spread(row[:, 1:2] * y, 1) + inner))
        return found

    def _within_box(self, box: Sequence[Tensor]) -> Tensor:
        """Which voxels were gathered from the box of their own crop, `b x y z`."""
        ends = (self.first + self.box)[..., None]
        x, y, z = (_spread(place < ends[:, axis], axis) for axis, place in enumerate(box))
        return x & y & z

    def _clamped(self, place: Tensor, axis: int) -> Tensor:
        first, last = self.first[:, axis].float(), (self.first + self.box - 1)[:, axis].float()
        return place.maximum(_wide(first, 3)).minimum(_wide(last, 3))

    def _inside(self, places: Sequence[Tensor]) -> Tensor:
        valid = _wide(~self.padded, 3).expand(places[0].shape).clone()
        found = torch.ones_like(valid)
        for axis, place in enumerate(places):
            found &= (place >= -0.5) & (place <= _wide(self.shape[:, axis].float() - 0.5, 3))
        return valid | found

    def _nearest(self, places: Sequence[Tensor]) -> Tensor:
        index: Tensor | None = None
        for axis, place in enumerate(places):
            first = _wide(self.first[:, axis], 3)
            # Rounded from the box's first voxel, as single crops are: ties go the same way.
            near = (place - first).round_().long().clamp_min_(0)
            near = near.minimum(_wide(self.box[:, axis] - 1, 3)).add_(first)
            index = near if index is None else index.mul_(_wide(self.shape[:, axis], 3)).add_(near)
        assert index is not None
        return index


def _padded(voxels: Tensor, labels: Tensor | None, valid: Tensor | None) -> CutBatch:
    if valid is not None:
        voxels = voxels.masked_fill(~valid[:, None], 0.0)
        labels = None if labels is None else labels.masked_fill(~valid, IGNORE_INDEX)
    return CutBatch(voxels, labels, valid)


def _spread(along: Tensor, axis: int) -> Tensor:
    """`b n` as `b 1 1 1` with n at one axis of space."""
    shape = [len(along), 1, 1, 1]
    shape[1 + axis] = along.shape[1]
    return along.view(shape)


def _wide(each: Tensor, dimensions: int) -> Tensor:
    """`b` as `b 1 1 1`."""
    return each.view(-1, *(1,) * dimensions)


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """A small array on a device, without waiting for it."""
    return moved(torch.from_numpy(array), device)
