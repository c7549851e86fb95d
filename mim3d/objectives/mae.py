"""The masked autoencoder: the encoder sees what is visible, a decoder predicts the rest."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mim3d.config.objective import PretextConfig
from mim3d.data.batch import BatchNeeds, CropBatch
from mim3d.models.encoder_input import Crops
from mim3d.models.hidden_states import HiddenStates
from mim3d.models.mae_decoder import DECODERS, Asking
from mim3d.models.vit import VolumeViT
from mim3d.objectives.masked import Masked
from mim3d.objectives.questions import Question
from mim3d.tokens.masking import Picked


class MaskedAutoencoder(Masked):
    """MAE: the encoder sees visible tokens only, a small transformer predicts masked ones.

    Stores `encoder.*` and `decoder.*`.

    Args:
        encoder: what is to learn.
        config: the pretext task; none is MAE's defaults.
    """

    needs = BatchNeeds(several_sizes=True)

    def __init__(self, encoder: VolumeViT, config: PretextConfig | None = None) -> None:
        config = config or PretextConfig(name="mae")
        super().__init__(encoder, config)
        self.decoder = DECODERS[config.decoder](
            encoder,
            width=config.decoder_width,
            depth=config.decoder_depth,
            heads=config.decoder_heads,
            answer=self.target.answer,
        )

    def given(self, batch: CropBatch, question: Question) -> Crops:
        """The visible tokens alone."""
        return Crops(
            batch.voxels,
            batch.spacing_mm,
            batch.valid,
            split=question.split,
            cut=question.cut,
            shown=question.shown,
        )

    def read(self, states: HiddenStates, question: Question) -> Tensor:
        """Patches decoded from the visible tokens' states, `b q p`."""
        patches: Tensor = self.decoder(states, self.last(states), question.split, question.index)
        return patches

    def read_packed(
        self, states: Sequence[HiddenStates], questions: Sequence[Question]
    ) -> list[Tensor]:
        """What `read` gives for each group, decoded as one sequence; 0 where one is filled up."""
        return self.decoder.forward_packed(
            [
                Asking(seen, self.last(seen), asked.split, Picked(asked.index, asked.real))
                for seen, asked in zip(states, questions, strict=True)
            ]
        )
