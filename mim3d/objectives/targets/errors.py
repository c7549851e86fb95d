"""How far a prediction is from its target, and the mean of that by weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mim3d.foundation.errors import ConfigError


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
