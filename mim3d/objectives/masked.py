"""Masked image modelling: what MAE and SimMIM share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mim3d.config.objective import PretextConfig
from mim3d.data.batch import BatchNeeds, CropBatch, CropBatches
from mim3d.models.encoder_input import Crops
from mim3d.models.hidden_states import HiddenStates
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment, Outcome, Task
from mim3d.objectives.contrast_masks import (
    check_contrasts,
    left_out,
    masks_contrasts,
    pairs_of,
    split_by,
)
from mim3d.objectives.drawn_patches import check_patches, drawn_patch, named
from mim3d.objectives.levels import (
    mean_predictor,
    number_mean_predictor,
    patch_mean_predictor,
    shape_loss,
)
from mim3d.objectives.masks import Masking, Masks
from mim3d.objectives.panels import reconstruction
from mim3d.objectives.questions import Question, ask, check_decoding
from mim3d.objectives.supervision import supervision
from mim3d.objectives.targets import make_target, voxel_error, weighted_mean
from mim3d.objectives.weight_maps import VolumeGrid
from mim3d.tokens.contrasts import Pairs, spread
from mim3d.tokens.grid import Triple
from mim3d.tokens.masking import Picked, TokenSplit, is_masked, noise, sampled
from mim3d.tokens.patches import cut_crop


class Masked(Task):
    """What MAE and SimMIM share: mask, target, weights, loss, logs and pictures.

    A subclass says what the encoder is given and how patches are read off its states.

    Stores `masks.guide.*` of guides that learn, `target.teacher.*` where a teacher's features are
    predicted, and `supervision.*` where a target is named.
    """

    needs = BatchNeeds()

    def __init__(self, encoder: VolumeViT, config: PretextConfig) -> None:
        super().__init__()
        check_decoding(config)
        check_contrasts(encoder, config)
        check_patches(config, encoder.config)
        self.config = config
        self.encoder = encoder
        self.target = make_target(encoder, config)
        self.masks = Masks(encoder, config)
        if self.masks.needs_labels:
            self.needs = replace(self.needs, labels=True)
        if config.guide.by == "attention":
            # Several sizes are packed, and packed attention leaves no weights behind.
            self.needs = replace(self.needs, several_sizes=False)
        self.supervision = supervision(encoder, config)
        if self.supervision is not None:
            self.needs = replace(self.needs, targets=(self.supervision.target,))
        if not config.final_norm:
            # It takes no part, and a parameter without gradient stops distributed training.
            encoder.norm.requires_grad_(False)

    def remember(self, grids: Mapping[str, VolumeGrid]) -> None:
        """Makes room for what is learnt of places in volumes; before training, once.

        Args:
            grids: of every case that crops can come from, by id.
        """
        self.masks.remember(self, grids)

    def given(self, batch: CropBatch, question: Question) -> Crops:
        """What the encoder gets to see."""
        raise NotImplementedError

    def read(self, states: HiddenStates, question: Question) -> Tensor:
        """Patches at `question.index`, `b q p`, from the states of what it saw."""
        raise NotImplementedError

    def read_packed(
        self, states: Sequence[HiddenStates], questions: Sequence[Question]
    ) -> list[Tensor]:
        """What `read` gives for each of several groups of crops that were encoded as one."""
        return [self.read(seen, asked) for seen, asked in zip(states, questions, strict=True)]

    def states(
        self, batch: CropBatch, question: Question, *, wants_attention: bool = False
    ) -> HiddenStates:
        """Hidden states of what the encoder gets to see, perhaps with its last attention."""
        given = self.given(batch, question)
        if self.config.drop_air and not wants_attention:
            # Samples keep very different numbers of tokens: packed, none is filled up. Packed
            # attention leaves no weights behind, though.
            return self.encoder.forward_packed([given], taps=self._taps)[0]
        states: HiddenStates = self.encoder(
            given.voxels,
            given.spacing_mm,
            valid=given.valid,
            split=given.split,
            replaced=given.replaced,
            cut=given.cut,
            taps=self._taps,
            attention_maps=(self.encoder.depth,) if wants_attention else (),
            shown=given.shown,
        )
        return states

    def noted_states(self, batch: CropBatch, question: Question, moment: Moment) -> HiddenStates:
        """As `states`; the guide of the masks is told of the attention, where it wants that."""
        wants_attention = self.training and self.masks.wants_attention(moment)
        states = self.states(batch, question, wants_attention=wants_attention)
        if wants_attention:
            self.masks.note_attention(batch, question.split, states, moment)
        return states

    def predict(self, batch: CropBatch, question: Question) -> Tensor:
        """Patches at `question.index`, `b q p`."""
        return self._read(self.states(batch, question), question)

    def _read(self, states: HiddenStates, question: Question) -> Tensor:
        if self.config.drop_air:
            return self.read_packed([states], [question])[0]
        return self.read(states, question)

    def forward(self, batch: CropBatch | CropBatches, moment: Moment) -> Outcome:
        """The error of the predicted voxels, averaged by weight.

        Args:
            batch: crops, of one size or of several, which are encoded as one sequence.
            moment: the keys of the masks follow from it and from the crops' ids.
        """
        if isinstance(batch, CropBatches):
            return self._of_several([self._placed(part) for part in batch.parts], moment)
        batch = self._placed(batch)
        question = self.question(batch, moment)
        states = self.noted_states(batch, question, moment)
        outcome = self.judged(self._read(states, question), question, batch, moment)
        return self._supervised(outcome, [states], [batch])

    def _supervised(
        self, outcome: Outcome, states: Sequence[HiddenStates], batches: Sequence[CropBatch]
    ) -> Outcome:
        """With the supervised term, in training: what judges is the reconstruction alone."""
        if self.supervision is None or not self.training:
            return outcome
        return self.supervision.added(outcome, states, batches)

    def _of_several(self, parts: Sequence[CropBatch], moment: Moment) -> Outcome:
        """The same numbers as of all crops padded to one size; pictures of the first size."""
        questions = [self.question(part, moment) for part in parts]
        given = [self.given(part, q) for part, q in zip(parts, questions, strict=True)]
        states = self.encoder.forward_packed(given, taps=self._taps)
        predicted = self.read_packed(states, questions)
        outcomes = []
        for part, question, patches in zip(parts, questions, predicted, strict=True):
            outcomes.append(self.judged(patches, question, part, moment))
            moment = replace(moment, wants_pictures=False)
        outcome = _averaged(outcomes, [question.weight for question in questions])
        return self._supervised(outcome, states, parts)

    def question(self, batch: CropBatch, moment: Moment) -> Question:
        """What this step asks of these crops."""
        cut = cut_crop(batch.voxels, batch.valid, self._patch(moment))
        masking = self.masks.masking(batch, cut.crop, moment)
        split = masking.split(self._mask_keys(batch, moment))
        pairs = None
        if self.encoder.contrasts:
            pairs = self._pairs(split, masking, batch, moment)
            split = split_by(pairs) if masks_contrasts(self.config) else split
        asked = self._asked(split, batch, moment)
        return ask(self.config, self.target, batch, cut, split, asked, pairs)

    def _placed(self, batch: CropBatch) -> CropBatch:
        """With a channel for each contrast the encoder knows; where there is none, all is air."""
        if not self.encoder.contrasts:
            return batch
        voxels, shown = self.encoder.placed(batch.voxels, batch.present)
        assert shown is not None
        present, air = shown[:, 0], batch.air
        if air is not None:
            air = spread(air, self.encoder.places, self.encoder.channels)
            air = torch.where(present, air, torch.inf)
        return replace(batch, voxels=voxels, present=present, air=air)

    def _pairs(
        self, split: TokenSplit, masking: Masking, batch: CropBatch, moment: Moment
    ) -> Pairs:
        """What happens to each contrast of each token; `batch` as `_placed` gives it."""
        splits = [split]
        if self.config.masks_per_contrast:
            # By name, so that no contrast's masks depend on what others there are.
            keys = [moment.keys(batch, f"mask/{name}") for name in self.encoder.contrasts]
            splits = [masking.split(each) for each in keys]
        assert batch.present is not None
        chance = noise(moment.keys(batch, "contrasts"), self.encoder.channels)
        gone = left_out(batch.present, chance, self.config.contrast_dropout)
        return pairs_of(splits, masking.grid.n, batch.present, gone)

    def judged(
        self, predicted: Tensor, question: Question, batch: CropBatch, moment: Moment
    ) -> Outcome:
        """The error of what was predicted, `b q t`."""
        if self.training:
            self.masks.note(batch, question, predicted.detach(), moment)
        truth, kind = question.target.values, self.config.loss
        # A coefficient or a bin has a mean of its own; that of a place in a patch says nothing.
        by_mean = mean_predictor if self.target.answer.by_voxel else number_mean_predictor
        loss = weighted_mean(voxel_error(predicted, truth, kind), question.weights)
        logs = {
            "loss": loss.detach(),
            "mean_predictor": by_mean(truth, question.weights, kind),
            "masked_share": question.masked_share,
        }
        if self.target.is_like_voxels:
            # Of normalised patches it is the mean predictor itself.
            each = patch_mean_predictor(truth, question.weights, kind)
            logs["patch_mean_predictor"] = each
            logs["shape_loss"] = shape_loss(predicted, truth, question.weights, kind)
        if self.training and self.config.patches:
            # The log's means of a stretch are then of each size by itself as well.
            logs[f"loss_{named(question.cut.crop.grid.patch)}"] = logs["loss"]
        if not moment.wants_pictures:
            return Outcome(loss, logs)
        if self.config.decode_fraction < 1:
            question = ask(
                self.config,
                self.target,
                batch,
                question.cut,
                question.split,
                question.split.hidden,
                question.pairs,
            )
            with torch.no_grad():
                predicted = self.predict(batch, question)
        return Outcome(loss, logs, self._pictures(batch, question, predicted.detach()))

    def after_update(self, moment: Moment) -> None:
        """The target's teacher follows, and the masks' guide, where there is one."""
        self.target.after_update(self.encoder, moment)
        self.masks.after_update(self, moment)

    def _patch(self, moment: Moment) -> Triple:
        """That of the step; outside of training the encoder's, with which it will be used."""
        if not (self.training and self.config.patches):
            return self.encoder.patch
        return drawn_patch(self.config.patches, moment)

    def _mask_keys(self, batch: CropBatch, moment: Moment) -> Tensor:
        return moment.keys(batch, "mask")

    def _asked(self, split: TokenSplit, batch: CropBatch, moment: Moment) -> Picked:
        """The masked tokens, or as large a part of each sample's as is to be decoded."""
        if self.config.decode_fraction == 1:
            return split.hidden
        chance = noise(moment.keys(batch, "decode"), split.masked.shape[1])
        return sampled(split.hidden, chance, self.config.decode_fraction)

    def _pictures(
        self, batch: CropBatch, question: Question, predicted: Tensor
    ) -> dict[str, Tensor]:
        crop, index = question.cut.crop, question.index
        n = crop.grid.n
        if question.real is not None:
            index = torch.where(question.real, index, n)
        voxels = question.target.to_voxels(predicted.float())
        masked = is_masked(question.split, n)
        if question.pairs is not None:
            masked = question.pairs.masked.repeat_interleave(math.prod(crop.grid.patch), dim=-1)
        return reconstruction(crop, masked, index, voxels, batch.spacing_mm)

    def last(self, states: HiddenStates) -> Tensor:
        """The states that answers are read from, `b n d`: behind the final norm, or before it."""
        return states.tokens if self.config.final_norm else states.taps[0]

    @property
    def _taps(self) -> tuple[int, ...]:
        return () if self.config.final_norm else (self.encoder.depth,)


def _averaged(outcomes: Sequence[Outcome], weights: Sequence[Tensor]) -> Outcome:
    """One outcome of several, by weight, with the pictures of the first."""
    shares = torch.stack(list(weights))
    shares = shares / shares.sum().clamp_min(torch.finfo(shares.dtype).tiny)

    def mean(values: Sequence[Tensor]) -> Tensor:
        return (torch.stack(list(values)) * shares).sum()

    first = outcomes[0]
    logs = {name: mean([one.logs[name] for one in outcomes]) for name in first.logs}
    return Outcome(mean([one.loss for one in outcomes]), logs, first.pictures)
