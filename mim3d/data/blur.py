"""Gaussian blur of crops, axis by axis, in which padding takes no part."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TRUNCATE = 3.0
"""Standard deviations after which the Gaussian is cut off."""


def blur(
    voxels: Tensor, valid: Tensor | None, sigmas: Sequence[float] | Sequence[Sequence[float]]
) -> Tensor:
    """The weighted mean around every voxel, of what is valid and inside the crop.

    Shifts and sums, no matrix product: the same on every device and at every precision setting.

    Args:
        voxels: `b c x y z`, float32.
        valid: `b x y z`, False at padding, or None where there is none.
        sigmas: standard deviation in voxels, one a sample or three, for x, y, z; 0 changes nothing.

    Returns:
        `b c x y z`; what stands at padding has no meaning.
    """
    each = torch.tensor(sigmas, dtype=torch.float64)
    each = each[:, None].expand(-1, 3) if each.ndim == 1 else each
    kernels = [_weights(sigma).to(voxels.device, non_blocking=True) for sigma in each.T]
    blurred = [(axis, kernel) for axis, kernel in enumerate(kernels, 2) if kernel.shape[-1] > 1]
    if valid is None:
        # The sum of weights inside the crop is a product over axes.
        for axis, weights in blurred:
            shape = [len(sigmas), 1, 1, 1, 1]
            shape[axis] = voxels.shape[axis]
            inside = _along(voxels.new_ones(shape), axis, weights)
            voxels = _along(voxels, axis, weights).div_(inside)
        return voxels
    share = valid[:, None].to(voxels.dtype)
    total = voxels * share
    for axis, weights in blurred:
        total, share = _along(total, axis, weights), _along(share, axis, weights)
    return total.div_(share.clamp_min_(torch.finfo(share.dtype).tiny))


def reach(sigma: Tensor) -> Tensor:
    """Neighbours on each side that a Gaussian takes in."""
    return (TRUNCATE * sigma + 0.5).floor()


def _weights(sigma: Tensor) -> Tensor:
    """Weight of the voxel itself and of its neighbours, `b 1 1 1 1 r+1`, from `b` deviations."""
    sigma, far = sigma[:, None], reach(sigma)[:, None]
    distance = torch.arange(int(far.max()) + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (distance / sigma.clamp_min(1e-6)) ** 2) * (distance <= far)
    return weights.float()[:, None, None, None, None]


def _along(voxels: Tensor, axis: int, weights: Tensor) -> Tensor:
    total, count = voxels * weights[..., 0], voxels.shape[axis]
    for distance in range(1, min(weights.shape[-1], count)):
        weight, length = weights[..., distance], count - distance
        below, above = voxels.narrow(axis, 0, length), voxels.narrow(axis, distance, length)
        total.narrow(axis, distance, length).addcmul_(below, weight)
        total.narrow(axis, 0, length).addcmul_(above, weight)
    return total
