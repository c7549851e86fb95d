"""Which contrasts of which tokens are masked: wholly for a crop, or each with its own masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mim3d.config.objective import PretextConfig
from mim3d.foundation.errors import ConfigError
from mim3d.models.vit import VolumeViT
from mim3d.tokens.contrasts import Pairs
from mim3d.tokens.gather import gather
from mim3d.tokens.masking import TokenSplit, is_masked, split_tokens

BY_CONTRAST = ("mae", "simmim")
"""Pretext tasks that mask and predict each contrast by itself."""
JOINT_ONLY = ("smit", "autoencoder", "denoising")
"""Pretext tasks that predict all channels of a token and do not ask which are there."""


def masks_contrasts(config: PretextConfig) -> bool:
    """Whether a token that is seen may have contrasts that are not."""
    return config.masks_per_contrast or config.contrast_dropout > 0


def check_contrasts(encoder: VolumeViT, config: PretextConfig) -> None:
    """Refuses settings of contrasts that do not go together.

    Raises:
        ConfigError: a pretext task that knows no contrasts beside an encoder that does, masks by
            contrast without such a task and such an encoder, a probability that is none, or a part
            of the tokens to decode.
    """
    check_dropout(config.contrast_dropout)
    if encoder.contrasts and config.name in JOINT_ONLY:
        raise ConfigError(
            f"`objective.name {config.name}` predicts all channels together and takes no "
            "`encoder.embedding per_contrast`",
            remedy="use `--objective.name mae` or `simmim`, or `--encoder.embedding joint`",
            code="contrasts",
        )
    if not masks_contrasts(config):
        return
    asked = "masks_per_contrast" if config.masks_per_contrast else "contrast_dropout"
    if not encoder.contrasts or config.name not in BY_CONTRAST:
        raise ConfigError(
            f"`objective.{asked}` needs `objective.name mae` or `simmim` and an encoder with a map "
            "for each contrast",
            remedy=f"add `--encoder.embedding per_contrast`, or leave `objective.{asked}` out",
            code="contrasts",
        )
    if config.decode_fraction < 1:
        raise ConfigError(
            f"`objective.decode_fraction` is {config.decode_fraction} beside "
            f"`objective.{asked}`, which needs every token with a masked contrast decoded",
            remedy="leave `objective.decode_fraction` at 1",
            code="contrasts",
        )


def check_dropout(probability: float) -> None:
    """Refuses a `contrast_dropout` that is no probability below 1.

    Raises:
        ConfigError: as said.
    """
    if not 0 <= probability < 1:
        raise ConfigError(
            f"`objective.contrast_dropout` is {probability}, expected 0 to below 1",
            code="contrasts",
        )


def left_out(present: Tensor, chance: Tensor, probability: float) -> Tensor:
    """Contrasts that are left out, `b c` bool: each by itself, but one always stays.

    Args:
        present: `b c` bool.
        chance: `b c`, uniform in [0, 1); of the contrasts that are there the highest stays.
        probability: of each.
    """
    highest = torch.where(present, chance, -1.0).argmax(dim=1, keepdim=True)
    gone = present & (chance < probability)
    return gone.scatter(1, highest, torch.zeros_like(highest, dtype=torch.bool))


def pairs_of(splits: Sequence[TokenSplit], n: int, present: Tensor, gone: Tensor) -> Pairs:
    """What happens to each contrast of each token.

    Args:
        splits: of the tokens, one for every contrast or one for all; the same tokens take part.
        n: number of tokens.
        present: `b c` bool, contrasts that are there.
        gone: `b c` bool, those masked wholly.
    """
    hidden = torch.stack([is_masked(split, n) for split in splits], dim=-1)
    seen = torch.stack([_is_visible(split, n) for split in splits], dim=-1)
    there = (hidden | seen) & present[:, None]
    shown = seen & (present & ~gone)[:, None]
    return Pairs(shown, there & ~shown)


def split_by(pairs: Pairs) -> TokenSplit:
    """The tokens as the encoder sees them: visible with any contrast shown, masked with none."""
    seen = pairs.shown.any(dim=-1)
    hidden = pairs.masked.any(dim=-1) & ~seen
    counts = hidden.sum(dim=1).tolist()
    valid = seen | hidden
    return split_tokens(hidden.float(), counts, valid=None if bool(valid.all()) else valid)


def _is_visible(split: TokenSplit, n: int) -> Tensor:
    counts = split.visible.new_zeros((split.visible.shape[0], n))
    real = torch.ones_like(split.visible)
    if split.visible_valid is not None:
        real = split.visible_valid.long()
    return counts.scatter_add_(1, split.visible, real) > 0


def of_voxels(each: Tensor, index: Tensor, voxels: int) -> Tensor:
    """What is said of every contrast, said of its voxels: `b n c -> b q (c p)` at `index`.

    Args:
        each: `b n c`, numbers or bool.
        index: `b q`, tokens.
        voxels: of one contrast behind a token, p.
    """
    return gather(each, index).repeat_interleave(voxels, dim=-1)


def masked_share(pairs: Pairs) -> Tensor:
    """Of the contrasts of tokens that take part."""
    masked = pairs.masked.sum()
    return masked / (masked + pairs.shown.sum()).clamp_min(1)
