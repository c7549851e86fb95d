"""Targets of edges: the gradient of every voxel, and histograms of its directions (HOG)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mim3d.foundation.errors import ConfigError
from mim3d.models.patch_head import Answer
from mim3d.objectives.targets.base import Look, PatchTarget, Target, of_boxes
from mim3d.tokens.gather import gather
from mim3d.tokens.grid import Triple
from mim3d.tokens.patches import PaddedCrop, patchify

GOLDEN = (1 + math.sqrt(5)) / 2
_G = 1 / GOLDEN
DIRECTIONS: tuple[tuple[float, float, float], ...] = (
    (1, 1, 1), (1, 1, -1), (1, -1, 1), (-1, 1, 1),
    (0, _G, GOLDEN), (0, _G, -GOLDEN),
    (_G, GOLDEN, 0), (_G, -GOLDEN, 0),
    (GOLDEN, 0, _G), (GOLDEN, 0, -_G),
)  # fmt: skip
"""Centres of the faces of an icosahedron, one of each opposite pair, each sqrt(3) long."""
THRESHOLD = math.sqrt(5 / 3)
"""Projection of one centre on the next: what lies along a centre votes for it alone."""
FLAT = 0.01
"""Gradient in normalised intensity a voxel that counts as much as the noise of a flat patch."""


class Gradient(Target):
    """The derivative along x, y and z at every voxel, `(c 3 px py pz)`.

    Args:
        channels: c, of the crops.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(Answer(3 * channels))

    @torch.no_grad()
    def of(self, look: Look) -> PatchTarget:
        """`b q (c 3 p)`, as `gradient` has it; there is no way back to voxels."""
        return PatchTarget(gather(_patches(look), look.index), back=None)

    def weigh(self, weights: Tensor | None, patch: Triple) -> Tensor | None:
        """Each derivative as its voxel."""
        if weights is None or weights.shape[-1] == 1:
            return weights
        boxes = of_boxes(weights, patch)
        return boxes[:, :, :, None].expand(-1, -1, -1, 3, -1, -1, -1).flatten(2)


