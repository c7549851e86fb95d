"""How like a volume a reconstruction of it is: PSNR and SSIM in three dimensions, where asked."""

from __future__ import annotations

import torch
from torch import Tensor

from mim3d.foundation.errors import check_shape

SIGMA = 1.5
"""Deviation of the Gaussian window in voxels (Wang et al. 2004, section III.B)."""
RADIUS = 5
"""Half of the window without its middle: 11 voxels, as Wang et al."""
K1, K2 = 0.01, 0.03
"""Wang et al.'s constants, as shares of the range."""


def intensity_range(truth: Tensor) -> Tensor:
    """Highest less lowest intensity of each crop and channel, `b c`; 1 where all are equal."""
    flat = truth.double().flatten(2)
    span = flat.amax(dim=2) - flat.amin(dim=2)
    return torch.where(span > 0, span, 1.0)


def psnr(truth: Tensor, guess: Tensor, where: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels, `b c`: 10 log10(range^2 / mean squared error).

    The range is that of the crop's own intensities in `truth`, for normalised intensities have no
    fixed one. NaN where nothing is asked, infinite where all is equal.

    Args:
        truth: `b c x y z`.
        guess: the same shape.
        where: `b x y z` bool, the voxels that count.
    """
    check_shape(truth, "b c x y z", "psnr")
    error = _mean((truth.double() - guess.double()).square(), where)
    return 10 * torch.log10(intensity_range(truth).square() / error)


def ssim(truth: Tensor, guess: Tensor, where: Tensor) -> Tensor:
    """Structural similarity, `b c`, 1 where all is equal: the mean of `ssim_map` where asked.

    Args:
        truth: `b c x y z`.
        guess: the same shape.
        where: `b x y z` bool, the voxels that count; NaN where there is none.
    """
    return _mean(ssim_map(truth, guess), where)


def ssim_map(truth: Tensor, guess: Tensor) -> Tensor:
    """Structural similarity around every voxel (Wang et al. 2004, eq. 13), `b c x y z` float64.

    Gaussian windows of 11 voxels, mirrored at the faces, so that crops may be thin; population
    variances; the range is that of the crop's own intensities in `truth`.

    Args:
        truth: `b c x y z`.
        guess: the same shape.
    """
    check_shape(truth, "b c x y z", "ssim")
    x, y = truth.double(), guess.double()
    span = intensity_range(x)[:, :, None, None, None]
    c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2
    mean_x, mean_y = _smooth(x), _smooth(y)
    variance_x = _smooth(x * x) - mean_x**2
    variance_y = _smooth(y * y) - mean_y**2
    covariance = _smooth(x * y) - mean_x * mean_y
    light = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return light * (2 * covariance + c2) / (variance_x + variance_y + c2)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    chosen = where[:, None].to(values.dtype)
    return (values * chosen).sum(dim=(2, 3, 4)) / chosen.sum(dim=(2, 3, 4))


def _smooth(volumes: Tensor) -> Tensor:
    """A Gaussian mean along each axis; what lies beyond a face is mirrored, edge voxel included."""
    offsets = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    weights = (kernel / kernel.sum()).tolist()
    for axis in (2, 3, 4):
        size = volumes.shape[axis]
        # Positions -radius to size + radius, folded back: reflection has period 2 size.
        places = torch.arange(-RADIUS, size + RADIUS, device=volumes.device) % (2 * size)
        mirrored = volumes.index_select(axis, torch.minimum(places, 2 * size - 1 - places))
        # Shifted sums: a tenth of the time of a convolution in float64.
        volumes = torch.zeros_like(volumes)
        for shift, weight in enumerate(weights):
            volumes.add_(mirrored.narrow(axis, shift, size), alpha=weight)
    return volumes
