"""Small tasks of masked image modelling, with crops and moments for them."""

from __future__ import annotations

from dataclasses import replace

import torch

from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.randomness import RandomStream
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment
from mim3d.objectives.mae import MaskedAutoencoder
from mim3d.objectives.masked import Masked
from mim3d.objectives.simmim import SimMIM
from mim3d.tokens.masking import TokenSplit
from mim3d.tokens.patches import pad_to_patches

ENCODER = EncoderConfig(width=24, depth=2, heads=2, patch=(4, 4, 2), channels=2)
SMALL = PretextConfig(decoder_width=12, decoder_depth=1, decoder_heads=2)
SIZE = (11, 13, 7)
TASKS: dict[str, type[MaskedAutoencoder] | type[SimMIM]] = {
    "mae": MaskedAutoencoder,
    "simmim": SimMIM,
}


def task(name: str, encoder: EncoderConfig = ENCODER, **fields: object) -> Masked:
    torch.manual_seed(0)
    config = replace(SMALL, name=name, **fields)  # type: ignore[arg-type]
    return TASKS[name](VolumeViT(encoder), config)


def batch(size: tuple[int, int, int] = SIZE, crops: int = 2, channels: int = 2) -> CropBatch:
    voxels = torch.randn(crops, channels, *size, generator=torch.Generator().manual_seed(1))
    affine = torch.diag(torch.tensor([0.5, 1.0, 3.0, 1.0], dtype=torch.float64))
    ids = tuple(f"case_{i}" for i in range(crops))
    return CropBatch(voxels, affine.repeat(crops, 1, 1), ids, torch.arange(crops))


def moment(step: int = 0, pictures: bool = False) -> Moment:
    return Moment(step, 10, RandomStream(0, step), wants_pictures=pictures)


def split_of(made: Masked, crops: CropBatch) -> TokenSplit:
    """The partition at the first step."""
    crop = pad_to_patches(crops.voxels, crops.valid, made.encoder.patch)
    return made.masks.masking(crops, crop, moment()).split(moment().keys(crops, "mask"))
