"""What the outputs of a network mean: labels or probabilities of some rows, and their collection.

Several outputs without regions are a softmax, regions and a single output are sigmoids.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mim3d.inference.segmenter import Segmenter
from mim3d.inference.windows import Box, Triple

CERTAIN = 120.0
"""Logits further apart are probabilities of 0 and 1 in float32."""


def is_sigmoid(segmenter: Segmenter, outputs: int) -> bool:
    """Whether every output is decided by itself."""
    return segmenter.regions is not None or outputs == 1


def labels_of(segmenter: Segmenter, logits: Tensor) -> Tensor:
    """Label values of regions, else indices of classes; logits times any weights will do.

    Args:
        segmenter: says what the outputs are.
        logits: `k x y z`, up to a positive factor a voxel.

    Returns:
        `x y z`, uint8, or int16 for more than 256 classes.
    """
    if segmenter.regions is not None:
        values: Tensor = segmenter.regions.to_values(logits > 0)
        return values
    return (logits[0] > 0).byte() if len(logits) == 1 else largest(logits)


def largest(values: Tensor) -> Tensor:
    """Index of the largest of `k x y z` at every voxel; of equals the first.

    `argmax` takes three times as long, for the values of a voxel lie far apart in memory.
    """
    kind = torch.uint8 if len(values) <= 256 else torch.int16
    indices = torch.zeros(values.shape[1:], dtype=kind, device=values.device)
    best = values[0].clone()
    for place in range(1, len(values)):
        indices.masked_fill_(values[place] > best, place)
        torch.maximum(best, values[place], out=best)
    return indices


def most_likely(segmenter: Segmenter, probabilities: NDArray[np.float32]) -> NDArray[Any]:
    """As `labels_of`, from probabilities `k x y z`."""
    values = torch.from_numpy(probabilities)
    if is_sigmoid(segmenter, len(values)):
        values = values - 0.5
    return labels_of(segmenter, values).numpy()


def background_of(segmenter: Segmenter, logits: Tensor) -> Tensor:
    """Logits `k` of what is background for certain, for logits `k x y z`."""
    background = torch.full((len(logits),), -CERTAIN)
    if not is_sigmoid(segmenter, len(logits)):
        background[0] = 0
    return background.to(logits.device)


class Sink(Protocol):
    """What takes rows of logits."""

    def put(self, place: Box, logits: Tensor) -> None:
        """Takes logits `k x y z`, which lie at `place` of the volume."""


class LabelSink:
    """Labels that go from the device into one array without anybody waiting for the device.

    Args:
        segmenter: says what the outputs are.
        box: the part of the volume that is filled; the rest is 0.
        shape: of the volume.
        axis: along which rows follow each other.
    """

    def __init__(self, segmenter: Segmenter, box: Box, shape: Triple, axis: int) -> None:
        self.segmenter, self.box, self.shape, self.axis = segmenter, box, shape, axis
        self._rows: Tensor | None = None
        self._device = torch.device("cpu")

    def put(self, place: Box, logits: Tensor) -> None:
        """Takes rows: all of the box across `axis`. Any weights of a voxel's logits will do."""
        labels = labels_of(self.segmenter, logits).movedim(self.axis, 0).contiguous()
        if self._rows is None:
            sides = [side.stop - side.start for side in self.box]
            depth = sides.pop(self.axis)
            self._device = labels.device
            pinned = labels.device.type == "cuda"
            self._rows = torch.empty((depth, *sides), dtype=labels.dtype, pin_memory=pinned)
        first = place[self.axis].start - self.box[self.axis].start
        # Whole rows of pinned memory: the copy goes on while the next windows run.
        self._rows[first : first + len(labels)].copy_(labels, non_blocking=True)

    def volume(self) -> NDArray[Any]:
        """`x y z`, the whole volume; waits for the device."""
        assert self._rows is not None  # there is always one row
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        rows = self._rows.numpy()
        whole = np.zeros(self.shape, rows.dtype)
        whole[self.box] = np.moveaxis(rows, 0, self.axis)
        return whole


class ProbabilitySum:
    """Probabilities of one pass, or of several to be averaged, in one array on the CPU.

    Args:
        segmenter: says what the outputs are.
        shape: of the volume.
    """

    def __init__(self, segmenter: Segmenter, shape: Triple) -> None:
        self.segmenter, self.shape = segmenter, shape
        self._passes = 0
        self._total: NDArray[np.float32] | None = None

    def put(self, place: Box, logits: Tensor) -> None:
        """Adds the probabilities of mean logits."""
        is_each = is_sigmoid(self.segmenter, len(logits))
        found = logits.sigmoid() if is_each else logits.softmax(dim=0)
        if self._total is None:
            self._total = np.zeros((len(found), *self.shape), np.float32)
        self._total[(slice(None), *place)] += found.cpu().numpy()

    def close(self, box: Box) -> None:
        """Ends a pass whose logits filled `box`; around it all is background for certain."""
        self._passes += 1
        assert self._total is not None  # there is always one row
        if not is_sigmoid(self.segmenter, len(self._total)):
            outside = np.ones(self.shape, np.bool_)
            outside[box] = False
            self._total[0][outside] += 1

    def mean(self) -> NDArray[np.float32]:
        """`k x y z`: of classes, whose sum is 1, or of each region."""
        assert self._total is not None
        if self._passes > 1:
            self._total /= np.float32(self._passes)
        return self._total
