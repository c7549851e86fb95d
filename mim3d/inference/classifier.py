"""Answers for whole volumes: the mean of a network's outputs over the windows, and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mim3d.config.inference import InferenceConfig
from mim3d.data.asked_target import AskedTarget
from mim3d.data.volume import Volume, spacing_of
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.inference.seen import Seen, seen_volume
from mim3d.inference.segmenter import Segmenter, predicting, with_mirrors
from mim3d.inference.sliding_window import (
    Predictor,
    filled_up,
    mirror_combinations,
    window_crops,
)
from mim3d.inference.windows import check_inference, in_parts, plan_sweep
from mim3d.models.classifier import VolumeClassifier
from mim3d.tokens.patches import without_air


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained network of whole volumes with all that its run knew.

    Attributes:
        model: the network, its window and how its input is made; without label values.
        table: what its outputs stand for.
    """

    model: Segmenter
    table: tuple[AskedTarget, ...]

    def for_channels(self, names: Sequence[str]) -> Classifier:
        """The same for volumes of these channels; raises as `Segmenter.for_channels`."""
        return replace(self, model=self.model.for_channels(names))


@dataclass(frozen=True)
class Answer:
    """What is said of one target of one volume.

    Attributes:
        name: of the target.
        value: the number, or the most probable class (of equals the lowest).
        classes: values that it is one of; None for a number.
        probabilities: one a class, which sum to 1; empty for a number.
    """

    name: str
    value: float
    classes: tuple[float, ...] | None = None
    probabilities: tuple[float, ...] = ()


def classify(
    classifiers: Sequence[Classifier], volume: Volume, config: InferenceConfig
) -> tuple[Answer, ...]:
    """What the classifiers say of a volume; of several the mean probability, or the mean number.

    Args:
        classifiers: at least one, of the same targets.
        volume: as read from a file.
        config: windows, mirrors (those of the runs where it names none), and whether windows of
            nothing but air are left out.

    Raises:
        ConfigError: windows that cannot be slid, or patches by spacing.
        UserError: other channels than training had, or runs of different targets.
        VolumeError: there is no body in the volume.
    """
    config = with_mirrors([one.model for one in classifiers], config)
    check_inference(config)
    if config.patch == "by_spacing":
        raise ConfigError(
            "`inference.patch by_spacing` is for segmentation alone",
            remedy="leave `inference.patch` out",
            code="patch-by-spacing",
        )
    first = classifiers[0].table
    if any(meaning(one.table) != meaning(first) for one in classifiers):
        raise UserError(
            "the runs predict different targets, their answers cannot be averaged",
            remedy="name runs that were trained on the same targets",
            code="runs-differ",
        )
    found = []
    for one in classifiers:
        one.model.check_channels(len(volume.voxels))
        patch = patch_of_body(one.model.network)
        seen = seen_volume(volume, one.model, wants_body=config.skip_air or patch is not None)
        with predicting(one.model) as predictor:
            outputs = mean_outputs(
                seen,
                predictor,
                config,
                config.window or one.model.window,
                one.model.device,
                patch=patch,
            )
        found.append(numbers(one.table, outputs[None]))
    return answers(first, [np.mean(parts, axis=0) for parts in zip(*found, strict=True)])[0]


def patch_of_body(network: nn.Module) -> tuple[int, int, int] | None:
    """The patch of a network that leaves those without body out; None of one that sees all."""
    if isinstance(network, VolumeClassifier) and network.drop_air:
        return network.encoder.patch
    return None


def meaning(table: Sequence[AskedTarget]) -> list[tuple[str, tuple[float, ...] | None]]:
    """What runs whose answers are averaged have in common."""
    return [(one.name, one.classes) for one in table]


def mean_outputs(
    seen: Seen,
    predictor: Predictor,
    config: InferenceConfig,
    window: tuple[int, int, int],
    device: torch.device | str,
    *,
    patch: tuple[int, int, int] | None = None,
) -> Tensor:
    """The mean of the outputs, `k` float32, over windows and mirrors.

    Args:
        seen: the volume as the network sees it; windows without body are left out where it is
            known, unless none has any.
        predictor: from windows to outputs `b k`.
        config: overlap, mirrors, windows a batch; its `window` is not read.
        window: voxels of a window; a smaller volume is filled up to it.
        device: where windows are predicted.
        patch: of a network that leaves patches without body out; None is one that sees all.
    """
    sweep = plan_sweep(seen.shape, window, config.overlap, seen.body if config.skip_air else None)
    voxels, valid = filled_up(seen.voxels, sweep)
    body = None
    if patch is not None and seen.body is not None:
        body, _ = filled_up(torch.from_numpy(seen.body), sweep)
    device = torch.device(device)
    spacing = torch.tensor(spacing_of(seen.affine), dtype=torch.float32, device=device)
    total: Tensor | None = None
    mirrors = list(mirror_combinations(config.mirrored))
    for starts in in_parts(sweep.starts, config.windows_per_batch):
        crops, known = window_crops(voxels, valid, sweep, starts, seen.as_seen, device)
        holds = (
            None if body is None else torch.stack([body[sweep.box(at)] for at in starts]).to(device)
        )
        for axes in mirrors:
            turned = [-3 + "xyz".index(axis) for axis in axes]
            shown = crops.flip(turned)
            inside = None if known is None else known.flip(turned)
            if holds is not None and patch is not None:
                inside = without_air(inside, holds.flip(turned), patch)
            outputs = predictor(shown, spacing.expand(len(starts), 3), inside).float().sum(dim=0)
            total = outputs if total is None else total + outputs
    assert total is not None  # there is always one window
    return total / (len(sweep.starts) * len(mirrors))


def numbers(table: Sequence[AskedTarget], outputs: Tensor) -> list[NDArray[np.float64]]:
    """What outputs mean: of each target probabilities `b k`, or numbers `b 1` in their own unit.

    Args:
        table: the targets.
        outputs: `b k`, of all targets.
    """
    parts = torch.split(outputs.double().cpu(), [one.outputs for one in table], dim=1)
    return [_number(one, part) for one, part in zip(table, parts, strict=True)]


def _number(asked: AskedTarget, outputs: Tensor) -> NDArray[np.float64]:
    if asked.classes is None:
        return np.asarray(outputs.numpy() * asked.deviation + asked.mean)
    if asked.is_sigmoid:
        return np.asarray(torch.cat([(-outputs).sigmoid(), outputs.sigmoid()], dim=1).numpy())
    return np.asarray(outputs.softmax(dim=1).numpy())


def answers(
    table: Sequence[AskedTarget], found: Sequence[NDArray[np.float64]]
) -> list[tuple[Answer, ...]]:
    """Of each volume, what `numbers` of it say."""
    return [
        tuple(_answer(one, part[row]) for one, part in zip(table, found, strict=True))
        for row in range(len(found[0]))
    ]


def _answer(asked: AskedTarget, row: NDArray[np.float64]) -> Answer:
    if asked.classes is None:
        return Answer(asked.name, float(row[0]))
    best = asked.classes[int(row.argmax())]
    return Answer(asked.name, best, asked.classes, tuple(row.tolist()))