class Hog(Target):
    """Histograms of oriented gradients in 3D, of each cell of a patch.

    MaskFeat's target (Wei et al., arXiv:2112.09133) with the bins of Kläser et al. (BMVC 2008,
    section 2.2): a gradient votes with its magnitude for those of ten directions to which it is
    close, whichever way it points. Votes are averaged over a cell and divided by the length of the
    patch's whole histogram (its block), floored by `FLAT`; times the root of the number of bins,
    so that the mean square is 1, as that of normalised voxels.

    Args:
        channels: c, of the crops; each has histograms of its own.
        patch: voxels behind a token along x, y, z.
        cells: of a patch along x, y, z; no more than voxels.

    Raises:
        ConfigError: cells that do not divide the patch.
    """

    def __init__(self, channels: int, patch: Triple, cells: Triple) -> None:
        x, y, z = (min(count, side) for count, side in zip(cells, patch, strict=True))
        if min(x, y, z) < 1 or any(
            side % count for side, count in zip(patch, (x, y, z), strict=True)
        ):
            raise ConfigError(
                f"`objective.targets.hog_cells` {list(cells)} do not divide patches of "
                f"{' x '.join(map(str, patch))} voxels",
                remedy="take numbers that divide `encoder.patch`",
                code="range",
            )
        self.cells: Triple = (x, y, z)
        bins = math.prod(self.cells) * len(DIRECTIONS)
        super().__init__(Answer(channels * bins, by_voxel=False))

    @torch.no_grad()
    def of(self, look: Look) -> PatchTarget:
        """`b q (c kx ky kz o)`, o the directions; there is no way back to voxels."""
        b, q = look.index.shape
        edges = gather(_patches(look), look.index).reshape(b, q, look.channels, 3, *look.patch)
        _, there = look.boxes()
        voted = votes(edges.movedim(3, 0))
        share = self._mean(there).clamp_min(1e-12)
        found = torch.stack([self._mean(vote * there) / share for vote in voted], dim=-1)
        histogram = found.flatten(3)
        length = (histogram.square().sum(dim=-1, keepdim=True) + FLAT**2).sqrt()
        values = histogram / length * math.sqrt(histogram.shape[-1])
        return PatchTarget(values.flatten(2), back=None)

    def weigh(self, weights: Tensor | None, patch: Triple) -> Tensor | None:
        """Every bin counts as the cell's voxels on average."""
        if weights is None or weights.shape[-1] == 1:
            return weights
        cells = self._mean(of_boxes(weights, patch))
        return cells[..., None].expand(*cells.shape, len(DIRECTIONS)).flatten(2)

    def _mean(self, boxes: Tensor) -> Tensor:
        """Over the voxels of each cell: `b q c px py pz -> b q c kx ky kz`."""
        (x, y, z), size = self.cells, boxes.shape
        px, py, pz = (side // count for side, count in zip(size[3:], self.cells, strict=True))
        return boxes.reshape(*size[:3], x, px, y, py, z, pz).mean(dim=(4, 6, 8))


def votes(edges: Tensor) -> list[Tensor]:
    """What each voxel gives to each direction; their root mean square is its magnitude.

    The projection on a direction, less `THRESHOLD` times the magnitude and at least 0; all of a
    voxel's together are then made as long as its gradient (Kläser et al., section 2.2).

    Args:
        edges: `3 ...`, gradients.

    Returns:
        Ten of `...`.
    """
    magnitude = edges.square().sum(dim=0).sqrt()
    near = [
        (sum_of(edges, direction).abs() - THRESHOLD * magnitude).clamp_min(0)
        for direction in DIRECTIONS
    ]
    length = torch.zeros_like(magnitude)
    for each in near:
        length += each.square()
    scale = magnitude / length.sqrt().clamp_min(torch.finfo(length.dtype).tiny)
    return [each * scale for each in near]


def sum_of(edges: Tensor, direction: tuple[float, float, float]) -> Tensor:
    """The product of gradients `3 ...` with a direction."""
    x, y, z = direction
    return edges[0] * x + edges[1] * y + edges[2] * z


def _patches(look: Look) -> Tensor:
    """The gradients of the crops as patches, `b n (c 3 p)`."""
    return patchify(gradient(look.cut.crop, look.batch.spacing_mm).flatten(1, 2), look.patch)


def gradient(crop: PaddedCrop, spacing_mm: Tensor) -> Tensor:
    """Derivatives by central differences; one-sided beside padding and at the crop's faces.

    Along an axis with spacing s they are (s_x s_y s_z)^(1/3) / s times those by voxel: a direction
    in space as it is in millimetres, in units of intensity by voxel. The crop is looked at whole,
    so that a patch's faces know their neighbours.

    Args:
        crop: the crops.
        spacing_mm: `b 3`.

    Returns:
        `b c 3 x y z`, float32; 0 at padding.
    """
    voxels = crop.voxels.float()
    valid = voxels.new_ones((1, *voxels.shape[2:]), dtype=torch.bool)
    if crop.valid is not None:
        valid = crop.valid
    valid = valid[:, None]
    size = spacing_mm.log().mean(dim=1, keepdim=True).exp() / spacing_mm
    parts = []
    for axis in range(3):
        step = voxels.diff(dim=axis + 2)
        side = valid.shape[axis + 2]
        both = valid.narrow(axis + 2, 1, side - 1) & valid.narrow(axis + 2, 0, side - 1)
        step, count = torch.where(both, step, 0.0), both.float()
        total = _either_side(step, axis + 2) / _either_side(count, axis + 2).clamp_min(1)
        parts.append(total * size[:, axis, None, None, None, None])
    return torch.stack(parts, dim=2)


def _either_side(steps: Tensor, axis: int) -> Tensor:
    """The sum of the step before a voxel and the one behind it; there are none beyond the ends."""
    end = steps.new_zeros(()).expand(*steps.shape[:axis], 1, *steps.shape[axis + 1 :])
    return torch.cat([end, steps], dim=axis) + torch.cat([steps, end], dim=axis)
