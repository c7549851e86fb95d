"""From a volume to its label map, on the grid of the file it was read from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mim3d.config.sections import InferenceConfig
from mim3d.data.prepare.volume import prepare_volume
from mim3d.data.resample import resample_to
from mim3d.data.volume import Volume, spacing_of
from mim3d.foundation.errors import UserError
from mim3d.inference.components import largest_components
from mim3d.inference.segmenter import Segmenter, predicting, segmenter_of
from mim3d.inference.sliding_window import check_inference, slide

Progress = Callable[[int, int], None]
Model = Segmenter | nn.Module | Sequence[Segmenter]

DEFAULT = InferenceConfig()


@dataclass(frozen=True, eq=False)
class Prediction:
    """What was predicted for a volume, on its own grid.

    Attributes:
        labels: one channel of label values, in the smallest unsigned type.
        probabilities: one float32 channel a class or region, in their order; None if not asked for.
    """

    labels: Volume
    probabilities: Volume | None = None


@dataclass(frozen=True, eq=False)
class _Logits:
    """Logits on the grid that the network saw."""

    values: Tensor
    affine: NDArray[np.float64]


def predict_volume(
    model: Model,
    volume: Volume,
    config: InferenceConfig = DEFAULT,
    *,
    progress: Progress | None = None,
) -> Volume:
    """The label map of a volume, on the volume's own grid.

    Args:
        model: a run's `Segmenter`; several, whose probabilities are averaged; or any module from
            `b c x y z` to logits `b k x y z`, which sees the voxels as they are and whose labels
            are the indices of its outputs.
        volume: as `read_volume` gives it.
        config: the sliding window.
        progress: told how many windows of how many are done.

    Returns:
        The same grid, affine and origin with one channel of label values, in the smallest unsigned
        type that holds them: `write_label(path, result.voxels[0], volume)` writes it.

    Raises:
        UserError: other channels than in training, or runs that do not fit together.
        VolumeError: there is no body in the volume.
        ConfigError: a sliding window that cannot be slid.
    """
    config = replace(config, save_probabilities=False)
    return predict(model, volume, config, progress=progress).labels


def predict_probabilities(
    model: Model,
    volume: Volume,
    config: InferenceConfig = DEFAULT,
    *,
    progress: Progress | None = None,
) -> Volume:
    """The probabilities of a volume's classes or regions, on the volume's own grid.

    Arguments and errors are those of `predict_volume`.

    Returns:
        float32, one channel a class (their sum is 1) or region, in their order.
    """
    config = replace(config, save_probabilities=True)
    probabilities = predict(model, volume, config, progress=progress).probabilities
    assert probabilities is not None  # the config asks for them
    return probabilities


def predict(
    model: Model,
    volume: Volume,
    config: InferenceConfig = DEFAULT,
    *,
    progress: Progress | None = None,
) -> Prediction:
    """Labels and, where `config.save_probabilities` says so, probabilities of a volume.

    Arguments and errors are those of `predict_volume`.
    """
    check_inference(config)
    segmenters = _segmenters(model, volume, config)
    first = segmenters[0]
    probabilities: NDArray[np.float32] | None = None
    if len(segmenters) == 1:
        logits = _slid(first, volume, config, progress)
        labels = _labels(first, logits, volume)
        if config.save_probabilities:
            probabilities = _probabilities(first, logits, volume)
    else:
        probabilities = _mean_probabilities(segmenters, volume, config, progress)
        labels = _most_likely(first, probabilities)
    if config.largest_component:
        labels = largest_components(labels)
    if probabilities is None or not config.save_probabilities:
        return Prediction(volume.with_voxels(labels))
    return Prediction(volume.with_voxels(labels), volume.with_voxels(probabilities))


def _segmenters(model: Model, volume: Volume, config: InferenceConfig) -> tuple[Segmenter, ...]:
    if isinstance(model, Segmenter):
        model = (model,)
    elif isinstance(model, nn.Module):
        model = (segmenter_of(model, volume.shape, config.window),)
    if not model:
        raise UserError("there is no run to predict with", code="no-run")
    for segmenter in model:
        segmenter.check_channels(volume.channels)
        same_classes = _meaning(segmenter) == _meaning(model[0])
        if not same_classes:
            raise UserError(
                "the runs predict different classes, their probabilities cannot be averaged",
                remedy="name runs that were trained on the same labels",
                code="runs-differ",
            )
    return tuple(model)


def _meaning(segmenter: Segmenter) -> Any:
    if segmenter.regions is not None:
        return segmenter.regions.regions
    return None if segmenter.classes is None else segmenter.classes.values


def _slid(
    segmenter: Segmenter, volume: Volume, config: InferenceConfig, progress: Progress | None
) -> _Logits:
    """Logits of a volume, prepared as training's were, on the grid of that preparation."""
    if segmenter.rule is None:
        voxels, affine = np.ascontiguousarray(volume.voxels, np.float32), volume.affine
    else:
        prepared = prepare_volume(volume, segmenter.rule)
        voxels, affine = prepared.normalised, prepared.affine
    with predicting(segmenter) as predictor:
        values = slide(
            torch.from_numpy(voxels).to(segmenter.device),
            predictor,
            config,
            window=config.window or segmenter.window,
            spacing_mm=spacing_of(affine),
            swaps=segmenter.swaps,
            progress=progress,
        )
    if segmenter.outputs not in (None, len(values)):
        raise UserError(
            f"the network has {len(values)} outputs for {segmenter.outputs} classes or regions",
            code="outputs",
        )
    return _Logits(values, affine)


