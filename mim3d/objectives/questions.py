"""What a step of masked image modelling asks: which tokens, what is true there, what it counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mim3d.config.objective import PretextConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.objectives.contrast_masks import masked_share, masks_contrasts, of_voxels
from mim3d.objectives.targets import Look, PatchTarget, Target
from mim3d.tokens.contrasts import Pairs
from mim3d.tokens.gather import gather
from mim3d.tokens.grid import TokenGrid
from mim3d.tokens.masking import Picked, TokenSplit, joined
from mim3d.tokens.patches import CutCrop, PaddedCrop, patchify


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
        weights: `b q t` or broadcast to it, what each value of the target counts; None is all
            alike.
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
        """What all its values count together, a scalar."""
        truth = self.target.values
        if self.weights is None:
            return truth.new_tensor(truth.numel(), dtype=torch.float32)
        return self.weights.expand_as(truth).sum()

    @property
    def masked_share(self) -> Tensor:
        """Of the tokens, or of their contrasts, that take part, a scalar."""
        if self.pairs is not None:
            return masked_share(self.pairs)
        masked, visible = (
            part.new_tensor(part.numel()) if real is None else real.sum()
            for part, real in (
                (self.split.masked, self.split.masked_valid),
                (self.split.visible, self.split.visible_valid),
            )
        )
        return masked / (masked + visible).clamp_min(1)


def ask(
    config: PretextConfig,
    target: Target,
    batch: CropBatch,
    cut: CutCrop,
    split: TokenSplit,
    asked: Picked,
    pairs: Pairs | None = None,
) -> Question:
    """The question about some tokens, with the truth there and the weight of every voxel.

    Args:
        config: the pretext task: its weights.
        target: what is true of a token.
        batch: the crops; what is air in them is known from it.
        cut: the same as patches.
        split: the partition of their tokens.
        asked: those that are to be predicted, beside the visible where these count.
        pairs: what happens to each contrast of each token; None where all channels are one.
    """
    crop, channels = cut.crop, cut.crop.voxels.shape[1]
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
        in_air = _at(is_air(crop.voxels, batch.air), crop.grid, index, channels)
        factors.append(torch.where(in_air, config.air_weight, 1.0))
    weights = math.prod(factors[1:], start=factors[0]) if factors else None

    truth = target.of(Look(cut, index, inside, batch))
    weights = target.weigh(weights, crop.grid.patch)
    return Question(cut, split, index, real, truth, weights, pairs)


def check_decoding(config: PretextConfig) -> None:
    """Refuses settings of what is asked that a pretext task cannot follow.

    Raises:
        ConfigError: naming the setting, before the first step.
    """
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
    has_body = ~is_air(crop.voxels, threshold)
    if crop.valid is not None:
        has_body &= crop.valid
    kept = patchify(has_body[:, None], crop.grid.patch).any(dim=-1)
    every = torch.ones_like(kept) if crop.token_valid is None else crop.token_valid
    return torch.where(kept.sum(dim=1, keepdim=True) < 2, every, kept)


def is_air(voxels: Tensor, threshold: Tensor) -> Tensor:
    """Which of `b c x y z` lie below the threshold `b c` in all channels, `b x y z` bool."""
    return (voxels < threshold[:, :, None, None, None]).all(dim=1)


def _at(voxels: Tensor, grid: TokenGrid, index: Tensor, channels: int) -> Tensor:
    """A map that all channels share, as patches at `index`: `b x y z -> b q (c p)`."""
    return gather(patchify(voxels[:, None], grid.patch), index).repeat(1, 1, channels)
