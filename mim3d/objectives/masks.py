"""Which tokens of a step's crops are masked and which leave: shape x guide x schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from mim3d.config.objective import PretextConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.errors import ConfigError
from mim3d.models.hidden_states import HiddenStates
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment
from mim3d.objectives.guides import check_guide, guide_of, guided_share
from mim3d.objectives.questions import Question, tokens_with_body
from mim3d.objectives.weight_maps import VolumeGrid
from mim3d.tokens.grid import TokenGrid
from mim3d.tokens.masking import TokenSplit, count, split_tokens
from mim3d.tokens.patches import PaddedCrop
from mim3d.tokens.strategies import STRATEGIES, Strategy

DROPPING = ("mae", "simmim")
"""Pretext tasks from which tokens can be dropped."""
_GUIDED = 0x2545F4914F6CDD1D
"""Turns a key into that of the noise under a guide, so that it and the even draw share none."""


@dataclass(frozen=True)
class Guidance:
    """What a guide says of some crops.

    Args:
        weights: `b n`, finite, not negative.
        share: of the masked tokens that it picks, above 0 to 1.
        temperature: as strategies take it.
    """

    weights: Tensor
    share: float
    temperature: float


@dataclass(frozen=True)
class Masking:
    """How the tokens of some crops are split at one step; keys make a split of it.

    Args:
        grid: of the tokens.
        strategy: what is masked together.
        masked: how many of each sample, or of all.
        dropped: likewise.
        placed: `b n` bool, tokens that are not padding, or None where all are: strategies begin at
            the first of them.
        valid: `b n` bool, those that take part, or None where all do.
        guidance: what a guide says; None is no guide.
    """

    grid: TokenGrid
    strategy: Strategy
    masked: int | Sequence[int]
    dropped: int | Sequence[int]
    placed: Tensor | None
    valid: Tensor | None
    guidance: Guidance | None = None

    def split(self, keys: Tensor) -> TokenSplit:
        """A partition of the tokens for keys `b`, int64."""
        return split_tokens(self._scores(keys), self.masked, self.dropped, self.valid)

    def _scores(self, keys: Tensor) -> Tensor:
        guidance = self.guidance
        if guidance is None:
            return self.strategy(self.grid, keys, self.placed)
        guided = self.strategy(
            self.grid, keys ^ _GUIDED, self.placed, guidance.weights, guidance.temperature
        )
        if guidance.share == 1:
            return guided
        even = self.strategy(self.grid, keys, self.placed)
        return even + 2.0 * self._picked(guided, guidance.share)  # even scores are below 2

    def _picked(self, guided: Tensor, share: float) -> Tensor:
        """The tokens that the guide picks: of each sample its share of the masked, `b n` bool."""
        if self.valid is not None:
            guided = guided.masked_fill(~self.valid, -torch.inf)
        masked = [self.masked] * len(guided) if isinstance(self.masked, int) else self.masked
        picks = torch.tensor([count(share, each) for each in masked])
        picks = picks.to(guided.device, non_blocking=True)
        order = guided.argsort(dim=1, descending=True, stable=True)
        is_picked = torch.arange(order.shape[1], device=order.device) < picks[:, None]
        return torch.zeros_like(is_picked).scatter_(1, order, is_picked)


class Masks(nn.Module):
    """Shapes, guide and schedules of a pretext task.

    Outside of training the masks are the same at every step of a run, so that losses compare: the
    first shape, the first ratio, no guide. What is drawn for a step follows from (seed, step)
    alone, equal in all processes and micro-batches.

    Stores `guide.*` of guides that remember.

    Args:
        encoder: whose tokens they are.
        config: the pretext task.

    Raises:
        ConfigError: settings that do not go together or are out of range.
    """

    def __init__(self, encoder: VolumeViT, config: PretextConfig) -> None:
        super().__init__()
        check_masks(config)
        self.config = config
        self.strategies = [
            STRATEGIES[shape](config.mask_unit, config.mask_axis) for shape in shapes(config)
        ]
        self.guide = guide_of(encoder, config)

    def masking(self, batch: CropBatch, crop: PaddedCrop, moment: Moment) -> Masking:
        """How the tokens of these crops are split at this step.

        Args:
            batch: the crops; what is air in them is known from it.
            crop: the same, padded to whole patches.
            moment: where in the run.
        """
        config, placed = self.config, crop.token_valid
        valid = tokens_with_body(crop, batch.air) if config.drop_air else placed
        ratio = ratio_at(config, moment) if self.training else resting_ratio(config)
        masked, dropped = _counts(config, ratio, crop.grid.n, valid)
        guidance = None
        if self.training:
            guidance = self._guidance(batch, crop, moment)
        return Masking(crop.grid, self._strategy(moment), masked, dropped, placed, valid, guidance)

    @property
    def needs_labels(self) -> bool:
        """Whether the guide looks at label maps."""
        return self.guide is not None and self.guide.needs_labels

    def note(self, batch: CropBatch, question: Question, predicted: Tensor, moment: Moment) -> None:
        """Tells the guide what was predicted in training, as `Guide.note`."""
        if self.guide is not None:
            self.guide.note(batch, question, predicted, moment)

    def remember(self, task: nn.Module, grids: Mapping[str, VolumeGrid]) -> None:
        """Tells the guide of the task and the cases, as `Guide.remember`."""
        if self.guide is not None:
            self.guide.remember(task, grids)

    def wants_attention(self, moment: Moment) -> bool:
        """Whether the guide asks for the attention of the last block, as `Guide`."""
        return self.guide is not None and self.guide.wants_attention(moment)

    def note_attention(
        self, batch: CropBatch, split: TokenSplit, states: HiddenStates, moment: Moment
    ) -> None:
        """Tells the guide of it, as `Guide.note_attention`."""
        if self.guide is not None:
            self.guide.note_attention(batch, split, states, moment)

    def after_update(self, task: nn.Module, moment: Moment) -> None:
        """The guide follows the task."""
        if self.guide is not None:
            self.guide.after_update(task, moment)

    def _strategy(self, moment: Moment) -> Strategy:
        if not self.training or len(self.strategies) == 1:
            return self.strategies[0]
        drawn = moment.random.generator(0, "masking").integers(len(self.strategies))
        return self.strategies[int(drawn)]

    @torch.no_grad()
    def _guidance(self, batch: CropBatch, crop: PaddedCrop, moment: Moment) -> Guidance | None:
        guide, share = self.config.guide, guided_share(self.config.guide, moment)
        if self.guide is None or share == 0:
            return None
        weights = self.guide.weights(batch, crop, moment)
        if guide.polarity == "low":
            there = crop.token_valid
            known = weights if there is None else weights.masked_fill(~there, 0.0)
            weights = (known.amax(dim=1, keepdim=True) - weights).clamp_min(0)
        return Guidance(weights, share, guide.temperature)


def shapes(config: PretextConfig) -> tuple[str, ...]:
    """What `objective.masking` names, one or several."""
    return (config.masking,) if isinstance(config.masking, str) else config.masking


def ratio_range(config: PretextConfig) -> tuple[float, float]:
    """The lowest and the highest mask ratio of a run."""
    ratio, end = config.mask_ratio, config.mask_ratio_end
    known = ratio if isinstance(ratio, tuple) else (ratio, ratio if end is None else end)
    return min(known), max(known)


def resting_ratio(config: PretextConfig) -> float:
    """The mask ratio outside of training: `mask_ratio`, or the middle of two."""
    ratio = config.mask_ratio
    return sum(ratio) / 2 if isinstance(ratio, tuple) else ratio


def ratio_at(config: PretextConfig, moment: Moment) -> float:
    """The mask ratio of a training step, drawn or on the way to `mask_ratio_end`."""
    ratio, end = config.mask_ratio, config.mask_ratio_end
    if isinstance(ratio, tuple):
        low, high = ratio
        return low + (high - low) * float(moment.random.generator(0, "mask_ratio").random())
    if end is None:
        return ratio
    return ratio + (end - ratio) * min(1.0, moment.step / max(1, moment.steps - 1))


def check_masks(config: PretextConfig) -> None:
    """Refuses ratios, shapes and guides that do not go together.

    Raises:
        ConfigError: a ratio out of range, shapes that are not known, tokens to drop from a task
            that cannot, two schedules at once, or a guide as `check_guide` says.
    """
    check_guide(config)
    unknown = [shape for shape in shapes(config) if shape not in STRATEGIES]
    if unknown or not shapes(config):
        names = ", ".join(STRATEGIES)
        given = unknown[0] if unknown else "[]"
        raise ConfigError(f"`objective.masking {given}` is not one of {names}", code="masking")
    lowest, highest = ratio_range(config)
    for ratio in (lowest, highest, config.drop_ratio):
        count(ratio, 1, config.rounding)  # refuses a bad one before the first step
    if isinstance(config.mask_ratio, tuple) and config.mask_ratio_end is not None:
        raise ConfigError(
            "`objective.mask_ratio` has two numbers beside `objective.mask_ratio_end`",
            remedy="draw the ratio between two numbers, or move one number to its end",
            code="bad-ratio",
        )
    if highest >= 1:
        raise ConfigError(
            "`objective.mask_ratio` or `objective.mask_ratio_end` reaches 1, which leaves no token "
            "visible",
            remedy="take numbers below 1",
            code="bad-ratio",
        )
    if config.drop_ratio > 0:
        _check_dropping(config, highest)


def _check_dropping(config: PretextConfig, highest: float) -> None:
    if config.name not in DROPPING or config.masks_per_contrast:
        beside = "objective.masks_per_contrast"
        beside = beside if config.masks_per_contrast else f"objective.name {config.name}"
        raise ConfigError(
            f"`objective.drop_ratio` is not for `{beside}`",
            remedy="use `objective.name mae` or `simmim` with one mask for all contrasts, or leave "
            "it out",
            code="bad-ratio",
        )
    if Fraction(str(highest)) + Fraction(str(config.drop_ratio)) >= 1:
        raise ConfigError(
            f"`objective.mask_ratio` {highest} and `objective.drop_ratio` {config.drop_ratio} "
            "leave no token visible",
            remedy="their sum lies below 1",
            code="bad-ratio",
        )


def _counts(
    config: PretextConfig, ratio: float, n: int, valid: Tensor | None
) -> tuple[int | list[int], int | list[int]]:
    """Exact numbers of masked and of dropped tokens, of all samples alike or of each.

    One token stays visible whatever is drawn: a crop that is nearly all padding, or numbers that
    are rounded up together, must not stop a run in its middle.
    """

    def of(have: int) -> tuple[int, int]:
        masked = min(count(ratio, have, config.rounding), max(have - 1, 0))
        rest = max(have - 1 - masked, 0)
        return masked, min(count(config.drop_ratio, have, config.rounding), rest)

    if valid is None:
        # A crop of one token is no bad luck but a setting, which `split_tokens` refuses.
        return of(n) if n > 1 else (count(ratio, n, config.rounding), 0)
    masked, dropped = zip(*map(of, valid.sum(dim=1).tolist()), strict=True)
    return list(masked), list(dropped)