def _mean_probabilities(
    segmenters: Sequence[Segmenter],
    volume: Volume,
    config: InferenceConfig,
    progress: Progress | None,
) -> NDArray[np.float32]:
    total: NDArray[np.float32] | None = None
    for segmenter in segmenters:
        one = _probabilities(segmenter, _slid(segmenter, volume, config, progress), volume)
        total = one if total is None else np.add(total, one, out=total)
    assert total is not None  # there is always one segmenter
    return np.divide(total, np.float32(len(segmenters)), out=total)


def _labels(segmenter: Segmenter, logits: _Logits, volume: Volume) -> NDArray[Any]:
    """Label values on the volume's grid, one class at a time: no full set of logits is held."""
    count = len(logits.values)
    if _is_sigmoid(segmenter, logits):
        shown = np.stack([_on_grid(segmenter, logits, volume, place) > 0 for place in range(count)])
        return _of_sigmoid(segmenter, shown)
    if _is_same_grid(logits, volume):
        return _of_indices(segmenter, logits.values.argmax(dim=0).cpu().numpy())
    best = _on_grid(segmenter, logits, volume, 0)
    indices = np.zeros(volume.shape, np.uint8 if count <= 256 else np.uint16)
    for place in range(1, count):
        rival = _on_grid(segmenter, logits, volume, place)
        wins = rival > best
        indices[wins] = place
        best[wins] = rival[wins]
    return _of_indices(segmenter, indices)


def _probabilities(segmenter: Segmenter, logits: _Logits, volume: Volume) -> NDArray[np.float32]:
    count = len(logits.values)
    layers = torch.from_numpy(
        np.stack([_on_grid(segmenter, logits, volume, place) for place in range(count)])
    )
    if _is_sigmoid(segmenter, logits):
        return layers.sigmoid_().numpy()
    return layers.softmax(dim=0).numpy()


def _most_likely(segmenter: Segmenter, probabilities: NDArray[np.float32]) -> NDArray[Any]:
    if segmenter.regions is not None or len(probabilities) == 1:
        return _of_sigmoid(segmenter, probabilities > 0.5)
    return _of_indices(segmenter, probabilities.argmax(axis=0))


def _of_sigmoid(segmenter: Segmenter, shown: NDArray[np.bool_]) -> NDArray[Any]:
    if segmenter.regions is not None:
        values: NDArray[Any] = segmenter.regions.to_values(shown)
        return values
    return _of_indices(segmenter, shown[0])


def _of_indices(segmenter: Segmenter, indices: NDArray[Any]) -> NDArray[Any]:
    if segmenter.classes is not None:
        return segmenter.classes.to_value(indices)
    return indices.astype(np.uint8 if indices.max(initial=0) <= 255 else np.uint16)


def _on_grid(
    segmenter: Segmenter, logits: _Logits, volume: Volume, place: int
) -> NDArray[np.float32]:
    """One output on the volume's grid, `x y z`; what was cropped away is background for certain."""
    layer = logits.values[place : place + 1].cpu().numpy()
    if _is_same_grid(logits, volume):
        same: NDArray[np.float32] = layer[0].copy()
        return same
    is_background = place == 0 and not _is_sigmoid(segmenter, logits)
    outside = 0.0 if is_background else -np.inf
    there = resample_to(layer, logits.affine, volume.affine, volume.shape, outside=outside)
    back: NDArray[np.float32] = there[0]
    return back


def _is_sigmoid(segmenter: Segmenter, logits: _Logits) -> bool:
    return segmenter.regions is not None or len(logits.values) == 1


def _is_same_grid(logits: _Logits, volume: Volume) -> bool:
    same_shape = tuple(logits.values.shape[1:]) == volume.shape
    return same_shape and np.allclose(logits.affine, volume.affine, rtol=0, atol=1e-6)
