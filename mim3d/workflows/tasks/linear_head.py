"""The start of a classifier's last map: a linear probe of what the initial encoder gives.

Linear probe first, then fine-tuning (Kumar et al., arXiv:2202.10054), as `objectives.linear_start`
does for segmenters: the probe is convex and solved to its end, where steps of a gradient take
hundreds of them to find what the features already tell.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mim3d.data.asked_target import AskedTarget
from mim3d.evaluation.volume_probes import LinearProbe, ProbedVolumes, Standard, linear_probe
from mim3d.models.classifier import SMALLEST_VARIANCE, VolumeHead
from mim3d.objectives.classification import Classification

STARTED = 1_000
"""Updates that the moments of a start count as: batches change them slowly from the first on."""


def start_head(
    task: Classification,
    features: Tensor,
    truths: Sequence[NDArray[np.float64]],
    subjects: Sequence[str],
) -> tuple[float, ...]:
    """Fits the last map to volumes, and with them what its input is standardised by, if it is.

    Logistic regression of classes, ridge regression of numbers, with the penalty that subjects who
    were left out like best (`evaluation.volume_probes`). Weights of classes and smoothed labels are
    the training's matter and play no part.

    Args:
        task: as built.
        features: `n d`, what is pooled of the volumes.
        truths: of each target `n` values.
        subjects: `n`, whose a volume is.

    Returns:
        The penalty of each target.
    """
    features = features.double().cpu()
    _, places = np.unique(subjects, return_inverse=True)
    whose = torch.from_numpy(places)
    maps, strengths = [], []
    for asked, truth in zip(task.table, truths, strict=True):
        probe = linear_probe(_probed(asked, features, truth, whose))
        maps.append(_outputs(asked, probe))
        strengths.append(probe.strength)
    weights, biases = zip(*maps, strict=True)
    _set(task.decoder, Standard.of(features), torch.cat(weights, dim=1), torch.cat(biases))
    return tuple(strengths)


@torch.no_grad()
def _set(head: VolumeHead, standard: Standard, weight: Tensor, bias: Tensor) -> None:
    """The map of standardised features `d k` becomes the head's, whichever it is given."""
    if head.standardises:
        # Training never divides by less, whatever hardly differs between volumes.
        deviation = standard.deviation.clamp_min(SMALLEST_VARIANCE**0.5)
        weight = weight * (deviation / standard.deviation)[:, None]
        head.mean.copy_(standard.mean)
        head.deviation.copy_(deviation)
        head.updates.fill_(STARTED)
    else:
        weight = weight / standard.deviation[:, None]
        bias = bias - standard.mean @ weight
    head.linear.weight.copy_(weight.T)
    head.linear.bias.copy_(bias)


def _probed(
    asked: AskedTarget, features: Tensor, truth: NDArray[np.float64], subjects: Tensor
) -> ProbedVolumes:
    """Volumes with their answers as probes take them: places of classes, or deviations."""
    if asked.classes is None:
        numbers = torch.from_numpy((truth - asked.mean) / asked.deviation)
        return ProbedVolumes(features, numbers, subjects)
    places = torch.from_numpy(asked.places(truth))
    return ProbedVolumes(features, places, subjects, len(asked.classes))


def _outputs(asked: AskedTarget, probe: LinearProbe) -> tuple[Tensor, Tensor]:
    """The probe's map `d k` and `k`; of a sigmoid the one output that tells class 1 from 0."""
    if not asked.is_sigmoid:
        return probe.weight, probe.bias
    return probe.weight[:, 1:] - probe.weight[:, :1], probe.bias[1:] - probe.bias[:1]
