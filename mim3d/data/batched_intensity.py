"""Intensities of a whole batch of crops, as `augment.apply` changes those of one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mim3d.data.augment import gaussians
from mim3d.data.batched import CHUNK_VOXELS, to_device
from mim3d.data.blur import blur
from mim3d.data.numbers import CropNumbers


def change_intensities(
    voxels: Tensor, valid: Tensor | None, air: Tensor | None, numbers: CropNumbers
) -> tuple[Tensor, Tensor | None]:
    """Blur, gamma, contrast, offset and noise, each on the crops that have it.

    Args:
        voxels: `b c x y z`, float32; changed in place.
        valid: `b x y z`, or None where all is.
        air: `b c`, thresholds of air, or None.
        numbers: of the crops, on the host.

    Returns:
        The voxels, 0 at padding, and the thresholds that go with them.
    """
    scale, shift, gamma, noise, width = numbers.intensity.numpy().T
    device = voxels.device
    for rows in _some(width > 0, voxels):
        where = to_device(np.array(rows), device)
        some = None if valid is None else valid[where]
        voxels.index_copy_(0, where, blur(voxels[where], some, width[rows].tolist()))
    for rows in _some(gamma != 1, voxels):
        air = _curve(voxels, air, valid, rows, gamma)
    if (scale != 1).any() or (shift != 0).any():
        factors = to_device(np.stack((scale, shift)), device).float()
        factor, offset = factors[:, :, None, None, None, None]
        voxels.mul_(factor).add_(offset)
        air = None if air is None else air * factors[0, :, None] + factors[1, :, None]
    for rows in _some(noise > 0, voxels):
        where = to_device(np.array(rows), device)
        found = gaussians(numbers.noise_keys[rows].tolist(), voxels[0].numel(), device)
        strength = to_device(noise[rows], device).float()[:, None]
        voxels.index_add_(0, where, found.mul_(strength).view(-1, *voxels.shape[1:]))
    if valid is not None:
        voxels.masked_fill_(~valid[:, None], 0.0)
    return voxels, air


def _curve(
    voxels: Tensor, air: Tensor | None, valid: Tensor | None, rows: list[int], gamma: NDArray[Any]
) -> Tensor | None:
    where = to_device(np.array(rows), voxels.device)
    exponent = to_device(gamma[rows], voxels.device).float()[:, None]
    values = voxels[where]
    space = (2, 3, 4)
    if valid is None:
        low, high = values.amin(space), values.amax(space)
    else:
        outside = ~valid[where][:, None]
        low = values.masked_fill(outside, torch.inf).amin(space)
        high = values.masked_fill(outside, -torch.inf).amax(space)
    width = (high - low).clamp_min(1e-6)
    base, scale = low[..., None, None, None], width[..., None, None, None]
    part = values.sub_(base).div_(scale).clamp_(0, 1)
    curved = part.pow_(exponent[..., None, None, None]).mul_(scale).add_(base)
    voxels.index_copy_(0, where, curved)
    if air is None:
        return None
    threshold = air[where]
    bent = ((threshold - low) / width).clamp(0, 1).pow(exponent) * width + low
    bent = torch.where((low < threshold) & (threshold < high), bent, threshold)
    return air.index_copy(0, where, bent)


def _some(wanted: NDArray[Any], voxels: Tensor) -> list[list[int]]:
    """The wanted rows, as many at a time as there is room for."""
    rows: list[int] = np.flatnonzero(wanted).tolist()
    room = CHUNK_VOXELS.get(voxels.device.type, CHUNK_VOXELS["cpu"])
    many = max(1, room // max(voxels[0].numel(), 1))
    return [rows[first : first + many] for first in range(0, len(rows), many)]
