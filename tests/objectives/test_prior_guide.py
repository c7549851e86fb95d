"""Weights that are given for every place of a case, against slow loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from placed_crops import AFFINE, ENCODER, GRIDS, SHAPE, SIZE, SMALL, batch, moment

from mim3d.config.objective import GuideConfig
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.models.vit import VolumeViT
from mim3d.objectives.guides import PriorGuide, cell_means
from mim3d.objectives.masks import Masks, check_masks
from mim3d.tokens.masking import is_masked
from mim3d.tokens.patches import pad_to_patches

PRIOR = GuideConfig(by="prior", priors="weights", temperature=0.0)


def made() -> tuple[Masks, PriorGuide]:
    masks = Masks(VolumeViT(ENCODER), replace(SMALL, mask_ratio=1 / 36, guide=PRIOR)).train()
    guide: Any = masks.guide
    guide.remember(masks, GRIDS)
    for case_id in GRIDS:
        guide.give(case_id, torch.zeros(SHAPE))
    return masks, guide


def test_a_cell_has_the_mean_of_its_voxels_by_a_slow_loop() -> None:
    values = torch.rand((5, 7, 3), generator=torch.Generator().manual_seed(0))

    found = cell_means(values, (2, 4, 2))

    assert found.shape == (3, 2, 2)
    for place in np.ndindex(3, 2, 2):
        box = tuple(
            slice(at * edge, (at + 1) * edge) for at, edge in zip(place, (2, 4, 2), strict=True)
        )
        assert found[place].item() == pytest.approx(values[box].mean().item(), rel=1e-6)


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_the_heaviest_place_is_masked_wherever_it_lies_in_the_crop(is_mirrored: bool) -> None:
    """One hot voxel of case 0 at 9, 14, 6; the crop begins at 4, 4, 2 and may be mirrored."""
    masks, guide = made()
    weights = torch.full(SHAPE, 0.1)
    weights[9, 14, 6] = 100.0
    guide.give("case_0", weights)
    crops = batch(crops=1)
    token = [(9 - 4) // 4, (14 - 4) // 4, (6 - 2) // 2]
    if is_mirrored:
        crops.affine[:, :3, 0] *= -1
        crops.affine[:, 0, 3] += AFFINE[0, 0] * (SIZE[0] - 1)
        token[0] = 2 - token[0]

    split = masks.masking(crops, pad_to_patches(crops.voxels, None, ENCODER.patch), moment()).split(
        moment().keys(crops, "mask")
    )

    hidden = is_masked(split, 36).reshape(1, 3, 4, 3)
    assert hidden[0, token[0], token[1], token[2]]
    assert hidden.sum() == 1


def test_a_guide_that_was_told_nothing_says_so() -> None:
    masks = Masks(VolumeViT(ENCODER), replace(SMALL, guide=PRIOR)).train()
    crops = batch()

    with pytest.raises(UserError, match="`objective.guide.by prior` was not told"):
        masks.masking(crops, pad_to_patches(crops.voxels, None, ENCODER.patch), moment())


@pytest.mark.parametrize("guide", [GuideConfig(by="prior"), GuideConfig(priors="weights")])
def test_a_guide_without_its_folder_or_a_folder_without_its_guide_is_refused(
    guide: GuideConfig,
) -> None:
    with pytest.raises(ConfigError, match="go together, and one of the two is missing"):
        check_masks(replace(SMALL, guide=guide))
