"""Pretext tasks by the config's word. A new one is a file in this room and a line here."""

from __future__ import annotations

from collections.abc import Callable

from mim3d.config.sections import PretextConfig
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Task


def _mae(encoder: VolumeViT, config: PretextConfig) -> Task:
    from mim3d.objectives.masked import MaskedAutoencoder

    return MaskedAutoencoder(encoder, config)


def _simmim(encoder: VolumeViT, config: PretextConfig) -> Task:
    from mim3d.objectives.masked import SimMIM

    return SimMIM(encoder, config)


def _simclr(encoder: VolumeViT, config: PretextConfig) -> Task:
    from mim3d.objectives.contrastive import SimCLR

    return SimCLR(encoder, config)


def _vicreg(encoder: VolumeViT, config: PretextConfig) -> Task:
    from mim3d.objectives.contrastive import VICReg

    return VICReg(encoder, config)


def _byol(encoder: VolumeViT, config: PretextConfig) -> Task:
    from mim3d.objectives.momentum import BYOL

    return BYOL(encoder, config)


def _mocov3(encoder: VolumeViT, config: PretextConfig) -> Task:
    from mim3d.objectives.momentum import MoCoV3

    return MoCoV3(encoder, config)


def _autoencoder(encoder: VolumeViT, config: PretextConfig) -> Task:
    from mim3d.objectives.autoencoder import Autoencoder

    return Autoencoder(encoder, config)


def _denoising(encoder: VolumeViT, config: PretextConfig) -> Task:
    from mim3d.objectives.autoencoder import DenoisingAutoencoder

    return DenoisingAutoencoder(encoder, config)


def _smit(encoder: VolumeViT, config: PretextConfig) -> Task:
    from mim3d.objectives.smit import SMIT

    return SMIT(encoder, config)


def _dino(encoder: VolumeViT, config: PretextConfig) -> Task:
    from mim3d.objectives.self_distillation import DINO

    return DINO(encoder, config)


def _voco(encoder: VolumeViT, config: PretextConfig) -> Task:
    from mim3d.objectives.voco import VoCo

    return VoCo(encoder, config)


PRETEXT_TASKS: dict[str, Callable[[VolumeViT, PretextConfig], Task]] = {
    "mae": _mae,
    "simmim": _simmim,
    "smit": _smit,
    "dino": _dino,
    "autoencoder": _autoencoder,
    "denoising": _denoising,
    "simclr": _simclr,
    "vicreg": _vicreg,
    "byol": _byol,
    "mocov3": _mocov3,
    "voco": _voco,
}
"""`objective.name` to what builds the task around an encoder."""
