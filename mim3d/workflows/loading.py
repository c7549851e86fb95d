"""Fine-tuned runs as what predicts: whole segmenters and classifiers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import nn

from mim3d.config.reading import read_config
from mim3d.config.verbs import FinetuneConfig
from mim3d.foundation.errors import UserError
from mim3d.inference.classifier import Classifier
from mim3d.inference.segmenter import Segmenter
from mim3d.models.saved import HUB_RUN, is_hub
from mim3d.models.weights import load_whole
from mim3d.training.fabric import choose_device, choose_precision
from mim3d.workflows.networks import classifier_network, network_of, scheme_of
from mim3d.workflows.run_record import (
    classes_of,
    load_preparation,
    rule_of,
    spacings_of,
    targets_of,
)
from mim3d.workflows.run_weights import Which, checkpoint_of, weights_of


def load_segmenter(
    run: str | Path,
    *,
    checkpoint: Which = "last",
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
) -> Segmenter:
    """A fine-tuned run, ready to predict. Needs the run folder alone.

    Args:
        run: the folder `mim3d finetune` wrote.
        checkpoint: which of its checkpoints.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        precision: `auto` is bf16 where the device does it in hardware.

    Raises:
        UserError: no such run or checkpoint, or a run that is no segmenter.
    """
    found = _trained(run, checkpoint)
    config = found.config
    if config.task != "segmentation":
        raise UserError(
            f"`{run}` says one answer for a whole volume (`task {config.task}`) and no label maps",
            remedy="`mim3d predict` writes its answers as a CSV",
            code="no-segmenter",
        )
    classes = classes_of(found.record, run)
    network = network_of(config, classes)
    load_whole(network, weights_of(run, checkpoint).tensors, source=str(run))
    regions = scheme_of(config, classes)
    return replace(
        _model(network, found, run, device, precision),
        classes=classes.ignoring(config.data.ignore_label),
        regions=regions,
        swap_on_flip=config.augmentation.swap_on_flip,
        # Of crops of several sizes training cut all padding away.
        pads=not config.data.crop_sizes,
        spacings_mm=spacings_of(found.record),
    )


def load_classifier(
    run: str | Path,
    *,
    checkpoint: Which = "last",
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
) -> Classifier:
    """A run that was fine-tuned on targets of whole volumes, ready to predict.

    Args:
        run: the folder `mim3d finetune` wrote.
        checkpoint: which of its checkpoints.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        precision: `auto` is bf16 where the device does it in hardware.

    Raises:
        UserError: no such run or checkpoint, or a run that is no classifier.
    """
    found = _trained(run, checkpoint)
    if found.config.task == "segmentation":
        raise UserError(
            f"`{run}` segments, and says no answer for a whole volume",
            remedy="average runs of one task only",
            code="no-classifier",
        )
    table = targets_of(found.record, run)
    network = classifier_network(found.config, table)
    load_whole(network, weights_of(run, checkpoint).tensors, source=str(run))
    return Classifier(_model(network, found, run, device, precision), table)


def task_of(run: str | Path) -> str:
    """The task of a fine-tuned run, by the config's word.

    Raises:
        UserError: no such run.
    """
    return _trained(run, "last").config.task


class _Trained(NamedTuple):
    """A fine-tuned run, or the hub folder of one."""

    config: FinetuneConfig
    record: dict[str, Any]


def _trained(run: str | Path, checkpoint: Which) -> _Trained:
    if not is_hub(run):
        checkpoint_of(run, checkpoint)
    record = load_preparation(run)
    if record["verb"] != "finetune":
        raise UserError(
            f"`{run}` is a pre-training run: it has no decoder and cannot segment",
            remedy=f"`mim3d finetune CONFIG --init {run}` makes a segmenter of it",
            code="no-segmenter",
        )
    config = Path(run) / (HUB_RUN if is_hub(run) else "config.yaml")
    return _Trained(read_config(config, FinetuneConfig), record)


def _model(
    network: nn.Module,
    found: _Trained,
    run: str | Path,
    device: str,
    precision: Literal["auto", "fp32", "bf16"],
) -> Segmenter:
    """A network with its window and how its input is made."""
    config, chosen = found.config, choose_device(device)
    return Segmenter(
        network,
        config.inference.window or config.data.crop_size,
        rule=rule_of(config.data.window_hu, found.record, run),
        channel_names=tuple(found.record["channel_names"]),
        device=chosen,
        precision=choose_precision(precision, chosen),
        flips=config.inference.mirrored,
    )
