"""Small runs to export, written without training: what a run's folder must hold and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mim3d.config.data import DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import GuideConfig, PretextConfig
from mim3d.config.task import DecoderConfig
from mim3d.config.verbs import FinetuneConfig, PretrainConfig
from mim3d.config.writing import to_mapping
from mim3d.data.asked_target import AskedTarget
from mim3d.data.classes import ClassTable
from mim3d.foundation.randomness import generator
from mim3d.models.vit import VolumeViT
from mim3d.models.weights import encoder_metadata
from mim3d.training.checkpoints import Saved
from mim3d.training.run import Run
from mim3d.workflows.networks import classifier_network, network_of
from mim3d.workflows.run_record import PREPARATION, RECORD_FORMAT, TARGETS

ENCODER = EncoderConfig(width=24, depth=2, heads=2, patch=(8, 4, 4), channels=1,
                        default_spacing_mm=(1.0, 1.5, 2.0))  # fmt: skip
DATA = DataConfig(store="/home/somebody/secret/store", crop_size=(16, 12, 8))
PRETEXT = PretextConfig(guide=GuideConfig(by="prior", priors="/home/somebody/secret/weights"))
DECODER = DecoderConfig(name="light", feature_size=4)
CLASSES = ClassTable((0, 1, 5), ("background", "left", "right"), ((0, 0, 0), (1, 2, 3), (9, 8, 7)))
STORED = {"shape": {key: [20, 30, 11] for key in ("min", "median", "max")},
          "spacing_mm": {key: [1.0, 1.5, 2.0] for key in ("min", "median", "max")}}  # fmt: skip
RECORD: dict[str, Any] = {
    "format": RECORD_FORMAT,
    "preparation": {"format": 1, "spacing_mm": None, "modality": "mr",
                    "window_hu": [-1000.0, 1000.0], "clip_percentiles": [0.5, 99.5],
                    "modalities": ["mr"]},
    "modalities": ["mr"],
    "channel_names": ["T1"],
    "classes": CLASSES.as_json(),
    "median_spacing_mm": [1.0, 1.5, 2.0],
    "fingerprint": {"cases": 2, "subjects": 2, "stored": STORED},
    "trained_on": {"sub-miller": "aa11", "sub-smith": "bb22"},
}  # fmt: skip


def pretrained(folder: Path, encoder: EncoderConfig = ENCODER) -> VolumeViT:
    """A run of pre-training with drawn weights; returns its encoder."""
    network = drawn(VolumeViT(encoder))
    config = PretrainConfig(encoder=encoder, data=DATA, objective=PRETEXT)
    tensors = {f"encoder.{key}": value for key, value in network.state_dict().items()}
    tensors["decoder.mask_token"] = torch.zeros(24)
    _write(folder, "pretrain", config, {}, tensors, encoder)
    return network.eval()


def segmenter(folder: Path, **fields: Any) -> torch.nn.Module:
    """A run of fine-tuning to segment with drawn weights; returns its network."""
    config = FinetuneConfig(**{"encoder": ENCODER, "decoder": DECODER, "data": DATA,
                               "init": "/home/somebody/secret/run", **fields})  # fmt: skip
    network = drawn(network_of(config, CLASSES))
    _write(folder, "finetune", config, {}, network.state_dict(), config.encoder)
    return network.eval()


def classifier(folder: Path, config: FinetuneConfig) -> torch.nn.Module:
    """A run of fine-tuning to classify in three with drawn weights; returns its network."""
    table = (AskedTarget("grade", (1.0, 2.0, 4.0), counts=(3, 4, 5)),)
    network = drawn(classifier_network(config, table))
    targets = {TARGETS: [one.as_json() for one in table]}
    _write(folder, "finetune", config, targets, network.state_dict(), config.encoder)
    return network.eval()


def drawn(module: Any) -> Any:
    """With every parameter drawn, biases, norms and scales too: nothing is 0 or 1 by chance."""
    random = generator(0, "weights", "export")
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.from_numpy(random.standard_normal(tuple(parameter.shape))).float()
            parameter.copy_(parameter + 0.1 * noise)
    return module


def _write(
    folder: Path, verb: str, config: Any, further: dict[str, Any], tensors: Any, encoder: Any
) -> None:
    with Run.create_or_continue(folder, to_mapping(config), overwrite=False) as run:
        run.write_sealed(PREPARATION, {**RECORD, "verb": verb, **further})
        run.checkpoints.write(7, weights=dict(tensors), header=encoder_metadata(encoder),
                              saved=Saved({}, {"step": 7}), is_best=True)  # fmt: skip
        run.finish({"validation": {"validation": {"dice": 0.8765}}, "seconds": 120.0})
