"""What a run folder gives back: its encoder's weights, or the whole segmenter."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from mim3d.config.reading import read_config
from mim3d.config.sections import EncoderConfig
from mim3d.config.verbs import FinetuneConfig
from mim3d.data.classes import ClassTable
from mim3d.data.prepare import VolumeRule
from mim3d.data.regions import RegionScheme, region_scheme
from mim3d.foundation.errors import UserError
from mim3d.foundation.reporting import Reporter
from mim3d.inference.segmenter import Segmenter
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.models.weights import encoder_config, transfer_encoder
from mim3d.training.checkpoints import WEIGHTS, Checkpoints, file_digest, read_weights
from mim3d.training.fabric import choose_device, choose_precision

Which = Literal["last", "best"]
PREPARATION = "preparation.json"
"""What a run keeps of its store."""


def checkpoint_of(run: str | Path, which: Which = "last") -> Path:
    """The folder of a run's checkpoint.

    Raises:
        UserError: there is no run, or it has no such checkpoint.
    """
    folder = Path(run)
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"`{run}` is not a run folder",
            remedy="give the folder that `mim3d pretrain` or `mim3d finetune` wrote",
            code="no-run",
        )
    found = Checkpoints(folder / "checkpoints").find(which)
    if found is None:
        raise UserError(
            f"run `{run}` has no `{which}` checkpoint yet",
            remedy="the command that began it goes on when it is typed again",
            code="no-checkpoint",
        )
    return found


def encoder_of(run: str | Path, which: Which = "last") -> EncoderConfig:
    """The config of a run's encoder, from the header of its weights."""
    _, metadata = read_weights(checkpoint_of(run, which))
    return encoder_config(metadata, source=str(run))


def start_from(encoder: VolumeViT, run: str, which: Which, reporter: Reporter) -> None:
    """Puts a run's encoder into `encoder`, whole or not at all.

    Raises:
        WeightsError: anything does not fit; every key is listed.
    """
    tensors, _ = read_weights(checkpoint_of(run, which))
    report = transfer_encoder(encoder, tensors, source=run)
    left = f"; {len(report.left)} others (decoder, head) start afresh" if report.left else ""
    reporter.say(f"loaded all {len(report.loaded)} encoder tensors of `{run}`{left}")


def load_preparation(run: str | Path) -> dict[str, Any]:
    """What a run keeps of its store."""
    return dict(json.loads((Path(run) / PREPARATION).read_text(encoding="utf-8")))


def classes_of(record: dict[str, Any]) -> ClassTable:
    """The class table of a run's record."""
    return ClassTable.from_json(record["classes"])


def network_of(config: FinetuneConfig, classes: ClassTable) -> UNETR:
    """The network a fine-tuning config describes, freshly initialised.

    Raises:
        UserError: the regions asked for do not fit the classes.
    """
    scheme = scheme_of(config, classes)
    outputs = classes.count if scheme is None else scheme.count
    return UNETR(VolumeViT(config.encoder), outputs, config.decoder)


def scheme_of(config: FinetuneConfig, classes: ClassTable) -> RegionScheme | None:
    """The scheme of overlapping regions, checked against the classes; None for a softmax."""
    if config.objective.regions is None:
        return None
    scheme = region_scheme(config.objective.regions)
    scheme.check_values(classes.values)
    return scheme


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
    folder = checkpoint_of(run, checkpoint)
    record = load_preparation(run)
    if record["verb"] != "finetune":
        raise UserError(
            f"`{run}` is a pre-training run: it has no decoder and cannot segment",
            remedy=f"`mim3d finetune CONFIG --init {run}` makes a segmenter of it",
            code="no-segmenter",
        )
    config = read_config(Path(run) / "config.yaml", FinetuneConfig)
    classes = classes_of(record)
    network = network_of(config, classes)
    network.load_state_dict(read_weights(folder)[0], strict=True)
    chosen = choose_device(device)
    return Segmenter(
        network,
        config.inference.window or config.data.crop_size,
        classes=classes,
        regions=scheme_of(config, classes),
        rule=_rule(config, record),
        channel_names=tuple(record["channel_names"]),
        swap_on_flip=config.augmentation.swap_on_flip,
        device=chosen,
        precision=choose_precision(precision, chosen),
    )


def run_digest(run: str | Path, which: Which = "last") -> str:
    """SHA-256 of the file of weights that a run predicts with."""
    return file_digest(checkpoint_of(run, which) / WEIGHTS)


def _rule(config: FinetuneConfig, record: dict[str, Any]) -> VolumeRule:
    """What training did to a volume: the store's rule, with the run's own window if it has one."""
    rule = VolumeRule.from_json(record["preparation"])
    modalities = tuple(record["modalities"])
    if config.data.window_hu is None:
        return replace(rule, modalities=modalities)
    return replace(rule, modalities=modalities, window_hu=config.data.window_hu)
