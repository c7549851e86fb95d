"""The face of what leads masks to some tokens rather than others."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mim3d.data.batch import CropBatch
from mim3d.models.hidden_states import HiddenStates
from mim3d.objectives.base import Moment
from mim3d.objectives.questions import Question
from mim3d.objectives.weight_maps import VolumeGrid
from mim3d.tokens.masking import TokenSplit
from mim3d.tokens.patches import PaddedCrop


class Guide(nn.Module):
    """Weighs the tokens of crops. What it must remember is in its `state_dict`."""

    needs_labels = False
    """Whether it looks at label maps."""

    def remember(self, task: nn.Module, grids: Mapping[str, VolumeGrid]) -> None:
        """Told, once before training, of the task and of every case that crops can come from."""

    def weights(self, batch: CropBatch, crop: PaddedCrop, moment: Moment) -> Tensor:
        """What each token weighs, `b n` float32, finite and not negative.

        Args:
            batch: the crops.
            crop: the same, padded to whole patches; its grid is that of the tokens.
            moment: where in the run.
        """
        raise NotImplementedError

    def wants_attention(self, moment: Moment) -> bool:
        """Whether the encoder is to hand out the attention of its last block at this step."""
        return False

    def note_attention(
        self, batch: CropBatch, split: TokenSplit, states: HiddenStates, moment: Moment
    ) -> None:
        """Told, where it wants attention, what the encoder made of what it saw."""

    def note(self, batch: CropBatch, question: Question, predicted: Tensor, moment: Moment) -> None:
        """Told, in training, what was predicted at `question.index`, `b q p` detached."""

    def after_update(self, task: nn.Module, moment: Moment) -> None:
        """Called once after each optimiser step, with the task as it is now."""
