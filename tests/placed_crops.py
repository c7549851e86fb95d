"""Crops that know their place in small volumes, for tests of what is learnt of places."""

from __future__ import annotations

import numpy as np
import torch

from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.randomness import RandomStream, generator
from mim3d.objectives.base import Moment
from mim3d.objectives.weight_maps import VolumeGrid

ENCODER = EncoderConfig(width=24, depth=2, heads=2, patch=(4, 4, 2), channels=2)
SMALL = PretextConfig(decoder_width=12, decoder_depth=1, decoder_heads=2)
SIZE = (12, 16, 6)
SHAPE = (24, 24, 12)
AFFINE = np.diag([0.5, 1.0, 3.0, 1.0])
GRIDS = {f"case_{i}": VolumeGrid(SHAPE, AFFINE) for i in range(4)}


def moment(step: int = 0, steps: int = 10) -> Moment:
    return Moment(step, steps, RandomStream(0, step))


def batch(start: tuple[int, int, int] = (4, 4, 2), crops: int = 2, seed: int = 1) -> CropBatch:
    """Crops that begin at a voxel of their volumes."""
    voxels = torch.from_numpy(generator(seed).normal(size=(crops, 2, *SIZE))).float()
    affine = AFFINE.copy()
    affine[:3, 3] = AFFINE[:3, :3] @ start
    each = torch.from_numpy(affine).repeat(crops, 1, 1)
    ids = tuple(f"case_{i}" for i in range(crops))
    return CropBatch(voxels, each, ids, torch.arange(crops))
