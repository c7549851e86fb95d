"""From a volume to its label map, on the grid of the file it was read from.

Rows of logits come out of the sliding window, are laid on the volume's grid, become labels (or
probabilities) and are dropped: no step holds the logits of a whole volume. Its probabilities are
held where they are asked for and where several runs are averaged, as float32, one channel a class
or region.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mim3d.config.inference import InferenceConfig
from mim3d.data.volume import Volume, spacing_of
from mim3d.foundation.errors import UserError
from mim3d.foundation.memory import is_out_of_memory
from mim3d.inference.components import largest_components
from mim3d.inference.forecast import Forecast, Load
from mim3d.inference.outputs import LabelSink, ProbabilitySum, Sink, background_of, most_likely
from mim3d.inference.relief import Relief
from mim3d.inference.seen import seen_volume
from mim3d.inference.segmenter import Segmenter, predicting, segmenter_of, with_mirrors
from mim3d.inference.sliding_window import Predictor, slabs
from mim3d.inference.way_back import WayBack
from mim3d.inference.windows import Box, WindowCount, check_inference, fitted, plan_sweep

Progress = Callable[[int, int], None]
Model = Segmenter | nn.Module | Sequence[Segmenter]
Found = tuple[NDArray[Any], NDArray[np.float32] | None, WindowCount]
"""What `labels_of` gave on the volume's grid, probabilities, windows."""

