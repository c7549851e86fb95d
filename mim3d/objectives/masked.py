"""Masked image modelling: MAE and SimMIM, two ways to predict what the encoder did not see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mim3d.config.sections import PretextConfig
from mim3d.data.batch import BatchNeeds, CropBatch, CropBatches
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.models.blocks import initialise
from mim3d.models.mae_decoder import DECODERS, Asking
from mim3d.models.patch_head import PatchHead
from mim3d.models.vit import Crops, HiddenStates, Replacement, VolumeViT
from mim3d.objectives.base import Moment, Outcome, Task
from mim3d.objectives.contrast_masks import (
    check_contrasts,
    left_out,
    masked_share,
    masks_contrasts,
    of_voxels,
    pairs_of,
    split_by,
)
from mim3d.objectives.drawn_patches import check_patches, drawn_patch, named
from mim3d.objectives.panels import reconstruction
from mim3d.objectives.targets import PatchTarget, patch_target, voxel_error, weighted_mean
from mim3d.tokens.contrasts import Pairs, spread
from mim3d.tokens.gather import gather
from mim3d.tokens.grid import TokenGrid, Triple
from mim3d.tokens.masking import (
    STRATEGIES,
    Picked,
    Strategy,
    TokenSplit,
    count,
    is_masked,
    joined,
    noise,
    sampled,
    split_tokens,
    unmasked,
)
from mim3d.tokens.patches import CutCrop, PaddedCrop, cut_crop, patchify


@dataclass(frozen=True)
class Question:
    """What one step asks: which tokens of which crops are to be predicted, and what is true there.

    Args:
        cut: the crops as patches.
        split: the partition of the tokens.
        index: `b q`, the tokens that are predicted: the masked or a part of them, behind the
            visible if these count.
        real: `b q` bool, False where a shorter sample is filled up; None where none is.
        target: the truth at those.
        weights: `b q p` or broadcast to it, what each voxel counts; None is all alike.
        pairs: what happens to each contrast of each token; None where all channels are one.
    """

    cut: CutCrop
    split: TokenSplit
    index: Tensor
    real: Tensor | None
    target: PatchTarget
    weights: Tensor | None
    pairs: Pairs | None = None

    @property
    def shown(self) -> Tensor | None:
        """`b n c` bool, the contrasts that the encoder sees; None where all channels are one."""
        return None if self.pairs is None else self.pairs.shown

    @property
    def weight(self) -> Tensor:
        """What all its voxels count together, a scalar."""
        truth = self.target.values
        if self.weights is None:
            return truth.new_tensor(truth.numel(), dtype=torch.float32)
        return self.weights.expand_as(truth).sum()


class Masked(Task):
    """What MAE and SimMIM share: mask, target, weights, loss, logs and pictures.

    A subclass says what the encoder is given and how patches are read off its states.
    """

    needs = BatchNeeds()

    def __init__(self, encoder: VolumeViT, config: PretextConfig) -> None:
        super().__init__()
        if config.masking not in STRATEGIES:
            names = ", ".join(STRATEGIES)
            raise ConfigError(f"`objective.masking {config.masking}` is not one of {names}")
        count(config.mask_ratio, 1, config.rounding)  # refuses a bad ratio before the first step
        _check_decoding(config)
        check_contrasts(encoder, config)
        check_patches(config, encoder.config)
        self.config = config
        self.encoder = encoder
        self.strategy: Strategy = STRATEGIES[config.masking](config.mask_unit)
        if not config.final_norm:
            # It takes no part, and a parameter without gradient stops distributed training.
            encoder.norm.requires_grad_(False)

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

    def states(self, batch: CropBatch, question: Question) -> HiddenStates:
        """Hidden states of what the encoder gets to see."""
        given = self.given(batch, question)
        if self.config.drop_air:
            # Samples keep very different numbers of tokens: packed, none is filled up.
            return self.encoder.forward_packed([given], taps=self._taps)[0]
        states: HiddenStates = self.encoder(
            given.voxels,
            given.spacing_mm,
            valid=given.valid,
            split=given.split,
            replaced=given.replaced,
            cut=given.cut,
            taps=self._taps,
            shown=given.shown,
        )
        return states

    def predict(self, batch: CropBatch, question: Question) -> Tensor:
        """Patches at `question.index`, `b q p`."""
        states = self.states(batch, question)
        if self.config.drop_air:
            return self.read_packed([states], [question])[0]
        return self.read(states, question)

    def forward(self, batch: CropBatch | CropBatches, moment: Moment) -> Outcome:
        """The error of the predicted voxels, averaged by weight.

        Args:
            batch: crops, of one size or of several, which are encoded as one sequence; labels are
                not looked at.
            moment: the keys of the masks follow from it and from the crops' ids.
        """
        if isinstance(batch, CropBatches):
            return self._of_several([self._placed(part) for part in batch.parts], moment)
        batch = self._placed(batch)
        question = self.question(batch, moment)
        return self.judged(self.predict(batch, question), question, batch, moment)

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
        return _averaged(outcomes, [question.weight for question in questions])

    def question(self, batch: CropBatch, moment: Moment) -> Question:
        """What this step asks of these crops."""
        cut = cut_crop(batch.voxels, batch.valid, self._patch(moment))
        split = self._split(cut.crop, self._mask_keys(batch, moment), batch.air)
        pairs = None
        if self.encoder.contrasts:
            pairs = self._pairs(split, batch, cut.crop, moment)
            split = split_by(pairs) if masks_contrasts(self.config) else split
        return self._ask(batch, cut, split, self._asked(split, batch, moment), pairs)

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
        self, split: TokenSplit, batch: CropBatch, crop: PaddedCrop, moment: Moment
    ) -> Pairs:
        """What happens to each contrast of each token; `batch` as `_placed` gives it."""
        splits = [split]
        if self.config.masks_per_contrast:
            # By name, so that no contrast's masks depend on what others there are.
            keys = [moment.keys(batch, f"mask/{name}") for name in self.encoder.contrasts]
            splits = [self._split(crop, each, batch.air) for each in keys]
        assert batch.present is not None
        chance = noise(moment.keys(batch, "contrasts"), self.encoder.channels)
        gone = left_out(batch.present, chance, self.config.contrast_dropout)
        return pairs_of(splits, crop.grid.n, batch.present, gone)

    def judged(
        self, predicted: Tensor, question: Question, batch: CropBatch, moment: Moment
    ) -> Outcome:
        """The error of predicted patches `b q p`."""
        truth, kind = question.target.values, self.config.loss
        loss = weighted_mean(voxel_error(predicted, truth, kind), question.weights)
        logs = {
            "loss": loss.detach(),
            "mean_predictor": mean_predictor(truth, question.weights, kind),
            "masked_share": _masked_share(question),
        }
        if self.config.target == "raw":
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
            question = self._ask(
                batch, question.cut, question.split, question.split.hidden, question.pairs
            )
            with torch.no_grad():
                predicted = self.predict(batch, question)
        return Outcome(loss, logs, self._pictures(batch, question, predicted.detach()))

    def _patch(self, moment: Moment) -> Triple:
        """That of the step; outside of training the encoder's, with which it will be used."""
        if not (self.training and self.config.patches):
            return self.encoder.patch
        return drawn_patch(self.config.patches, moment)

    def _mask_keys(self, batch: CropBatch, moment: Moment) -> Tensor:
        return moment.keys(batch, "mask")

    def _split(self, crop: PaddedCrop, keys: Tensor, air: Tensor | None = None) -> TokenSplit:
        valid, ratio, rounding = crop.token_valid, self.config.mask_ratio, self.config.rounding
        scores = self.strategy(crop.grid, keys, valid, None)
        if self.config.drop_air:
            valid = tokens_with_body(crop, air)
        if valid is None:
            return split_tokens(scores, count(ratio, crop.grid.n, rounding))
        # A crop that is nearly all padding keeps one token visible rather than stop the run.
        there = valid.sum(dim=1).tolist()
        masked = [min(count(ratio, have, rounding), max(have - 1, 0)) for have in there]
        return split_tokens(scores, masked, valid=valid)

    def _asked(self, split: TokenSplit, batch: CropBatch, moment: Moment) -> Picked:
        """The masked tokens, or as large a part of each sample's as is to be decoded."""
        if self.config.decode_fraction == 1:
            return split.hidden
        chance = noise(moment.keys(batch, "decode"), split.masked.shape[1])
        return sampled(split.hidden, chance, self.config.decode_fraction)

    def _ask(
        self,
        batch: CropBatch,
        cut: CutCrop,
        split: TokenSplit,
        asked: Picked,
        pairs: Pairs | None = None,
    ) -> Question:
        config, channels, crop = self.config, self.encoder.channels, cut.crop
        counts = None
        if config.visible_weight > 0 or masks_contrasts(config):
            asked = joined(split.seen, asked)
            counts = torch.ones(asked.index.shape, device=asked.index.device)
            counts[:, : split.visible.shape[1]] = config.visible_weight
        index, real = asked.index, asked.real

        # Weights multiply: of the token or its contrasts, of padding in it, of air in it.
        factors = [] if counts is None else [counts[..., None]]
        there = None
        if pairs is not None:
            voxels = math.prod(crop.grid.patch)
            there = of_voxels(pairs.shown | pairs.masked, index, voxels)
            counted = pairs.masked + config.visible_weight * pairs.shown
            factors = [of_voxels(counted, index, voxels)]
        if real is not None:
            factors.append(real[..., None].float())
        inside = None if crop.valid is None else _at(crop.valid, crop.grid, index, channels)
        if inside is not None:
            factors.append(inside.float())
        if there is not None:
            inside = there if inside is None else inside & there
        if config.air_weight != 1 and batch.air is not None:
            is_air = _at(_air(crop, batch.air), crop.grid, index, channels)
            factors.append(torch.where(is_air, config.air_weight, 1.0))
        weights = math.prod(factors[1:], start=factors[0]) if factors else None

        target = patch_target(gather(cut.patches, index), config.target, inside)
        return Question(cut, split, index, real, target, weights, pairs)

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

    def _last(self, states: HiddenStates) -> Tensor:
        return states.tokens if self.config.final_norm else states.taps[0]

    @property
    def _taps(self) -> tuple[int, ...]:
        return () if self.config.final_norm else (self.encoder.depth,)


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
        patches: Tensor = self.decoder(states, self._last(states), question.split, question.index)
        return patches

    def read_packed(
        self, states: Sequence[HiddenStates], questions: Sequence[Question]
    ) -> list[Tensor]:
        """What `read` gives for each group, decoded as one sequence; 0 where one is filled up."""
        return self.decoder.forward_packed(
            [
                Asking(seen, self._last(seen), asked.split, Picked(asked.index, asked.real))
                for seen, asked in zip(states, questions, strict=True)
            ]
        )


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
        self.head = PatchHead(width, encoder.channels, encoder.patch)
        initialise(self.head, encoder.config.initialisation)

    def given(self, batch: CropBatch, question: Question) -> Crops:
        """All tokens, with mask tokens among them; of those without air, these behind the rest."""
        split, given = question.split, None
        if self.config.drop_air:
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
        last = self._last(states)
        if self.config.drop_air:
            # As the tokens went in: those that are asked for are the last.
            last = last[:, last.shape[1] - question.index.shape[1] :]
        else:
            last = gather(last, question.index)
        patches: Tensor = self.head(last, question.cut.crop.grid.patch)
        return patches


