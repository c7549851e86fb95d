"""The numbers of a batch of crops: everything that is drawn, nothing that is cut.

They are small, depend on no voxel, and are made in any process; `batched.cut_batch` carries them
out on a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from mim3d.config.data import AugmentationConfig
from mim3d.data import augment
from mim3d.data.crop_warp import crop_to_volume, smoothing
from mim3d.data.sampling import FIXED_STEP, SamplingPlan
from mim3d.data.workers import ALIGNMENT
from mim3d.foundation.randomness import RandomStream


@dataclass(frozen=True)
class CropNumbers:
    """Where the crops of a batch lie and what happens to them.

    Args:
        visits: `b 2`, int64, the stays in memory they are cut from: slot and number.
        crop_ids: `b`, int64, places in the global batch; views share them.
        to_volume: `b 4 4`, float64, crop voxel to volume voxel, before mirroring and turning.
        orientation: `b 4 4`, float64, voxel after mirroring and turning to voxel before.
        smoothing: `b 3`, float64, deviation of the Gaussian that goes before a warp to larger
            voxels, along the volume's axes, in its voxels.
        warped: `b` bool, whether `to_volume` is more than a shift by whole voxels.
        mirrored: `b` bool, whether x was mirrored.
        intensity: `b 5`, float64: scale, shift, gamma, deviation of noise and of blur.
        noise_keys: `b`, int64.
    """

    visits: Tensor
    crop_ids: Tensor
    to_volume: Tensor
    orientation: Tensor
    smoothing: Tensor
    warped: Tensor
    mirrored: Tensor
    intensity: Tensor
    noise_keys: Tensor


def numbers_bytes(crops: int) -> int:
    """What the numbers of so many crops need in a worker's slot, at most."""
    words, flags = 2 + 1 + 16 + 16 + 3 + 5 + 1, 2  # of eight bytes, and of one
    return crops * (8 * words + flags) + ALIGNMENT * len(fields(CropNumbers))


def draw_numbers(
    plan: SamplingPlan,
    config: AugmentationConfig,
    step: int,
    indices: Sequence[int],
    views: int = 1,
) -> CropNumbers:
    """The numbers of the crops at these places of a step, one view after the other.

    Args:
        plan: which case and place.
        config: what may happen to a crop.
        step: of the run, or `FIXED_STEP`, at which nothing happens.
        indices: places in the global batch, of crops of one size.
        views: crops of one sample, each with a place and an augmentation of its own.
    """
    size = plan.size(step, indices[0])
    visits = [plan.visit(step, index) for index in indices]
    changes: list[augment.AugmentationPlan] = []
    matrices, orientations = [], []
    for view in range(views):
        for index in indices:
            crop = plan.draw(step, index, view)
            change = augment.AugmentationPlan()
            if step != FIXED_STEP:
                random = RandomStream(plan.seed, step).generator(index, f"augment/{view}")
                change = augment.draw(config, random)
            matrix = np.eye(4)
            matrix[:3, 3] = crop.start
            warp = change.warp_matrix
            if warp is not None:
                case = plan.open_case(crop.case_id)
                matrix = crop_to_volume(case, crop, warp, change.rescale)
            matrices.append(matrix)
            turned = change.turns > 0
            orientation = augment.mirror_matrix(change, size)
            orientations.append(
                orientation @ augment.turn_matrix(change, size) if turned else orientation
            )
            changes.append(change)
    return CropNumbers(
        visits=torch.tensor(visits * views, dtype=torch.int64),
        crop_ids=torch.tensor(list(indices) * views, dtype=torch.int64),
        to_volume=torch.from_numpy(np.stack(matrices)),
        orientation=torch.from_numpy(np.stack(orientations)),
        smoothing=torch.from_numpy(np.stack([smoothing(change.rescale) for change in changes])),
        warped=torch.tensor([change.warp is not None for change in changes]),
        mirrored=torch.tensor([change.flips[0] for change in changes]),
        intensity=torch.tensor(
            [[c.scale, c.shift, c.gamma, c.noise, c.blur] for c in changes], dtype=torch.float64
        ),
        noise_keys=torch.tensor([change.noise_key for change in changes], dtype=torch.int64),
    )
