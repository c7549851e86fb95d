"""Losses of answers that know next to nothing, to read a run's loss by."""

from __future__ import annotations

import torch
from torch import Tensor

from mim3d.objectives.targets import voxel_error, weighted_mean


def mean_predictor(truth: Tensor, weights: Tensor | None, kind: str) -> Tensor:
    """The loss of answering with the target's own mean everywhere, a scalar.

    A run whose loss stays there has learnt nothing but that mean.

    Args:
        truth: `b q p`.
        weights: broadcast to it, or None.
        kind: the error, as in `voxel_error`.
    """
    mean = weighted_mean(truth, weights)
    return weighted_mean(voxel_error(mean.expand_as(truth), truth, kind), weights).detach()


def number_mean_predictor(truth: Tensor, weights: Tensor | None, kind: str) -> Tensor:
    """As `mean_predictor`, where each number of a token is answered with its own mean, a scalar.

    It is for targets whose numbers are not alike: coefficients, bins, features.

    Args:
        truth: `b q t`.
        weights: broadcast to it, or None.
        kind: the error, as in `voxel_error`.
    """
    each = torch.ones_like(truth) if weights is None else weights.expand_as(truth)
    total = each.sum(dim=(0, 1), keepdim=True).clamp_min(torch.finfo(each.dtype).tiny)
    mean = (truth * each).sum(dim=(0, 1), keepdim=True) / total
    return weighted_mean(voxel_error(mean.expand_as(truth), truth, kind), weights).detach()


def patch_mean_predictor(truth: Tensor, weights: Tensor | None, kind: str) -> Tensor:
    """The loss of answering each patch with its own mean, a scalar: all shape is left out.

    Args:
        truth: `b q p`.
        weights: broadcast to it, or None.
        kind: the error, as in `voxel_error`.
    """
    mean = _patch_means(truth, weights).expand_as(truth)
    return weighted_mean(voxel_error(mean, truth, kind), weights).detach()


def shape_loss(predicted: Tensor, truth: Tensor, weights: Tensor | None, kind: str) -> Tensor:
    """The loss there would be if each patch's mean were told to the network, a scalar.

    A prediction that is flat within every patch comes to `patch_mean_predictor`; below that is who
    knows of shapes. The loss itself says less: it may lie above that level for want of the means,
    which nobody can know of hidden patches.

    Args:
        predicted: `b q p`.
        truth: the same.
        weights: broadcast to it, or None.
        kind: the error, as in `voxel_error`.
    """
    predicted = predicted.detach().float()
    told = predicted + (_patch_means(truth, weights) - _patch_means(predicted, weights))
    return weighted_mean(voxel_error(told, truth, kind), weights)


def _patch_means(values: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of each patch by weight, `b q p -> b q 1`; 0 where no weight is left."""
    each = torch.ones_like(values) if weights is None else weights.expand_as(values)
    total = each.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(each.dtype).tiny)
    return (values * each).sum(dim=-1, keepdim=True) / total
