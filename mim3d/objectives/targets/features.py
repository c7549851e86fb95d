"""What a running mean of the encoder makes of the whole crop (data2vec)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mim3d.foundation.errors import ConfigError
from mim3d.models.hidden_states import HiddenStates
from mim3d.models.patch_head import Answer
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment
from mim3d.objectives.targets.base import Look, PatchTarget, Target, of_tokens
from mim3d.objectives.teacher import Teacher
from mim3d.tokens.gather import gather
from mim3d.tokens.grid import Triple


class Features(Target):
    """Hidden states of the encoder's running mean, which sees the crop whole, nothing masked.

    The mean of the top blocks' outputs, each and then their mean normalised token by token to mean
    0 and deviation 1 over the channels (data2vec; Baevski et al., arXiv:2202.03555, section 3.3).

    Stores `teacher.*`.

    Args:
        encoder: what is to learn; copied as it is now.
        blocks: how many of the top blocks; None is half of them.
        momentum: of the running mean at the start (`Teacher`).

    Raises:
        ConfigError: more blocks than there are, or none.
    """

    def __init__(self, encoder: VolumeViT, blocks: int | None, momentum: float) -> None:
        count = max(1, encoder.depth // 2) if blocks is None else blocks
        if not 1 <= count <= encoder.depth:
            raise ConfigError(
                f"`objective.targets.blocks` is {count}, expected 1 to {encoder.depth}, the "
                "encoder's blocks",
                code="range",
            )
        super().__init__(Answer(encoder.width, by_voxel=False))
        self.teacher = Teacher(encoder, momentum)
        self.blocks = tuple(range(encoder.depth - count + 1, encoder.depth + 1))

    @torch.no_grad()
    def of(self, look: Look) -> PatchTarget:
        """`b q d`; there is no way back to voxels."""
        batch, shown = look.batch, None
        if batch.present is not None:
            shown = batch.present[:, None]
        states: HiddenStates = self.teacher(
            batch.voxels, batch.spacing_mm, valid=batch.valid, taps=self.blocks, cut=look.cut,
            shown=shown,
        )  # fmt: skip
        mean = torch.stack([_normalised(tap) for tap in states.taps]).mean(dim=0)
        return PatchTarget(gather(_normalised(mean), look.index), back=None)

    def weigh(self, weights: Tensor | None, patch: Triple) -> Tensor | None:
        """Every channel counts as the token's voxels on average."""
        return of_tokens(weights)

    def after_update(self, encoder: VolumeViT, moment: Moment) -> None:
        """The running mean follows."""
        self.teacher.update(encoder, moment)


def _normalised(states: Tensor) -> Tensor:
    return F.layer_norm(states.float(), states.shape[-1:])
