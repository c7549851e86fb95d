"""How tokens lie in a crop: their grid, their centres, and the box of the crop that is valid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class TokenGrid:
    """The arrangement of a crop's tokens; flattened with z fastest, `(gx gy gz)`.

    Args:
        counts: tokens along x, y, z.
        patch: voxels behind one token along x, y, z.
        size: voxels of the crop along x, y, z before it was padded to whole patches.
    """

    counts: Triple
    patch: Triple
    size: Triple

    @classmethod
    def over(cls, size: Triple, patch: Triple) -> TokenGrid:
        """The smallest grid of patches that covers a crop of `size` voxels."""
        x, y, z = (-(-side // edge) for side, edge in zip(size, patch, strict=True))
        return cls((x, y, z), patch, size)

    def with_patch(self, patch: Triple) -> TokenGrid:
        """As many tokens of another patch, over whole patches."""
        x, y, z = (count * edge for count, edge in zip(self.counts, patch, strict=True))
        return TokenGrid(self.counts, patch, (x, y, z))

    @property
    def n(self) -> int:
        """Number of tokens."""
        return math.prod(self.counts)

    @property
    def padded(self) -> Triple:
        """Voxels along x, y, z that the patches cover."""
        x, y, z = (count * edge for count, edge in zip(self.counts, self.patch, strict=True))
        return x, y, z

    def indices(self, device: torch.device | str | None = None) -> Tensor:
        """Place of every token in the grid, `n 3`, int64."""
        axes = [torch.arange(count, device=device) for count in self.counts]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)

    def centres_voxel(self, device: torch.device | str | None = None) -> Tensor:
        """Centre of every token in voxels from the crop's first corner, `n 3`, float32."""
        # Not `device=` in `torch.tensor`: that would wait for all the device still has to do.
        patch = torch.tensor(self.patch).to(device=device, non_blocking=True)
        return (self.indices(device) + 0.5) * patch

    def centres_mm(self, spacing_mm: Tensor, origin: Tensor | None = None) -> Tensor:
        """Centre of every token in millimetres along the crop's own axes.

        Args:
            spacing_mm: `b 3`.
            origin: `b 3`, the voxel position that becomes 0; none is the centre of the crop as it
                was before padding.

        Returns:
            `b n 3`, float32.
        """
        device = spacing_mm.device
        if origin is None:
            origin = torch.tensor([self.size]).to(device, non_blocking=True) / 2
        return (self.centres_voxel(device) - origin[:, None]) * spacing_mm[:, None].float()


class ValidBox(NamedTuple):
    """The smallest box that holds a sample's valid voxels, in voxels from the first corner."""

    start: Tensor
    """`b 3`, float32."""
    stop: Tensor
    """`b 3`, float32, one past the last valid voxel."""


def valid_box(valid: Tensor) -> ValidBox:
    """The bounding box of the valid voxels; the whole crop for a sample that has none.

    Args:
        valid: `b x y z`, bool.
    """
    starts, stops = [], []
    for axis in (1, 2, 3):
        others = tuple(other for other in (1, 2, 3) if other != axis)
        line = valid.any(dim=others).int()
        starts.append(line.argmax(dim=1))
        stops.append(line.shape[1] - line.flip(1).argmax(dim=1))
    return ValidBox(torch.stack(starts, dim=1).float(), torch.stack(stops, dim=1).float())
