"""Pretext tasks by the config's word. A new one is a file in this room and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mim3d.config.objective import PretextConfig
from mim3d.foundation.errors import ConfigError
from mim3d.models.vit import VolumeViT
from mim3d.objectives.autoencoder import Autoencoder, DenoisingAutoencoder
from mim3d.objectives.base import Task
from mim3d.objectives.contrastive import SimCLR, VICReg
from mim3d.objectives.mae import MaskedAutoencoder
from mim3d.objectives.momentum import BYOL, MoCoV3
from mim3d.objectives.self_distillation import DINO
from mim3d.objectives.simmim import SimMIM
from mim3d.objectives.smit import SMIT
from mim3d.objectives.voco import VoCo

TaskBuilder = Callable[[VolumeViT, PretextConfig], Task]

PRETEXT_TASKS: dict[str, TaskBuilder] = {
    "mae": MaskedAutoencoder,
    "simmim": SimMIM,
    "smit": SMIT,
    "autoencoder": Autoencoder,
    "denoising": DenoisingAutoencoder,
    "simclr": SimCLR,
    "mocov3": MoCoV3,
    "byol": BYOL,
    "vicreg": VICReg,
    "dino": DINO,
    "voco": VoCo,
}
"""`objective.name` to what builds the task around an encoder."""

OWN: Final = "own"
"""`objective.name` of a task that is not in the registry but handed in."""


def task_builder(name: str) -> TaskBuilder:
    """What builds the task of that name.

    Raises:
        ConfigError: `own`, which only the program that hands it in can build.
    """
    if name == OWN:
        raise ConfigError(
            "`objective.name own` is a task that no name stands for",
            remedy="run the program that handed it to `mim3d.workflows.pretrain.pretrain` as "
            "`own_task`",
            code="own-task",
        )
    return PRETEXT_TASKS[name]
