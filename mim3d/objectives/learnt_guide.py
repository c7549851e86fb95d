"""Masks that go where training has seen attention (MSMAE) or large errors (AnatoMask).

What a step tells of its tokens is kept in `weight_maps.WeightMaps`, in the volume's coordinates, so
that it leads the masks of the next crops there, however these are cut and augmented.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mim3d.config.objective import PretextConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.models.hidden_states import HiddenStates
from mim3d.models.looks import FLOOR, received
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment
from mim3d.objectives.guide import Guide
from mim3d.objectives.questions import Question
from mim3d.objectives.targets import voxel_error
from mim3d.objectives.teacher import Teacher, momentum_at
from mim3d.objectives.weight_maps import VolumeGrid, WeightMaps
from mim3d.tokens.masking import TokenSplit, is_masked
from mim3d.tokens.patches import PaddedCrop

LEARNT = ("attention", "loss")
"""What `objective.guide.by` calls them: they must be told of the cases."""


class LearntGuide(Guide):
    """Weights of tokens that training itself has found; until it has, all weigh the same.

    Stores `maps.*` once it was told of the cases.

    Args:
        encoder: whose tokens they are.
        config: the pretext task.

    Raises:
        ConfigError: settings that do not go together.
    """

    is_relative = False
    """Whether numbers are taken relative to their mean over a step."""

    def __init__(self, encoder: VolumeViT, config: PretextConfig) -> None:
        super().__init__()
        check_learnt(encoder, config)
        self.config = config.guide
        self._cell = encoder.patch
        self.maps: WeightMaps | None = None

    def remember(self, task: nn.Module, grids: Mapping[str, VolumeGrid]) -> None:
        """Makes room for the maps of these cases."""
        self.maps = WeightMaps(
            grids,
            self._cell,
            momentum=self.config.momentum,
            refresh_epochs=self.config.refresh_epochs,
            is_relative=self.is_relative,
        )

    @torch.no_grad()
    def weights(self, batch: CropBatch, crop: PaddedCrop, moment: Moment) -> Tensor:
        """As `Guide.weights`, above 0; a place where nothing is known weighs the crop's mean.

        Raises:
            UserError: it was not told of the cases, or a crop is of none of them.
        """
        values, known = self._known_maps().read(batch, crop.grid)
        count = known.sum(dim=1, keepdim=True)
        mean = values.sum(dim=1, keepdim=True) / count.clamp_min(1)
        mean = torch.where(mean > 0, mean, 1.0)
        return torch.where(known, values, mean).maximum(FLOOR * mean)

    def after_update(self, task: nn.Module, moment: Moment) -> None:
        """Takes in what the step told."""
        self._known_maps().update()

    def is_turn(self, moment: Moment) -> bool:
        """Whether this step tells something."""
        return self.training and moment.step % self.config.every == 0

    def _known_maps(self) -> WeightMaps:
        if self.maps is None:
            raise UserError(
                f"`objective.guide.by {self.config.by}` was not told which cases there are",
                remedy="call `task.remember(grids)` with the grid of every case before training",
                code="guide",
            )
        return self.maps


class AttentionGuide(LearntGuide):
    """By the attention that the last block pays to a place, as MSMAE (arXiv:2305.05871)."""

    def __init__(self, encoder: VolumeViT, config: PretextConfig) -> None:
        super().__init__(encoder, config)
        # SimMIM and SMIT encode all tokens where they lie, unless some leave.
        leaves = config.drop_air or config.drop_ratio > 0
        self._is_in_place = config.name != "mae" and not leaves

    def wants_attention(self, moment: Moment) -> bool:
        """Whether the states of this step are to hold it."""
        return self.is_turn(moment)

    @torch.no_grad()
    def note_attention(
        self, batch: CropBatch, split: TokenSplit, states: HiddenStates, moment: Moment
    ) -> None:
        """Notes it for the visible tokens, for only these show anything.

        Args:
            batch: the crops.
            split: of their tokens.
            states: with the attention of the last block alone.
            moment: of the step.
        """
        seen = received(states, self.config.queries)
        if self._is_in_place:
            seen = seen.gather(1, split.visible)
        seen = seen[:, : split.visible.shape[1]]  # mask tokens stand behind, if anywhere
        is_real = split.visible_valid
        real = torch.ones_like(seen) if is_real is None else is_real.to(seen.dtype)
        # As a multiple of what each would get if all got the same.
        share = (seen * real).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True).clamp_min(1)
        seen = seen / share.clamp_min(torch.finfo(seen.dtype).tiny)
        self._known_maps().note(batch, states.grid, seen, moment, index=split.visible, weights=real)


class LossGuide(LearntGuide):
    """By the error of what was predicted of a place, as AnatoMask (ECCV 2024).

    Errors are those of the loss: of prediction and target in the same normalisation. They are
    relative to the mean of their step, for the loss falls while a run learns, and places seen long
    ago would seem hard for ever. With `source: teacher` those of a running mean of the network
    are taken. Stores its `teacher.*` then.
    """

    is_relative = True

    def __init__(self, encoder: VolumeViT, config: PretextConfig) -> None:
        super().__init__(encoder, config)
        self._loss = config.loss
        self._momentum = config.teacher.momentum
        self.teacher: Teacher | None = None

    def remember(self, task: nn.Module, grids: Mapping[str, VolumeGrid]) -> None:
        """Makes room for the maps of these cases; the teacher begins as a copy of the task."""
        if self.config.source == "teacher":
            # Before there are maps, which it does not need.
            self.teacher = Teacher(task, self._momentum)
        super().remember(task, grids)

    @torch.no_grad()
    def note(self, batch: CropBatch, question: Question, predicted: Tensor, moment: Moment) -> None:
        """Notes the mean error of each masked token, of voxels by their weight in the loss.

        Args:
            batch: the crops.
            question: with the truth.
            predicted: `b q p`.
            moment: of the step.
        """
        if not self.is_turn(moment):
            return
        if self.teacher is not None:
            asked: Any = self.teacher.module  # a copy of the task
            predicted = asked.predict(batch, question)
        errors = voxel_error(predicted, question.target.values, self._loss)
        each = torch.ones_like(errors)
        each = each if question.weights is None else question.weights.expand_as(errors)
        total = each.sum(dim=-1)
        mean = (errors * each).sum(dim=-1) / total.clamp_min(torch.finfo(each.dtype).tiny)
        grid, index = question.cut.crop.grid, question.index
        hidden = is_masked(question.split, grid.n).gather(1, index)
        counts = (hidden & (total > 0)).to(errors.dtype)
        self._known_maps().note(batch, grid, mean, moment, index=index, weights=counts)

    def after_update(self, task: nn.Module, moment: Moment) -> None:
        """Takes in what the step told; the teacher follows."""
        super().after_update(task, moment)
        if self.teacher is not None:
            follow(self.teacher, task, moment)


@torch.no_grad()
def follow(teacher: Teacher, task: nn.Module, moment: Moment) -> None:
    """Moves a teacher towards the task it is a copy of, which may have got further parts since."""
    share = 1 - momentum_at(moment, teacher.momentum)
    students = dict(task.named_parameters())
    own = dict(teacher.module.named_parameters())
    torch._foreach_lerp_(
        [parameter.detach() for parameter in own.values()],
        [students[name].detach() for name in own],
        share,
    )
    buffers = dict(task.named_buffers())
    for name, mine in teacher.module.named_buffers():
        mine.copy_(buffers[name])


def check_learnt(encoder: VolumeViT, config: PretextConfig) -> None:
    """Raises `ConfigError` where a learnt guide cannot lead a task."""
    guide = config.guide
    if config.name == "smit" and guide.source == "teacher":
        raise _refused(
            "`objective.guide.source teacher` is not for `smit`, which has a teacher of features",
            "`--objective.guide.source network`",
        )
    if not 0 <= guide.momentum < 1 or guide.refresh_epochs < 0 or guide.every < 1:
        raise _refused(
            f"`objective.guide` has `momentum` {guide.momentum}, `refresh_epochs` "
            f"{guide.refresh_epochs} and `every` {guide.every}",
            "a momentum of 0 to below 1, no negative epochs, and 1 or more steps",
        )
    if guide.queries == "class_token" and encoder.class_token is None:
        raise _refused(
            "`objective.guide.queries class_token` needs an encoder that has one",
            "`--encoder.class_token true`, or `--objective.guide.queries patches`",
        )
    if guide.source == "teacher" and guide.by != "loss":
        raise _refused(
            "`objective.guide.source teacher` is for `objective.guide.by loss` alone",
            "leave it out",
        )


def _refused(what: str, remedy: str) -> ConfigError:
    return ConfigError(what, remedy=remedy, code="guide")
