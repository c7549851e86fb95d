"""The spectrum of each patch, in which fine detail counts as much as the mean."""

from __future__ import annotations

import math
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mim3d.models.patch_head import Answer
from mim3d.objectives.targets.base import Look, PatchTarget, Target, of_boxes
from mim3d.tokens.grid import Triple

Matrix = NDArray[np.floating[Any]]


class Spectrum(Target):
    """The orthonormal cosine transform (DCT-II) of a patch, channel by channel, details raised.

    The coefficient of k = (kx, ky, kz) half waves in the patch is multiplied by (1 + |k|)^slope.
    Images hold about 1 / |k| at k (Field, JOSA A 4, 1987), so that with slope 1 details count as
    much as the coarse; with slope 0 and `loss: l2` it is the target `raw`, by Parseval. That a
    network learns low frequencies first, and that weights by frequency help, is Jiang et al.'s
    finding (arXiv:2012.12877). Cosines, since a patch is not periodic.

    Args:
        channels: c, of the crops.
        patch: voxels behind a token along x, y, z.
        slope: of the weights.
    """

    def __init__(self, channels: int, patch: Triple, slope: float) -> None:
        super().__init__(Answer(channels * math.prod(patch), by_voxel=False))
        self.slope = slope

    @torch.no_grad()
    def of(self, look: Look) -> PatchTarget:
        """`b q (c kx ky kz)`; what is missing of a patch is filled with the mean of the rest."""
        boxes, there = look.boxes()
        space = (3, 4, 5)
        share = there.sum(dim=space, keepdim=True).clamp_min(1)
        mean = (boxes * there).sum(dim=space, keepdim=True) / share
        filled = torch.where(there > 0, boxes, mean)
        raised = raise_by(look.patch, self.slope, boxes.device)
        values = transformed(filled, back=False) * raised
        return PatchTarget(values.flatten(2), partial(_back, shape=boxes.shape, raised=raised))

    def weigh(self, weights: Tensor | None, patch: Triple) -> Tensor | None:
        """Every coefficient counts as the channel's voxels on average."""
        if weights is None or weights.shape[-1] == 1:
            return weights
        boxes = of_boxes(weights, patch)
        return boxes.mean(dim=(3, 4, 5), keepdim=True).expand_as(boxes).flatten(2)


def _back(predicted: Tensor, shape: torch.Size, raised: Tensor) -> Tensor:
    return transformed(predicted.float().reshape(shape) / raised, back=True).flatten(2)


def transformed(boxes: Tensor, *, back: bool) -> Tensor:
    """The orthonormal DCT-II over the last three axes, or its inverse; float32."""
    # Autocast would take the products in bfloat16.
    with torch.autocast(boxes.device.type, enabled=False):
        for axis in (-3, -2, -1):
            matrix = torch.from_numpy(_cosines(boxes.shape[axis]))
            matrix = (matrix.T if back else matrix).to(boxes)
            boxes = (boxes.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
    return boxes


def raise_by(patch: Triple, slope: float, device: torch.device | None = None) -> Tensor:
    """(1 + |k|)^slope of every coefficient of a patch, `kx ky kz`."""
    axes = [torch.arange(side, dtype=torch.float32, device=device) for side in patch]
    waves = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return (1 + waves.square().sum(dim=0).sqrt()) ** slope


@cache
def _cosines(side: int) -> Matrix:
    """Row k is the cosine of k half waves: sqrt((2 - [k = 0]) / n) cos(pi k (2 i + 1) / 2 n)."""
    k, i = np.mgrid[:side, :side]
    matrix: Matrix = np.sqrt(2 / side) * np.cos(np.pi * k * (2 * i + 1) / (2 * side))
    matrix[0] /= np.sqrt(2)
    return matrix
