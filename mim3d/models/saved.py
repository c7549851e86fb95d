"""Networks by the path of what holds them: a run, a hub folder, or a file of weights.

A hub folder has the layout of the Hugging Face hub: `model.safetensors`, `config.json` and a model
card. It is read where it lies; nothing here looks anything up.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mim3d.config.encoder import EncoderConfig
from mim3d.config.task import DecoderConfig
from mim3d.config.tree import hints
from mim3d.config.values import convert
from mim3d.config.verbs import FinetuneConfig
from mim3d.foundation.digests import file_digest
from mim3d.foundation.documents import DocumentError, read_object
from mim3d.foundation.errors import UserError, WeightsError
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.models.weights import (
    Weights,
    encoder_config,
    load_weights,
    load_whole,
    transfer_encoder,
)

HUB_CONFIG, HUB_WEIGHTS, HUB_CARD = "config.json", "model.safetensors", "README.md"
HUB_RUN = "mim3d.yaml"
"""The run's resolved config in a hub folder, without the paths of whoever trained it."""
HUB_FORMAT = 1
RUN_CONFIG, RUN_CHECKPOINTS, RUN_WEIGHTS = "config.yaml", "checkpoints", "weights.safetensors"


def is_hub(path: str | Path) -> bool:
    """Whether it is a folder in the hub's layout."""
    folder = Path(path)
    return (folder / HUB_CONFIG).is_file() and (folder / HUB_WEIGHTS).is_file()


class Hub(NamedTuple):
    """What a hub folder holds."""

    weights: Weights
    config: dict[str, Any]
    """`config.json`."""

    @property
    def step(self) -> int:
        """Of the training, whose weights they are."""
        return int(self.config["step"])


def hub_config(path: str | Path) -> dict[str, Any]:
    """`config.json` of a hub folder.

    Raises:
        WeightsError: it is not mim3d's, of a later version, or damaged.
    """
    try:
        config = read_object(Path(path) / HUB_CONFIG)
        is_known = config["model_type"] == "mim3d" and config["format"] == HUB_FORMAT
        step = config["step"]
    except (UserError, DocumentError, LookupError) as error:
        raise _no_hub(path, f"`{HUB_CONFIG}` does not describe one") from error
    if not is_known or type(step) is not int:
        raise _no_hub(path, f"`{HUB_CONFIG}` is of another program or version")
    return config


def read_hub(path: str | Path) -> Hub:
    """The weights of a hub folder, whose checksum is compared, and its `config.json`.

    Raises:
        WeightsError: it is not mim3d's, of a later version, or damaged.
    """
    config, weights = hub_config(path), Path(path) / HUB_WEIGHTS
    if file_digest(weights) != config.get("sha256"):
        raise _no_hub(path, f"`{HUB_WEIGHTS}` is not as it was written")
    return Hub(load_weights(weights), config)


def saved_weights(path: str | Path, checkpoint: str = "last") -> Weights:
    """The tensors and the header of what holds a network.

    Args:
        path: a run folder, a hub folder, or a `.safetensors` file that mim3d wrote.
        checkpoint: which of a run's, `last` or `best`.

    Raises:
        WeightsError: there are none, or they are damaged.
    """
    place = Path(path)
    if is_hub(place):
        return read_hub(place).weights
    if place.is_dir():
        place = place / RUN_CHECKPOINTS / checkpoint / RUN_WEIGHTS
    return load_weights(place)


def load_encoder(path: str | Path, checkpoint: str = "last") -> VolumeViT:
    """The encoder of a run, a hub folder or a file of weights, in eval mode, on the CPU.

    Args:
        path: as `saved_weights`'.
        checkpoint: which of a run's, `last` or `best`.

    Raises:
        WeightsError: there are no weights, or not those of a whole encoder.
    """
    tensors, metadata = saved_weights(path, checkpoint)
    encoder = VolumeViT(encoder_config(metadata, source=str(path)))
    transfer_encoder(encoder, tensors, source=str(path))
    return encoder.eval()


def load_unetr(path: str | Path, checkpoint: str = "last") -> UNETR:
    """The whole segmenter of a run or a hub folder, in eval mode, on the CPU.

    Args:
        path: as `saved_weights`'.
        checkpoint: which of a run's, `last` or `best`.

    Raises:
        WeightsError: there are no weights, or not those of a whole segmenter.
    """
    tensors, metadata = saved_weights(path, checkpoint)
    encoder = encoder_config(metadata, source=str(path))
    decoder = _decoder_of(Path(path), tensors)
    network = UNETR(VolumeViT(encoder), _outputs(encoder, decoder, tensors), decoder)
    load_whole(network, tensors, source=str(path))
    return network.eval()


def _decoder_of(place: Path, tensors: Mapping[str, Tensor]) -> DecoderConfig:
    if OUT not in tensors:
        raise WeightsError(
            f"`{place}` is no segmenter: its weights have no `{OUT}`",
            remedy="`VolumeViT.load` takes its encoder; `mim3d finetune` makes a segmenter of it",
            code="no-segmenter",
        )
    if is_hub(place):
        stored = read_object(place / HUB_CONFIG).get("decoder")
        known = hints(DecoderConfig)
        if not isinstance(stored, dict) or set(stored) - set(known):
            raise _no_hub(place, "its decoder is of another version")
        return DecoderConfig(**{key: convert(value, known[key]) for key, value in stored.items()})
    if not (place / RUN_CONFIG).is_file():
        raise WeightsError(
            f"`{place}` does not say which decoder its weights belong to",
            remedy="give the folder of a run, or one of `mim3d export --format hub-folder`",
            code="no-segmenter",
        )
    # Late: everything else here runs where PyYAML is not installed.
    from mim3d.config.reading import read_config

    return read_config(str(place / RUN_CONFIG), FinetuneConfig).decoder


OUT = "decoder.out.bias"
"""The last map of every decoder."""


def _outputs(encoder: EncoderConfig, decoder: DecoderConfig, tensors: Mapping[str, Tensor]) -> int:
    """How many logits a voxel has: a decoder may have several numbers for each."""
    with torch.device("meta"):
        one = UNETR(VolumeViT(encoder), 1, decoder).state_dict()[OUT]
    return max(1, len(tensors[OUT]) // len(one))


def _no_hub(path: str | Path, why: str) -> WeightsError:
    return WeightsError(
        f"`{path}` is not a hub folder of mim3d: {why}",
        remedy="`mim3d export RUN --format hub-folder --out DIR` makes one",
        code="no-hub",
    )