def _check_decoding(config: PretextConfig) -> None:
    if config.drop_air and config.name not in ("mae", "simmim"):
        raise ConfigError(
            f"`objective.drop_air` is not for `objective.name {config.name}`",
            remedy="use `objective.name mae` or `simmim`, or leave it out",
            code="drop-air",
        )
    if not 0 < config.decode_fraction <= 1:
        raise ConfigError(
            f"`objective.decode_fraction` is {config.decode_fraction}, expected above 0 to 1",
            code="bad-fraction",
        )
    is_linear = config.name in ("simmim", "smit")
    if (is_linear or config.decoder == "full") and config.decode_fraction < 1:
        name = f"`objective.name {config.name}`" if is_linear else "`objective.decoder full`"
        raise ConfigError(
            f"{name} predicts every masked token, `objective.decode_fraction` is "
            f"{config.decode_fraction}",
            remedy="use `--objective.decoder cross` with `objective.name mae`, or a fraction of 1",
            code="bad-fraction",
        )


def mean_predictor(truth: Tensor, weights: Tensor | None, kind: str) -> Tensor:
    """The loss of answering with the target's own mean everywhere, a scalar.

    A run whose loss stays there has learnt nothing but that mean.

    Args:
        truth: `b q p`.
        weights: broadcast to it, or None.
        kind: the error, as in `voxel_error`.
    """
    mean = weighted_mean(truth, weights)
    return weighted_mean(voxel_error(mean.expand_as(truth), truth, kind), weights).detach()


