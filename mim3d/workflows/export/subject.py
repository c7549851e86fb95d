"""The run that is exported: its network, and what everyone who uses it must know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mim3d.config.data import Triple
from mim3d.config.export import ExportConfig
from mim3d.config.reading import read_config
from mim3d.config.verbs import FinetuneConfig, PretrainConfig
from mim3d.data.asked_target import AskedTarget
from mim3d.data.classes import ClassTable
from mim3d.foundation.errors import ConfigError
from mim3d.models.classifier import VolumeClassifier
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.models.weights import Weights, encoder_config, load_whole, transfer_encoder
from mim3d.training.checkpoints import weights_digest
from mim3d.workflows.networks import classifier_network, network_of, scheme_of
from mim3d.workflows.run_record import classes_of, load_preparation, targets_of
from mim3d.workflows.run_weights import checkpoint_of, weights_of


@dataclass(frozen=True, eq=False)
class Subject:
    """A run and its network, on the CPU and in eval mode.

    Attributes:
        run: its folder.
        step: of the checkpoint.
        config: resolved, of the run.
        record: what it keeps of its store.
        weights: as they stand in the checkpoint.
        encoder: with those weights.
        network: the whole segmenter or classifier; None for a run of pre-training.
        classes: of a segmenter.
        targets: of a classifier.
    """

    run: Path
    step: int
    config: PretrainConfig | FinetuneConfig
    record: dict[str, Any]
    weights: Weights
    encoder: VolumeViT
    network: UNETR | VolumeClassifier | None = None
    classes: ClassTable | None = None
    targets: tuple[AskedTarget, ...] = ()

    @property
    def task(self) -> str:
        """`encoding`, or that of its fine-tuning."""
        is_tuned = isinstance(self.config, FinetuneConfig)
        return self.config.task if is_tuned else "encoding"  # type: ignore[union-attr]

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the channels of the answers are called."""
        if self.classes is not None:
            assert isinstance(self.config, FinetuneConfig)
            scheme = scheme_of(self.config, self.classes)
            return self.classes.names if scheme is None else scheme.names
        named = []
        for target in self.targets:
            values = target.classes or ()
            many = target.outputs > 1
            named += [f"{target.name} {value:g}" for value in values] if many else [target.name]
        return tuple(named)

    def part(self, config: ExportConfig) -> nn.Module:
        """The module that was asked for: the whole network or its encoder.

        Raises:
            ConfigError: the whole network of a run of pre-training.
        """
        if config.graph.part == "network" and self.network is None:
            raise ConfigError(
                f"`{self.run}` is a run of pre-training and has no network but its encoder",
                remedy="take `--graph.part encoder`, or the run of `mim3d finetune`",
                code="part",
            )
        if config.graph.part == "encoder" or self.network is None:
            return self.encoder
        return self.network

    def size(self, config: ExportConfig) -> Triple:
        """Voxels of the crop that a program is made with, whole patches.

        Raises:
            ConfigError: those that were asked for are none.
        """
        patch, asked = self.encoder.patch, config.graph.size
        if asked is not None:
            check_whole(asked, patch, "graph.size")
            return asked
        window = getattr(getattr(self.config, "inference", None), "window", None)
        own = window or self.config.data.crop_size
        x, y, z = (-(-side // edge) * edge for side, edge in zip(own, patch, strict=True))
        return x, y, z

    @property
    def spacing_mm(self) -> Tensor | None:
        """`3`, the spacing that the encoder takes where nobody says one."""
        default = self.encoder.config.default_spacing_mm
        return None if default is None else torch.tensor(default)

    def facts(self) -> dict[str, Any]:
        """What a program of its own must be given with, as JSON."""
        rule = self.record["preparation"]
        names = ("modalities", "window_hu", "clip_percentiles", "intensity_range", "spacing_mm")
        window = self.config.data.window_hu
        return {
            "made_by": "mim3d",
            "task": self.task,
            "step": self.step,
            "weights_digest": weights_digest(self.weights.tensors),
            "channels": list(self.record["channel_names"]),
            "outputs": list(self.outputs),
            "classes": None if self.classes is None else self.classes.as_json(),
            "targets": [target.as_json() for target in self.targets],
            "patch": list(self.encoder.patch),
            "crop_size": list(self.config.data.crop_size),
            "default_spacing_mm": self.encoder.config.default_spacing_mm,
            "orientation": "RAS+, axes x y z",
            "preparation": {name: rule.get(name) for name in names}
            | ({} if window is None else {"window_hu": list(window)}),
        }


def load_subject(run: str | Path, config: ExportConfig) -> Subject:
    """A run with its network.

    Raises:
        UserError: there is no such run or checkpoint, or it is damaged.
    """
    folder = checkpoint_of(run, config.checkpoint)
    weights, record = weights_of(run, config.checkpoint), load_preparation(run)
    path, step = Path(run), int(folder.name)
    if record["verb"] != "finetune":
        resolved = read_config(path / "config.yaml", PretrainConfig)
        encoder = VolumeViT(encoder_config(weights.metadata, source=str(run)))
        transfer_encoder(encoder, weights.tensors, source=str(run))
        return Subject(path, step, resolved, record, weights, encoder.eval())
    tuned = read_config(path / "config.yaml", FinetuneConfig)
    network: UNETR | VolumeClassifier
    classes: ClassTable | None = None
    targets: tuple[AskedTarget, ...] = ()
    if tuned.task == "segmentation":
        classes = classes_of(record, run)
        network = network_of(tuned, classes)
    else:
        targets = targets_of(record, run)
        network = classifier_network(tuned, targets)
    load_whole(network, weights.tensors, source=str(run))
    network.eval()
    return Subject(
        path, step, tuned, record, weights, network.encoder, network, classes, targets
    )  # fmt: skip


def check_whole(size: Triple, patch: Triple, name: str) -> None:
    """Refuses a size that is no whole number of patches.

    Raises:
        ConfigError: as said.
    """
    if all(side > 0 and side % edge == 0 for side, edge in zip(size, patch, strict=True)):
        return
    typed, edges = (",".join(map(str, values)) for values in (size, patch))
    raise ConfigError(
        f"`{name}` is {typed}, expected whole patches of {edges} voxels",
        remedy="take multiples of the patch; a program that is exported pads nothing",
        code="size",
    )
