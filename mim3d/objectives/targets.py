"""What masked tokens are compared with, and how."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mim3d.foundation.errors import ConfigError

EPSILON = 1e-6
"""Added to a patch's variance (He et al., arXiv:2111.06377, and SelfMedMAE)."""


@dataclass(frozen=True)
class PatchTarget:
    """Patches to predict, and the way from a prediction back to voxels.

    Args:
        values: `b m p`.
        mean: `b m 1`, what was taken off, or None.
        deviation: `b m 1`, what was divided by, or None.
    """

    values: Tensor
    mean: Tensor | None = None
    deviation: Tensor | None = None

    def to_voxels(self, predicted: Tensor) -> Tensor:
        """Predicted patches `b m p` in the voxels' own intensities."""
        if self.mean is None or self.deviation is None:
            return predicted
        return predicted * self.deviation + self.mean


def patch_target(patches: Tensor, kind: str, valid: Tensor | None = None) -> PatchTarget:
    """The target of every patch.

    Args:
        patches: `b m p`.
        kind: `raw`, or `normalised`: each patch to mean 0 and deviation 1 over all its voxels and
            channels together, biased variance, as SelfMedMAE.
        valid: `b m p` bool; statistics leave padding out. None is all valid.

    Raises:
        ConfigError: another kind.
    """
    if kind == "raw":
        return PatchTarget(patches)
    if kind != "normalised":
        raise ConfigError(f"`objective.target {kind}` is not one of raw, normalised")
    weight = torch.ones_like(patches) if valid is None else valid.to(patches.dtype)
    total = weight.sum(dim=-1, keepdim=True).clamp_min(1)
    mean = (patches * weight).sum(dim=-1, keepdim=True) / total
    variance = ((patches - mean).square() * weight).sum(dim=-1, keepdim=True) / total
    deviation = (variance + EPSILON).sqrt()
    return PatchTarget((patches - mean) / deviation, mean, deviation)


def voxel_error(predicted: Tensor, target: Tensor, kind: str) -> Tensor:
    """The error of every voxel, of the same shape, in float32.

    Args:
        predicted: any shape.
        target: the same.
        kind: `l1`, `l2` or `smooth_l1` (quadratic below 1).

    Raises:
        ConfigError: another kind.
    """
    predicted, target = predicted.float(), target.float()
    match kind:
        case "l1":
            return F.l1_loss(predicted, target, reduction="none")
        case "l2":
            return F.mse_loss(predicted, target, reduction="none")
        case "smooth_l1":
            return F.smooth_l1_loss(predicted, target, reduction="none")
    raise ConfigError(f"`objective.loss {kind}` is not one of l1, l2, smooth_l1")


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of values by weight, a scalar; 0 where no weight is left.

    Args:
        values: any shape.
        weights: broadcast to it, not negative; none is the plain mean.
    """
    if weights is None:
        return values.mean()
    weights = weights.expand_as(values)
    return (values * weights).sum() / weights.sum().clamp_min(torch.finfo(values.dtype).tiny)
