"""Where a token lies, told to the network: learned, sine-cosine or rotary, by index or in mm.

Every kind takes the coordinates of the tokens, `b n 3`, in its own unit; `Positions.coordinates`
makes them. They are measured from the box of the *valid* voxels, so a volume has the same positions
alone, padded, and beside larger volumes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim3d.foundation.errors import ConfigError, UserError
from mim3d.tokens.gather import gather
from mim3d.tokens.grid import TokenGrid, Triple, ValidBox

INDEX_TEMPERATURE = 10_000.0
"""Ratio of the longest to the shortest wavelength by index (SelfMedMAE `mae3d.py:15-39`)."""


class Rotation(NamedTuple):
    """Angles of rotary positions as cosine and sine, each `b n r`, one entry a pair of channels."""

    cos: Tensor
    sin: Tensor

    def since(self, start: int) -> Rotation:
        """The angles of the tokens from one place on."""
        return Rotation(self.cos[:, start:], self.sin[:, start:])


def frequencies_mm(count: int, wavelengths_mm: tuple[float, float]) -> Tensor:
    """Angular frequencies (radians per mm) whose wavelengths grow geometrically, `count`.

    Args:
        count: how many.
        wavelengths_mm: the shortest and the longest, both included.
    """
    shortest, longest = wavelengths_mm
    steps = torch.linspace(0, 1, count, dtype=torch.float64)
    wavelengths = shortest * (longest / shortest) ** steps
    return (2 * math.pi / wavelengths).float()


def frequencies_index(count: int) -> Tensor:
    """Angular frequencies (radians per token) of the 3D MAE: 10000^(-i/count), `count`."""
    steps = torch.arange(count, dtype=torch.float64) / count
    return (INDEX_TEMPERATURE**-steps).float()


def sincos(coordinates: Tensor, frequencies: Tensor, width: int) -> Tensor:
    """Sine-cosine positions: sin x, cos x, sin y, cos y, sin z, cos z, then zeros up to `width`.

    Args:
        coordinates: `b n 3`.
        frequencies: f, in radians per unit of the coordinates, 6 f <= `width`.
        width: channels of a token.

    Returns:
        `b n d`, float32.
    """
    angles = coordinates.float()[..., None] * frequencies  # b n 3 f
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(2)
    return F.pad(waves, (0, width - waves.shape[-1]))


def rotate(heads: Tensor, rotation: Rotation) -> Tensor:
    """Queries or keys turned by their token's position; channels beyond the angles stay.

    Channel i < r is paired with channel r + i (Su et al., arXiv:2104.09864, in halves).

    Args:
        heads: `b h n e`, e >= 2 r.
        rotation: cosine and sine, `b n r`.
    """
    cos, sin = rotation.cos[:, None], rotation.sin[:, None]
    r = cos.shape[-1]
    first, second, rest = torch.split(heads, [r, r, heads.shape[-1] - 2 * r], dim=-1)
    turned = [first * cos - second * sin, first * sin + second * cos]
    return torch.cat([part.to(heads.dtype) for part in turned] + [rest], dim=-1)


class Positions(nn.Module):
    """One kind of positions for tokens of one width.

    Args:
        kind: `learned`, `sincos_index`, `sincos_mm`, `rotary_mm` or `rotary_index`.
        width: channels of a token.
        heads: attention heads; a head of 64 gives 20 + 20 + 20 rotated and 4 unrotated channels.
        wavelengths_mm: shortest and longest wavelength of the kinds in millimetres; of
            `rotary_index`, in voxels.
        learned_grid: token grid of the learned table.

    Raises:
        ConfigError: no grid for the learned table, or a width below one frequency an axis.
    """

    frequencies: Tensor

    def __init__(
        self,
        kind: str,
        width: int,
        heads: int,
        *,
        wavelengths_mm: tuple[float, float] = (8.0, 800.0),
        learned_grid: Triple | None = None,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.width = width
        self.learned_grid = learned_grid
        self.table: nn.Parameter | None = None
        if kind == "learned":
            if learned_grid is None:
                raise ConfigError(
                    "`encoder.positions learned` needs the token grid of its table",
                    remedy="set `encoder.learned_grid`, mostly crop size divided by patch",
                    code="no-learned-grid",
                )
            self.table = nn.Parameter(torch.empty(1, math.prod(learned_grid), width))
            nn.init.trunc_normal_(self.table, std=0.02)
            return
        channels = width // heads if self.is_rotary else width
        if channels < 6:
            raise ConfigError(
                f"`encoder.positions {kind}` needs 6 channels or more, there are {channels}",
                remedy="widen the encoder or take fewer heads",
                code="too-narrow",
            )
        by_index = kind == "sincos_index"
        count = channels // 6
        table = frequencies_index(count) if by_index else frequencies_mm(count, wavelengths_mm)
        self.register_buffer("frequencies", table, persistent=False)

    @property
    def in_mm(self) -> bool:
        """Whether spacing is needed."""
        return self.kind.endswith("_mm")

    @property
    def is_rotary(self) -> bool:
        """Whether queries and keys are turned; nothing is added to the tokens then."""
        return self.kind.startswith("rotary_")

    def coordinates(
        self, grid: TokenGrid, spacing_mm: Tensor | None, box: ValidBox | None, device: torch.device
    ) -> Tensor:
        """Where the tokens lie, in the unit of this kind.

        Millimetres, or for `rotary_index` voxels, from the centre of the valid box; token indices
        from its first corner; or, for the learned table, the same as a share of the box rounded up
        to whole tokens.

        Args:
            grid: the tokens.
            spacing_mm: `b 3` or `1 3`; only for the kinds in millimetres.
            box: the valid box of every sample, none where all is valid.
            device: where the result lies.

        Returns:
            `b n 3`, or `1 n 3` where all samples share it, float32.

        Raises:
            UserError: positions are in millimetres and no spacing is known.
        """
        if self.in_mm:
            if spacing_mm is None:
                raise UserError(
                    "positions are in millimetres and the spacing of the volume is not known",
                    remedy="pass `spacing_mm` or set `encoder.default_spacing_mm`",
                    code="no-spacing",
                )
            return _from_centre(grid, spacing_mm, box)
        if self.is_rotary:
            return _from_centre(grid, torch.ones((1, 3), device=device), box)
        patch = torch.tensor(grid.patch, device=device)
        centres = grid.centres_voxel(device)[None] / patch
        if box is None:
            tokens = torch.tensor([grid.counts], device=device)
        else:
            centres = centres - (box.start / patch)[:, None]
            tokens = ((box.stop - box.start) / patch).ceil()
        if self.kind == "sincos_index":
            return centres - 0.5
        return centres / tokens[:, None]

    def added(
        self, coordinates: Tensor, grid: TokenGrid, index: Tensor | None = None
    ) -> Tensor | None:
        """What is added to the tokens at `index` (none: to all); None for rotary positions.

        Args:
            coordinates: `b n 3` or `1 n 3`, of all tokens.
            grid: the tokens.
            index: `b k`, int64.

        Returns:
            `b k d` or `1 n d`, float32.
        """
        if self.is_rotary:
            return None
        if self.table is not None:
            everywhere = self._sampled(coordinates, grid)
            return everywhere if index is None else gather(everywhere, index)
        here = coordinates if index is None else gather(coordinates, index)
        return sincos(here, self.frequencies, self.width)

    def rotation(self, coordinates: Tensor, index: Tensor | None, prefix: int) -> Rotation | None:
        """Angles for queries and keys of the tokens at `index`; None for added positions.

        Args:
            coordinates: `b n 3` or `1 n 3`, of all tokens.
            index: `b k`, int64; none is all tokens.
            prefix: tokens without position that stand in front; they are not turned.
        """
        if not self.is_rotary:
            return None
        here = coordinates if index is None else gather(coordinates, index)
        angles = (here[..., None] * self.frequencies).flatten(2)
        angles = F.pad(angles, (0, 0, prefix, 0))
        return Rotation(angles.cos(), angles.sin())

    def _sampled(self, coordinates: Tensor, grid: TokenGrid) -> Tensor:
        assert self.table is not None
        assert self.learned_grid is not None
        # A program that is exported must not be made for this grid alone.
        is_open = torch.compiler.is_exporting()
        if not is_open and coordinates.shape[0] == 1 and grid.counts == self.learned_grid:
            return self.table
        # Trilinear, with the outer halves of the outer cells constant: what `interpolate` does
        # with align_corners=False when the coordinates are those of a whole grid.
        cells = self.table.reshape(1, *self.learned_grid, self.width).permute(0, 4, 1, 2, 3)
        points = (coordinates.flip(-1) * 2 - 1)[:, :, None, None]  # grid_sample wants z y x
        cells = cells.expand(points.shape[0], -1, -1, -1, -1)
        found = F.grid_sample(cells, points, padding_mode="border", align_corners=False)
        return found[..., 0, 0].transpose(1, 2)


def _from_centre(grid: TokenGrid, spacing_mm: Tensor, box: ValidBox | None) -> Tensor:
    """Millimetres from the centre of what is valid, `b n 3`."""
    origin = None if box is None else (box.start + box.stop) / 2
    return grid.centres_mm(spacing_mm, origin)
