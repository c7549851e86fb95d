"""From voxels to flattened patches and back, without loss, for any size of crop."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mim3d.foundation.errors import ShapeError, check_shape
from mim3d.tokens.grid import TokenGrid, Triple


def patchify(voxels: Tensor, patch: Triple) -> Tensor:
    """Flattened patches: `b c (gx px) (gy py) (gz pz) -> b (gx gy gz) (c px py pz)`.

    Args:
        voxels: `b c x y z`, each side a multiple of the patch's.
        patch: voxels of a patch along x, y, z.

    Returns:
        `b n p`, `p = c px py pz` with c slowest.

    Raises:
        ShapeError: a side is no multiple of the patch's.
    """
    check_shape(voxels, "b c x y z", "patchify")
    b, c, *size = voxels.shape
    if any(side % edge for side, edge in zip(size, patch, strict=True)):
        raise ShapeError(f"patchify expects sides that are multiples of {patch}, got {tuple(size)}")
    px, py, pz = patch
    gx, gy, gz = size[0] // px, size[1] // py, size[2] // pz
    split = voxels.reshape(b, c, gx, px, gy, py, gz, pz)
    return split.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, gx * gy * gz, c * px * py * pz)


def unpatchify(patches: Tensor, grid: TokenGrid, channels: int) -> Tensor:
    """Voxels again: `b (gx gy gz) (c px py pz) -> b c (gx px) (gy py) (gz pz)`.

    Args:
        patches: `b n p`.
        grid: the grid they lie on.
        channels: c.

    Returns:
        `b c x y z` of the padded size.

    Raises:
        ShapeError: the grid or the channels do not fit the patches.
    """
    check_shape(patches, "b n p", "unpatchify")
    (gx, gy, gz), (px, py, pz) = grid.counts, grid.patch
    b = patches.shape[0]
    expected = (b, grid.n, channels * px * py * pz)
    if tuple(patches.shape) != expected:
        raise ShapeError(f"unpatchify expects {expected}, got {tuple(patches.shape)}")
    split = patches.reshape(b, gx, gy, gz, channels, px, py, pz)
    return split.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(b, channels, gx * px, gy * py, gz * pz)


class PaddedCrop(NamedTuple):
    """Crops whose sides are whole patches."""

    voxels: Tensor
    """`b c x y z`, 0 wherever there is padding."""
    valid: Tensor | None
    """`b x y z` bool, or None where no voxel is padding."""
    token_valid: Tensor | None
    """`b n` bool, whether any voxel behind a token is valid; None where all tokens are."""
    grid: TokenGrid


class CutCrop(NamedTuple):
    """Crops of whole patches, and those patches."""

    crop: PaddedCrop
    patches: Tensor
    """`b n p`."""


def without_air(valid: Tensor | None, body: Tensor, patch: Triple) -> Tensor:
    """The valid voxels of patches that hold body, `b x y z` bool: to a network the rest is padding.

    A crop with fewer than two such patches keeps all of its valid voxels: something must be seen.

    Args:
        valid: `b x y z` bool; None is all valid.
        body: `b x y z` bool, which voxels are body.
        patch: voxels of a patch along x, y, z.
    """
    valid = torch.ones_like(body) if valid is None else valid
    size, there = body.shape[1:], (body & valid)[:, None].to(torch.float32)
    holds = F.max_pool3d(there, patch, patch, ceil_mode=True)[:, 0] > 0
    enough = holds.flatten(1).sum(dim=1) >= 2
    for axis, side in enumerate(patch, start=1):
        holds = holds.repeat_interleave(side, dim=axis)
    held = holds[:, : size[0], : size[1], : size[2]]
    return valid & (held | ~enough[:, None, None, None])


def cut_crop(voxels: Tensor, valid: Tensor | None, patch: Triple) -> CutCrop:
    """Crops as patches; arguments and errors as `pad_to_patches`'s."""
    crop = pad_to_patches(voxels, valid, patch)
    return CutCrop(crop, patchify(crop.voxels, patch))


def pad_to_patches(voxels: Tensor, valid: Tensor | None, patch: Triple) -> PaddedCrop:
    """Pads crops at the far end to whole patches and blanks all that is not valid.

    What stood in padding never matters afterwards: it is 0 from here on, even if it was NaN.

    Args:
        voxels: `b c x y z`.
        valid: `b x y z` bool, False at padding that is there already; none is all valid.
        patch: voxels of a patch along x, y, z.

    Raises:
        ShapeError: `valid` does not fit the voxels.
    """
    check_shape(voxels, "b c x y z", "pad_to_patches")
    size = (voxels.shape[2], voxels.shape[3], voxels.shape[4])
    if valid is not None and tuple(valid.shape) != (voxels.shape[0], *size):
        raise ShapeError(f"`valid` is {tuple(valid.shape)} beside voxels {tuple(voxels.shape)}")
    grid = TokenGrid.over(size, patch)
    token_valid = None
    if valid is not None:
        voxels = torch.where(valid[:, None], voxels, voxels.new_zeros(()))
    if grid.padded != size:
        far = [more - side for more, side in zip(grid.padded, size, strict=True)]
        margins = [0, far[2], 0, far[1], 0, far[0]]
        voxels = F.pad(voxels, margins)
        # Every patch still holds a valid voxel, so without `valid` all tokens stay valid.
        inside = voxels.new_ones((1, *size), dtype=torch.bool) if valid is None else valid
        padded = F.pad(inside, margins)
        token_valid = None if valid is None else _any_valid(padded, patch)
        return PaddedCrop(voxels, padded.expand(voxels.shape[0], -1, -1, -1), token_valid, grid)
    if valid is not None:
        token_valid = _any_valid(valid, patch)
    return PaddedCrop(voxels, valid, token_valid, grid)


def _any_valid(valid: Tensor, patch: Triple) -> Tensor:
    return patchify(valid[:, None], patch).any(dim=-1)