DEFAULT = InferenceConfig()
NO_WINDOWS = WindowCount(0)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What was predicted for a volume, on its own grid.

    Attributes:
        labels: one channel of label values, in the smallest unsigned type.
        probabilities: one float32 channel a class or region, in their order; None if not asked for.
        windows: how many passed a network, and how many held nothing but air and were skipped.
    """

    labels: Volume
    probabilities: Volume | None = None
    windows: WindowCount = NO_WINDOWS


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
        config: the sliding window; where it names no mirrors, they are the run's.
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
    forecast: Forecast | None = None,
    relief: Relief | None = None,
) -> Prediction:
    """Labels and, where `config.save_probabilities` says so, probabilities of a volume.

    With `config.skip_air` a window without any voxel of the body gives background for certain and
    does not pass the network. A voxel that skipped and other windows cover has the mean of the
    others; one that only skipped windows cover is background. What is body follows from the rule of
    the segmenter; without a rule every window runs.

    Other arguments and errors are those of `predict_volume`.

    Args:
        model: as there.
        volume: as there.
        config: as there.
        progress: as there.
        forecast: told what each pass will take, before its first window.
        relief: how much memory is taken at once, kept from one volume to the next.
    """
    segmenters = _segmenters(model, volume, config)
    config = with_mirrors(segmenters, config)
    check_inference(config)
    relief = relief or Relief(torch.device(segmenters[0].device), config.windows_per_batch)
    by = _by_one if len(segmenters) == 1 else _by_several
    asked = _Asked(volume, config, relief, progress, forecast)
    found, probabilities, windows = by(segmenters, asked)
    labels = _of_indices(segmenters[0], found)
    if config.largest_component:
        labels = largest_components(labels)
    if probabilities is None or not config.save_probabilities:
        return Prediction(volume.with_voxels(labels), windows=windows)
    kept = volume.with_voxels(probabilities)
    return Prediction(volume.with_voxels(labels), kept, windows)


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


@dataclass(frozen=True, eq=False)
class _Asked:
    """What is predicted, and how."""

    volume: Volume
    config: InferenceConfig
    relief: Relief
    progress: Progress | None
    forecast: Forecast | None


def _by_one(segmenters: Sequence[Segmenter], asked: _Asked) -> Found:
    """Labels decided by logits, and probabilities only if asked for."""
    (segmenter,) = segmenters
    one = _Pass(segmenter, asked)
    labels = LabelSink(segmenter, one.way.box, asked.volume.shape, one.sweep.axis)
    if not asked.config.save_probabilities:
        one.run(labels, with_means=False)
        return labels.volume(), None, one.sweep.count
    total = ProbabilitySum(segmenter, asked.volume.shape)
    one.run(labels, total, with_means=True)
    total.close(one.way.box)
    return labels.volume(), total.mean(), one.sweep.count


def _by_several(segmenters: Sequence[Segmenter], asked: _Asked) -> Found:
    """Mean probabilities, and labels decided by them."""
    total = ProbabilitySum(segmenters[0], asked.volume.shape)
    windows = WindowCount(0)
    for segmenter in segmenters:
        one = _Pass(segmenter, asked)
        one.run(total, with_means=True)
        total.close(one.way.box)
        windows += one.sweep.count
    mean = total.mean()
    return most_likely(segmenters[0], mean), mean, windows


class _Pass:
    """One segmenter's way over one volume.

    Args:
        segmenter: the network and what its run knew.
        asked: the volume as read from a file, and the sliding window.

    Attributes:
        sweep: the windows.
        way: from the network's grid to the volume's.
    """

    def __init__(self, segmenter: Segmenter, asked: _Asked) -> None:
        volume, config = asked.volume, asked.config
        seen = seen_volume(volume, segmenter, wants_body=config.skip_air)
        if config.patch == "by_spacing" or (config.patch == "auto" and segmenter.can_follow):
            segmenter = segmenter.at_spacing(spacing_of(seen.affine))
        self.segmenter, self.asked, self.config = segmenter, asked, config
        window = config.window or segmenter.window
        window = window if segmenter.pads else fitted(window, seen.shape)
        self.sweep = plan_sweep(seen.shape, window, config.overlap, seen.body)
        self.seen = replace(seen, body=None)  # the plan was all it was for
        self.way = WayBack(
            seen.affine, seen.shape, volume.affine, volume.shape, device=segmenter.device
        )

    def run(self, *sinks: Sink, with_means: bool) -> None:
        """Hands the logits of all rows within `way.box` to the sinks.

        Args:
            sinks: what takes them.
            with_means: False hands on weighted sums where nothing needs interpolation: which of a
                voxel's logits is the largest, and their signs, are the same.
        """
        axis, asked = self.sweep.axis, self.asked
        keeps_probabilities = with_means
        with predicting(self.segmenter) as predictor:
            with_means = with_means or not self.way.is_straight
            if asked.forecast is not None and self.segmenter.outputs is not None:
                load = Load(
                    self.sweep, len(self.seen.voxels), self.segmenter.outputs,
                    len(self.config.mirrored), with_means, asked.volume.shape, keeps_probabilities,
                )  # fmt: skip
                asked.forecast.tell(predictor, load, asked.relief)
            rows = self._on_own_grid(predictor, with_means)
            if not self.way.is_straight:
                rows = self.way.lay(rows, axis)
            for first, logits in rows:
                place = list(self.way.box)
                start = place[axis].start + first
                place[axis] = slice(start, start + logits.shape[1 + axis])
                for sink in sinks:
                    _put(sink, (place[0], place[1], place[2]), logits)

    def _on_own_grid(self, predictor: Predictor, with_means: bool) -> Iterator[tuple[int, Tensor]]:
        segmenter, seen, relief = self.segmenter, self.seen, self.asked.relief
        background: Tensor | None = None
        for slab in slabs(
            relief.placed(seen.voxels),
            predictor,
            self.config,
            self.sweep,
            spacing_mm=spacing_of(seen.affine),
            swaps=segmenter.swaps,
            as_seen=seen.as_seen,
            with_mass=with_means,
            progress=self.asked.progress,
            relief=relief,
        ):
            if segmenter.outputs not in (None, len(slab.sums)):
                raise UserError(
                    f"the network has {len(slab.sums)} outputs for {segmenter.outputs} classes or "
                    "regions",
                    code="outputs",
                )
            if with_means and self.sweep.skipped and background is None:
                background = background_of(segmenter, slab.sums)
            yield slab.first, slab.mean(background) if with_means else slab.sums


def _put(sink: Sink, place: Box, logits: Tensor) -> None:
    """Hands rows to a sink; by way of the machine's memory if the device has no room left."""
    try:
        sink.put(place, logits)
    except Exception as error:
        if logits.device.type == "cpu" or not is_out_of_memory(error):
            raise
    else:
        return
    sink.put(place, logits.cpu())


def _of_indices(segmenter: Segmenter, indices: NDArray[Any]) -> NDArray[Any]:
    """Label values of what `labels_of` gave."""
    if segmenter.regions is not None:
        return indices  # values already
    if segmenter.classes is not None:
        return segmenter.classes.to_value(indices)
    return indices.astype(np.uint8 if indices.max(initial=0) <= 255 else np.uint16)