def patch_mean_predictor(truth: Tensor, weights: Tensor | None, kind: str) -> Tensor:
    """The loss of answering each patch with its own mean, a scalar: all shape is left out.

    Args:
        truth: `b q p`.
        weights: broadcast to it, or None.
        kind: the error, as in `voxel_error`.
    """
    mean = _patch_means(truth, weights).expand_as(truth)
    return weighted_mean(voxel_error(mean, truth, kind), weights).detach()


def shape_loss(predicted: Tensor, truth: Tensor, weights: Tensor | None, kind: str) -> Tensor:
    """The loss there would be if each patch's mean were told to the network, a scalar.

    A prediction that is flat within every patch comes to `patch_mean_predictor`; below that is who
    knows of shapes. The loss itself says less: it may lie above that level for want of the means,
    which nobody can know of hidden patches.

    Args:
        predicted: `b q p`.
        truth: the same.
        weights: broadcast to it, or None.
        kind: the error, as in `voxel_error`.
    """
    predicted = predicted.detach().float()
    told = predicted + (_patch_means(truth, weights) - _patch_means(predicted, weights))
    return weighted_mean(voxel_error(told, truth, kind), weights)


def _patch_means(values: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of each patch by weight, `b q p -> b q 1`; 0 where no weight is left."""
    each = torch.ones_like(values) if weights is None else weights.expand_as(values)
    total = each.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(each.dtype).tiny)
    return (values * each).sum(dim=-1, keepdim=True) / total


def tokens_with_body(crop: PaddedCrop, threshold: Tensor | None) -> Tensor:
    """Tokens behind which a valid voxel is not air, `b n` bool.

    A crop with fewer than two of them keeps all that are valid: something must be asked.

    Args:
        crop: the crops.
        threshold: `b c`, intensity below which a voxel is air.

    Raises:
        UserError: it is not known.
    """
    if threshold is None:
        raise UserError(
            "`objective.drop_air` is on and the store does not know what is air in some case",
            remedy="leave `objective.drop_air` out, or prepare the cohort again",
            code="no-air",
        )
    has_body = ~_air(crop, threshold)
    if crop.valid is not None:
        has_body &= crop.valid
    kept = patchify(has_body[:, None], crop.grid.patch).any(dim=-1)
    every = torch.ones_like(kept) if crop.token_valid is None else crop.token_valid
    return torch.where(kept.sum(dim=1, keepdim=True) < 2, every, kept)


def _air(crop: PaddedCrop, threshold: Tensor) -> Tensor:
    """Voxels all of whose channels lie below their thresholds, `b x y z` bool."""
    return (crop.voxels < threshold[:, :, None, None, None]).all(dim=1)


def _at(voxels: Tensor, grid: TokenGrid, index: Tensor, channels: int) -> Tensor:
    """A map that all channels share, as patches at `index`: `b x y z -> b q (c p)`."""
    return gather(patchify(voxels[:, None], grid.patch), index).repeat(1, 1, channels)


def _masked_share(question: Question) -> Tensor:
    """Of the tokens, or of their contrasts, that take part."""
    if question.pairs is not None:
        return masked_share(question.pairs)
    split = question.split
    masked, visible = (
        part.new_tensor(part.numel()) if real is None else real.sum()
        for part, real in (
            (split.masked, split.masked_valid),
            (split.visible, split.visible_valid),
        )
    )
    return masked / (masked + visible).clamp_min(1)


def _averaged(outcomes: Sequence[Outcome], weights: Sequence[Tensor]) -> Outcome:
    """One outcome of several, by weight, with the pictures of the first."""
    shares = torch.stack(list(weights))
    shares = shares / shares.sum().clamp_min(torch.finfo(shares.dtype).tiny)

    def mean(values: Sequence[Tensor]) -> Tensor:
        return (torch.stack(list(values)) * shares).sum()

    first = outcomes[0]
    logs = {name: mean([one.logs[name] for one in outcomes]) for name in first.logs}
    return Outcome(mean([one.loss for one in outcomes]), logs, first.pictures)
