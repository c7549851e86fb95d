"""Autoencoders: every voxel is to be given back, from the crop itself or from one with noise."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mim3d.config.objective import PretextConfig
from mim3d.data.augment import normals
from mim3d.data.batch import CropBatch
from mim3d.foundation.errors import ConfigError
from mim3d.models.blocks import initialise
from mim3d.models.hidden_states import HiddenStates
from mim3d.models.patch_head import head_for
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment, Outcome
from mim3d.objectives.heads import crop_features
from mim3d.objectives.health import embedding_logs
from mim3d.objectives.masked import Masked
from mim3d.objectives.questions import Question, ask
from mim3d.tokens.gather import gather
from mim3d.tokens.masking import TokenSplit
from mim3d.tokens.patches import PaddedCrop, cut_crop


class Autoencoder(Masked):
    """The encoder sees all tokens, one linear map reads every voxel off them.

    Nothing but the width of a token stands in the way of copying: where it is above the voxels of a
    patch the task is trivial. As nothing is masked, ratio, masking, weight of the visible and
    decoder of the config take no part.

    Stores `encoder.*` and `head.*`.

    Args:
        encoder: what is to learn.
        config: the pretext task; none is the defaults.
    """

    def __init__(self, encoder: VolumeViT, config: PretextConfig | None = None) -> None:
        config = config or PretextConfig(name="autoencoder")
        super().__init__(encoder, replace(config, decode_fraction=1.0))
        self.head = head_for(encoder.width, self.target.answer, encoder.patch)
        initialise(self.head, encoder.config.initialisation)

    def forward(  # type: ignore[override]  # of one size: `needs` asks for no more
        self, batch: CropBatch, moment: Moment
    ) -> Outcome:
        """The error of all voxels, averaged by weight; logs signs of life of the pooled features.

        Args:
            batch: crops; labels are not looked at.
            moment: where it takes place; noise follows from it and from the crops' ids.
        """
        question, shown = self.question(batch, moment), self.shown(batch, moment)
        states = self._states(shown)
        outcome = self.judged(self._read(states, question), question, batch, moment)
        logs = {name: outcome.logs[name] for name in ("loss", "mean_predictor")}
        logs |= embedding_logs(crop_features(states))
        if outcome.pictures is None:
            return replace(outcome, logs=logs)
        return replace(outcome, logs=logs, pictures={**outcome.pictures, "masked": _seen(shown)})

    def question(self, batch: CropBatch, moment: Moment) -> Question:
        """Every token that is not padding, as it is in the crop."""
        cut = cut_crop(batch.voxels, batch.valid, self.encoder.patch)
        split = _predict_all(cut.crop)
        return ask(self.config, self.target, batch, cut, split, split.hidden)

    def shown(self, batch: CropBatch, moment: Moment) -> CropBatch:
        """What the encoder sees of the crops: here all of it."""
        return batch

    def predict(self, batch: CropBatch, question: Question) -> Tensor:
        """Patches of the crop that is meant, `b q p`, from the crop that is shown."""
        return self._read(self._states(batch), question)

    def _states(self, batch: CropBatch) -> HiddenStates:
        states: HiddenStates = self.encoder(
            batch.voxels, batch.spacing_mm, valid=batch.valid, taps=self._taps
        )
        return states

    def _read(self, states: HiddenStates, question: Question) -> Tensor:
        patches: Tensor = self.head(gather(self.last(states), question.index))
        return patches


class DenoisingAutoencoder(Autoencoder):
    """The crop is read off one with Gaussian noise on every voxel (Vincent et al., JMLR 2010).

    Args:
        encoder: what is to learn.
        config: the pretext task; `corruption` is the noise's standard deviation in normalised
            units, the same for every channel.

    Raises:
        ConfigError: no noise, or less.
    """

    def __init__(self, encoder: VolumeViT, config: PretextConfig | None = None) -> None:
        config = config or PretextConfig(name="denoising")
        if not config.corruption > 0:
            raise ConfigError(
                f"`objective.corruption` is {config.corruption}, expected more than 0",
                remedy="`objective.name autoencoder` is the task without noise",
                code="range",
            )
        super().__init__(encoder, config)

    def shown(self, batch: CropBatch, moment: Moment) -> CropBatch:
        """The crops with noise, another at every step, the same for one (seed, step, crop)."""
        keys, voxels = moment.keys(batch, "corruption"), batch.voxels.float()
        noise = normals(keys, voxels[0].numel()).view_as(voxels)
        return replace(batch, voxels=torch.add(voxels, noise, alpha=self.config.corruption))


def _predict_all(crop: PaddedCrop) -> TokenSplit:
    """A split in which each token is predicted, though none is hidden; padding weighs nothing."""
    b, n = crop.voxels.shape[0], crop.grid.n
    index = torch.arange(n, device=crop.voxels.device).expand(b, -1)
    return TokenSplit(visible=index[:, :0], masked=index, dropped=index[:, :0])


def _seen(batch: CropBatch) -> Tensor:
    voxels = batch.voxels.detach().float()
    return voxels if batch.valid is None else voxels.masked_fill(~batch.valid[:, None], 0.0)
