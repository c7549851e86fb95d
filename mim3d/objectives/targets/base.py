"""The face of every target: from the tokens that are asked for to the numbers that are true."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from mim3d.data.batch import CropBatch
from mim3d.models.patch_head import Answer
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment
from mim3d.tokens.gather import gather
from mim3d.tokens.grid import Triple
from mim3d.tokens.patches import CutCrop


def unchanged(predicted: Tensor) -> Tensor:
    """The way back of voxels that are predicted as they are."""
    return predicted


@dataclass(frozen=True)
class PatchTarget:
    """What is true of the tokens asked for, and the way from a prediction back to voxels.

    Args:
        values: `b q t`.
        back: predicted values `b q t` to voxels in the crop's own intensities `b q (c p)`; None
            where there is no way back.
    """

    values: Tensor
    back: Callable[[Tensor], Tensor] | None = unchanged

    def to_voxels(self, predicted: Tensor) -> Tensor | None:
        """Predicted values `b q t` in the crop's own intensities; None where there is no way."""
        return None if self.back is None else self.back(predicted)


@dataclass(frozen=True)
class Look:
    """What a target is made of: tokens that are asked for, and the crops they lie in.

    Args:
        cut: the crops as patches.
        index: `b q`, the tokens.
        inside: `b q (c p)` bool, which of their voxels exist: no padding, no contrast that is not
            there; None where all do.
        batch: the crops as the encoder knows them, a channel for each of its own.
    """

    cut: CutCrop
    index: Tensor
    inside: Tensor | None
    batch: CropBatch

    @cached_property
    def patches(self) -> Tensor:
        """The voxels of the tokens, `b q (c p)`."""
        return gather(self.cut.patches, self.index)

    @property
    def patch(self) -> Triple:
        """Voxels behind a token along x, y, z."""
        return self.cut.crop.grid.patch

    @property
    def channels(self) -> int:
        """Of the crops, c."""
        return self.cut.crop.voxels.shape[1]

    def boxes(self) -> tuple[Tensor, Tensor]:
        """The tokens' voxels and 1 where they exist, 0 elsewhere; both `b q c px py pz` float32."""
        b, q, _ = self.patches.shape
        shape = (b, q, self.channels, *self.patch)
        there = torch.ones_like(self.patches) if self.inside is None else self.inside
        return self.patches.reshape(shape).float(), there.reshape(shape).float()


class Target(nn.Module):
    """What the network is to say of a token.

    Most have no weights; what one keeps (a teacher) stands in the `state_dict` of its task.

    Args:
        answer: how many numbers are predicted of a token, and whether they belong to its voxels.
    """

    is_like_voxels = False
    """Whether values are a patch's own voxels up to one shift and scale, so that `shape_loss` and
    the mean predictor of a patch say something."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer

    def of(self, look: Look) -> PatchTarget:
        """The truth at the tokens asked for, without gradient, in float32 or the voxels' type."""
        raise NotImplementedError

    def weigh(self, weights: Tensor | None, patch: Triple) -> Tensor | None:
        """What each value counts, from what each voxel counts.

        Args:
            weights: `b q (c p)`, or `b q 1` where all voxels of a token count alike; None is 1.
            patch: voxels behind a token along x, y, z.

        Returns:
            `b q t` or broadcast to it; None is all alike.
        """
        raise NotImplementedError

    def after_update(self, encoder: VolumeViT, moment: Moment) -> None:
        """Called once after each optimiser step."""


def of_tokens(weights: Tensor | None) -> Tensor | None:
    """What each token counts: its voxels' mean, `b q 1`."""
    return None if weights is None else weights.mean(dim=-1, keepdim=True)


def of_boxes(weights: Tensor, patch: Triple) -> Tensor:
    """Weights `b q (c p)` as boxes of voxels, `b q c px py pz`."""
    b, q, length = weights.shape
    return weights.reshape(b, q, length // math.prod(patch), *patch)
