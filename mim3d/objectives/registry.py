"""Pretext tasks by the config's word. A new one is a file in this room and a line here."""

from __future__ import annotations

from collections.abc import Callable

from mim3d.config.sections import PretextConfig
from mim3d.models.vit import VolumeViT
from mim3d.objectives.autoencoder import Autoencoder, DenoisingAutoencoder
from mim3d.objectives.base import Task
from mim3d.objectives.contrastive import SimCLR, VICReg
from mim3d.objectives.masked import MaskedAutoencoder, SimMIM
from mim3d.objectives.momentum import BYOL, MoCoV3
from mim3d.objectives.self_distillation import DINO
from mim3d.objectives.smit import SMIT
from mim3d.objectives.voco import VoCo

PRETEXT_TASKS: dict[str, Callable[[VolumeViT, PretextConfig], Task]] = {
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
