"""The start of a classifier's last map: a linear probe of what the initial encoder gives.

Linear probe first, then fine-tuning (Kumar et al., arXiv:2202.10054), as `objectives.linear_start`
does for segmenters: the probe is convex and solved to its end, where steps of a gradient take
hundreds of them to find what the features already tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mim3d.data.asked_target import AskedTarget
from mim3d.data.batch import CropBatch
from mim3d.evaluation.volume_probes import LinearProbe, ProbedVolumes, Standard, linear_probe
from mim3d.models.classifier import VolumeHead
from mim3d.objectives.classification import Classification


@dataclass(frozen=True)
class HeadStart:
    """What was fitted.

    Args:
        crops: how many the map was fitted to.
        strengths: of the penalties that were chosen, by target.
    """

    crops: int
    strengths: tuple[float, ...]


@torch.no_grad()
def start_head(
    task: Classification, batches: Iterable[CropBatch], subject: Callable[[str], str]
) -> HeadStart:
    """Fits the last map to crops, and with them what its input is standardised by, if it is.

    Logistic regression of classes, ridge regression of numbers, with the penalty that subjects who
    were left out like best (`evaluation.volume_probes`). Weights of classes and smoothed labels are
    the training's matter and play no part.

    Args:
        task: as built.
        batches: crops with targets.
        subject: whose a case is.
    """
    was_training = task.training
    task.eval()
    device = task.decoder.linear.weight.device
    parts, answers, subjects = [], [], []
    for batch in batches:
        there = batch.to(device)
        parts.append(task.features(there).double().cpu())
        assert there.targets is not None  # the task's needs ask for them
        answers.append(there.targets.cpu())
        subjects += [subject(case_id) for case_id in batch.case_ids]
    task.train(was_training)
    features, known = torch.cat(parts), torch.cat(answers)
    number = {name: place for place, name in enumerate(sorted(set(subjects)))}
    whose = torch.tensor([number[name] for name in subjects])

    weights, biases, strengths = [], [], []
    for asked, column in zip(task.table, known.unbind(dim=1), strict=True):
        probe = linear_probe(ProbedVolumes(features, *_asked(asked, column, whose)))
        weight, bias = _outputs(asked, probe)
        weights.append(weight)
        biases.append(bias)
        strengths.append(probe.strength)
    _set(task.decoder, Standard.of(features), torch.cat(weights, dim=1), torch.cat(biases))
    return HeadStart(len(features), tuple(strengths))


def _set(head: VolumeHead, standard: Standard, weight: Tensor, bias: Tensor) -> None:
    """The map of standardised features `d k` becomes the head's, whichever it is given."""
    if head.standardises:
        head.mean.copy_(standard.mean)
        head.deviation.copy_(standard.deviation)
    else:
        weight = weight / standard.deviation[:, None]
        bias = bias - standard.mean @ weight
    head.linear.weight.copy_(weight.T)
    head.linear.bias.copy_(bias)


def _asked(
    asked: AskedTarget, column: Tensor, subjects: Tensor
) -> tuple[Tensor, Tensor, int | None]:
    """Answers as probes take them, places of classes or numbers in deviations, and their owners."""
    if asked.classes is None:
        return (column.double() - asked.mean) / asked.deviation, subjects, None
    return column.long(), subjects, len(asked.classes)


def _outputs(asked: AskedTarget, probe: LinearProbe) -> tuple[Tensor, Tensor]:
    """The probe's map `d k` and `k`; of a sigmoid the one output that tells class 1 from 0."""
    if not asked.is_sigmoid:
        return probe.weight, probe.bias
    return probe.weight[:, 1:] - probe.weight[:, :1], probe.bias[1:] - probe.bias[:1]
