"""The classifier: an encoder, what stands for its volume, and one linear map."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mim3d.foundation.errors import ConfigError
from mim3d.models.vit import HiddenStates, Spacing, VolumeViT
from mim3d.tokens.masking import TokenSplit, count, split_tokens
from mim3d.tokens.patches import CutCrop, cut_crop
from mim3d.tokens.strategies import uniform

Pool = Literal["mean", "class_token"]


class VolumeHead(nn.Module):
    """From hidden states to the outputs of a volume.

    Args:
        width: of a token.
        outputs: of the linear map.
        pool: the mean of the valid tokens, or the class token.
        dropout: of what is pooled, in training.
    """

    def __init__(
        self, width: int, outputs: int, *, pool: Pool = "mean", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.pool = pool
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, outputs)
        # Small weights: the first answers are about even, whatever the pooled vector.
        nn.init.trunc_normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, states: HiddenStates) -> Tensor:
        """Outputs `b k` of hidden states, in the weights' precision.

        Under autocast too: of the few digits of bf16 many volumes would have the same answer, and
        their order decides the area under the ROC curve.
        """
        features = self.dropout(pooled(states, self.pool).to(self.linear.weight.dtype))
        with torch.autocast(features.device.type, enabled=False):
            outputs: Tensor = self.linear(features)
        return outputs


def pooled(states: HiddenStates, pool: Pool) -> Tensor:
    """What stands for a volume, `b d`: the mean of its valid tokens, or its class token."""
    if pool == "class_token":
        assert states.prefix is not None  # `VolumeClassifier` has looked
        return states.prefix[:, 0]
    if states.token_valid is None:
        return states.tokens.mean(dim=1)
    valid = states.token_valid[..., None]
    total = torch.where(valid, states.tokens, states.tokens.new_zeros(())).sum(dim=1)
    return total / valid.sum(dim=1).clamp_min(1)


class VolumeClassifier(nn.Module):
    """Outputs for a whole volume; its weights are named `encoder.*` and `decoder.*`.

    Args:
        encoder: a `VolumeViT`, pre-trained or not.
        outputs: of the last map: classes, labels or numbers.
        pool: what stands for a volume.
        dropout: before the last map, 0 to below 1, in training alone.
        keep: share of the valid tokens that the encoder sees, above 0 to 1, where it is given keys.
        keep_at_test: whether it sees only so many out of training too: of every window the same.

    Raises:
        ConfigError: a number that cannot be; or a class token is asked for and there is none.
    """

    def __init__(
        self,
        encoder: VolumeViT,
        outputs: int,
        *,
        pool: Pool = "mean",
        dropout: float = 0.0,
        keep: float = 1.0,
        keep_at_test: bool = False,
    ) -> None:
        super().__init__()
        if pool == "class_token" and encoder.class_token is None:
            raise ConfigError(
                "`classification.pool class_token` needs an encoder with a class token",
                remedy="train it with `--encoder.class_token true`, or take "
                "`--classification.pool mean`",
                code="class-token",
            )
        if not 0 <= dropout < 1:
            raise _beyond("dropout", dropout, "0 to below 1")
        if not 0 < keep <= 1:
            raise _beyond("keep", keep, "above 0 to 1")
        self.keep, self.keep_at_test = keep, keep_at_test
        self.encoder = encoder
        self.decoder = VolumeHead(encoder.width, outputs, pool=pool, dropout=dropout)

    def forward(
        self,
        voxels: Tensor,
        spacing_mm: Spacing = None,
        valid: Tensor | None = None,
        present: Tensor | None = None,
        *,
        keys: Tensor | None = None,
    ) -> Tensor:
        """Outputs `b k`.

        Args:
            voxels: `b c x y z`, normalised, any size.
            spacing_mm: `b 3` or three numbers; none takes the encoder's default.
            valid: `b x y z` bool, False at padding; none is all valid.
            present: `b c` bool, which contrasts are there; none is all (`VolumeViT.placed`).
            keys: `b` int64, by which the tokens that are seen are drawn; none sees all of them but
                for `keep_at_test`.
        """
        if keys is None and self.keep_at_test and not self.training:
            # One key for all: an answer must not depend on what passes beside it.
            keys = torch.zeros(len(voxels), dtype=torch.int64, device=voxels.device)
        voxels, shown = self.encoder.placed(voxels, present)
        cut, split = None, None
        if keys is not None and self.keep < 1:
            cut = cut_crop(voxels, valid, self.encoder.patch)
            split = kept_tokens(cut, keys, self.keep)
        states = self.encoder(voxels, spacing_mm, valid=valid, split=split, cut=cut, shown=shown)
        outputs: Tensor = self.decoder(states)
        return outputs


def kept_tokens(cut: CutCrop, keys: Tensor, keep: float) -> TokenSplit:
    """A draw of the tokens that are seen: `keep` of the valid ones, and one at least; none masked.

    Args:
        cut: the crops.
        keys: `b` int64.
        keep: share, above 0 to 1.
    """
    grid, token_valid = cut.crop.grid, cut.crop.token_valid
    batch = len(keys)
    there = [grid.n] * batch if token_valid is None else token_valid.sum(dim=1).tolist()
    dropped = [have - max(count(keep, have), min(have, 1)) for have in there]
    return split_tokens(uniform(grid, keys, token_valid), 0, dropped, token_valid)


def _beyond(name: str, value: float, expected: str) -> ConfigError:
    return ConfigError(
        f"`classification.{name}` is {value}, expected {expected}",
        remedy="`mim3d finetune --help` says what it is",
        code="range",
    )
