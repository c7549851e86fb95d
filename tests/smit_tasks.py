"""Small tasks of SMIT, with crops and moments for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig, TeacherConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.randomness import RandomStream
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment
from mim3d.objectives.smit import SMIT

ENCODER = EncoderConfig(width=24, depth=2, heads=2, patch=(4, 4, 2), channels=2)
TEACHER = TeacherConfig(
    prototypes=16, head_width=12, bottleneck=6, teacher_temperature=(0.04, 0.07)
)
SIZE = (11, 13, 7)


def task(
    encoder: EncoderConfig = ENCODER, teacher: dict[str, Any] | None = None, **fields: Any
) -> SMIT:
    torch.manual_seed(0)
    own = replace(TEACHER, **(teacher or {}))
    return SMIT(VolumeViT(encoder), PretextConfig(name="smit", teacher=own, **fields))


def batch(views: int = 2, crops: int = 3) -> CropBatch:
    voxels = torch.randn(views * crops, 2, *SIZE, generator=torch.Generator().manual_seed(1))
    affine = torch.diag(torch.tensor([0.5, 1.0, 3.0, 1.0], dtype=torch.float64))
    ids = tuple(f"case_{i}" for i in range(crops))
    return CropBatch(
        voxels, affine.repeat(len(voxels), 1, 1), ids * views, torch.arange(crops).repeat(views)
    )


def padded(crops: CropBatch) -> CropBatch:
    valid = torch.ones(len(crops.voxels), *SIZE, dtype=torch.bool)
    valid[0, :5] = False
    valid[1, :, 9:, 3:] = False
    return replace(crops, valid=valid)


def with_air(crops: CropBatch) -> CropBatch:
    return replace(crops, air=torch.tensor([[0.0, 0.5]]).repeat(len(crops.voxels), 1))


def moment(step: int = 2, steps: int = 12, pictures: bool = False) -> Moment:
    return Moment(step, steps, RandomStream(0, step), wants_pictures=pictures)


@torch.no_grad()
def stirred(made: SMIT) -> SMIT:
    """A teacher and centres that differ from the student and from 0."""
    random = torch.Generator().manual_seed(5)
    for parameter in made.teacher.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=random)
    for centre in (made.token_centre, made.whole_centre):
        centre.mean.copy_(0.3 * torch.randn(centre.mean.shape, generator=random))
        centre.variance.fill_(0.24)
    return made
