"""Voxels at several scales: the coarse ones say what a patch is like before its details are known.

Coarse and fine patches beside each other are what LocalMIM predicts (arXiv:2303.05251), there from
different depths of the encoder; here one head predicts them all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mim3d.foundation.errors import ConfigError
from mim3d.models.patch_head import Answer
from mim3d.objectives.targets.base import Look, PatchTarget, Target, of_boxes
from mim3d.tokens.grid import Triple


class Scales(Target):
    """Means over cubes of voxels of each patch, for several sides of a cube; `(c x y z)` a scale.

    Cubes that the end of a patch cuts off are means of what is there, as are those with padding in
    them. Every scale counts as much as every other, whatever its number of values.

    Args:
        channels: c, of the crops.
        patch: voxels behind a token along x, y, z.
        factors: voxels of a cube's side, for each scale; 1 is the voxels themselves.

    Raises:
        ConfigError: no scale, one that is not positive, or twice the same.
    """

    def __init__(self, channels: int, patch: Triple, factors: Sequence[int]) -> None:
        if not factors or min(factors) < 1 or len(set(factors)) < len(factors):
            raise ConfigError(
                f"`objective.targets.scales` is {list(factors)}, expected different numbers of "
                "voxels, 1 or more",
                remedy="write for example `[1, 2, 4]`",
                code="range",
            )
        self.patch = patch
        self.factors = tuple(sorted(factors))
        cubes = [tuple(min(factor, side) for side in patch) for factor in self.factors]
        self.cubes = [(x, y, z) for x, y, z in cubes]
        self.counts = [
            (-(-patch[0] // x), -(-patch[1] // y), -(-patch[2] // z)) for x, y, z in self.cubes
        ]
        super().__init__(Answer(channels * sum(map(math.prod, self.counts)), by_voxel=False))
        self.channels = channels

    @torch.no_grad()
    def of(self, look: Look) -> PatchTarget:
        """`b q t`, scale after scale from the finest, which predictions are shown by."""
        boxes, there = look.boxes()
        kept = (boxes * there).flatten(0, 1), there.flatten(0, 1)
        sums = [(_mean(kept[0], cube), _mean(kept[1], cube)) for cube in self.cubes]
        means = [total / share.clamp_min(_TINY) for total, share in sums]
        values = torch.cat([mean.flatten(1) for mean in means], dim=1)
        b, q = look.index.shape
        return PatchTarget(values.reshape(b, q, -1), self._back)

    def weigh(self, weights: Tensor | None, patch: Triple) -> Tensor | None:
        """The mean of a cube's voxels, divided by the number of cubes of its scale."""
        device = None if weights is None else weights.device
        sizes = [self.channels * math.prod(count) for count in self.counts]
        shares = torch.cat(
            [torch.full((size,), sum(sizes) / len(sizes) / size, device=device) for size in sizes]
        )
        if weights is None or weights.shape[-1] == 1:
            return shares if weights is None else weights * shares
        boxes = of_boxes(weights, patch)
        b, q = boxes.shape[:2]
        means = [_mean(boxes.flatten(0, 1), cube).flatten(1) for cube in self.cubes]
        return torch.cat(means, dim=1).reshape(b, q, -1) * shares

    def _back(self, predicted: Tensor) -> Tensor:
        """Each voxel as the finest cube that it lies in."""
        b, q, _ = predicted.shape
        finest = self.channels * math.prod(self.counts[0])
        boxes = predicted[..., :finest].reshape(b, q, self.channels, *self.counts[0])
        for axis, (side, cube) in enumerate(zip(self.patch, self.cubes[0], strict=True), start=3):
            boxes = boxes.repeat_interleave(cube, dim=axis).narrow(axis, 0, side)
        return boxes.flatten(2)


_TINY = 1e-12
"""Below any share of a cube that exists."""


def _mean(boxes: Tensor, cube: Triple) -> Tensor:
    """Means over cubes from the first corner on, `n c x y z`."""
    return F.avg_pool3d(boxes, cube, cube, ceil_mode=True, count_include_pad=False)
