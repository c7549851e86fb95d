"""SimMIM: mask tokens go through the encoder, and one linear map reads voxels off its states."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mim3d.config.objective import PretextConfig
from mim3d.data.batch import BatchNeeds, CropBatch
from mim3d.models.blocks import initialise
from mim3d.models.encoder_input import Crops, Replacement
from mim3d.models.hidden_states import HiddenStates
from mim3d.models.patch_head import head_for
from mim3d.models.vit import VolumeViT
from mim3d.objectives.masked import Masked
from mim3d.objectives.questions import Question
from mim3d.tokens.gather import gather
from mim3d.tokens.masking import is_masked, unmasked


class SimMIM(Masked):
    """SimMIM (arXiv:2111.09886): mask tokens in the encoder, one linear map to voxels.

    Stores `encoder.*`, `mask_token` and `head.*`.

    Args:
        encoder: what is to learn.
        config: the pretext task; none is the defaults.
    """

    needs = BatchNeeds(several_sizes=True)

    def __init__(self, encoder: VolumeViT, config: PretextConfig | None = None) -> None:
        config = config or PretextConfig(name="simmim")
        super().__init__(encoder, config)
        width = encoder.width
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        self.head = head_for(width, self.target.answer, encoder.patch)
        initialise(self.head, encoder.config.initialisation)

    def given(self, batch: CropBatch, question: Question) -> Crops:
        """All tokens, with mask tokens among them; or behind the visible where others leave."""
        split, given = question.split, None
        if self._drops:
            given = unmasked(split)
            visible = split.visible.shape[1]
            hidden = torch.arange(given.visible.shape[1], device=split.visible.device) >= visible
            hidden = hidden.expand(len(split.visible), -1)
        else:
            hidden = is_masked(split, question.cut.crop.grid.n)
        return Crops(
            batch.voxels,
            batch.spacing_mm,
            batch.valid,
            split=given,
            replaced=Replacement(hidden, self.mask_token),
            cut=question.cut,
            shown=question.shown,
        )

    def read(self, states: HiddenStates, question: Question) -> Tensor:
        """Patches at `question.index`, `b q p`, from the states there."""
        last = self.last(states)
        if self._drops:
            # As the tokens went in: those that are asked for are the last.
            last = last[:, last.shape[1] - question.index.shape[1] :]
        else:
            last = gather(last, question.index)
        patches: Tensor = self.head(last, question.cut.crop.grid.patch)
        return patches

    @property
    def _drops(self) -> bool:
        """Whether tokens other than padding take no part."""
        return self.config.drop_air or self.config.drop_ratio > 0
