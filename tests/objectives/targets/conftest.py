"""Crops to make targets of: three different sides, two channels, anisotropic voxels, padding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mim3d.data.batch import CropBatch
from mim3d.objectives.targets import Look
from mim3d.tokens.gather import gather
from mim3d.tokens.patches import cut_crop, patchify

SIZE = (11, 13, 7)
SPACING_MM = (0.5, 1.0, 3.0)
MakeLook = Callable[..., Look]


def made_look(
    patch: tuple[int, int, int] = (4, 4, 2),
    *,
    padded: bool = False,
    voxels: torch.Tensor | None = None,
    size: tuple[int, int, int] = SIZE,
) -> Look:
    """All tokens but the second, in another order than they lie."""
    if voxels is None:
        voxels = torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(0))
    b, c, *space = voxels.shape
    valid = None
    if padded:
        valid = torch.rand(b, *space, generator=torch.Generator().manual_seed(1)) > 0.3
        valid[0, :5] = False
        valid[1, :, 9:] = False
    cut = cut_crop(voxels, valid, patch)
    n = cut.crop.grid.n
    order = torch.randperm(n, generator=torch.Generator().manual_seed(2))
    index = torch.stack([order[order != 1], order.flip(0)[order.flip(0) != 1]])[:b]
    inside = None
    if cut.crop.valid is not None:
        inside = gather(patchify(cut.crop.valid[:, None], patch), index).repeat(1, 1, c)
    affine = torch.diag(torch.tensor([*SPACING_MM, 1.0], dtype=torch.float64)).repeat(b, 1, 1)
    affine[-1, 0, 0] = 2.0  # the crops differ in spacing
    batch = CropBatch(voxels, affine, ("a", "b")[:b], torch.arange(b), valid=valid)
    return Look(cut, index, inside, batch)


@pytest.fixture
def make_look() -> MakeLook:
    """Makes a look at crops."""
    return made_look
