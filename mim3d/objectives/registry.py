"""Pretext tasks by the config's word. A new one is a file in this room and a line here."""

from __future__ import annotations

from collections.abc import Callable

from mim3d.config.sections import MaskedConfig
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Task


def _mae(encoder: VolumeViT, config: MaskedConfig) -> Task:
    from mim3d.objectives.masked import MaskedAutoencoder

    return MaskedAutoencoder(encoder, config)


def _simmim(encoder: VolumeViT, config: MaskedConfig) -> Task:
    from mim3d.objectives.masked import SimMIM

    return SimMIM(encoder, config)


PRETEXT_TASKS: dict[str, Callable[[VolumeViT, MaskedConfig], Task]] = {
    "mae": _mae,
    "simmim": _simmim,
}
"""`objective.name` to what builds the task around an encoder."""
