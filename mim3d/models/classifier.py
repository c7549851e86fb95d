"""The classifier: an encoder, what stands for its volume, and one linear map."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mim3d.foundation.errors import ConfigError
from mim3d.models.encoder_input import Spacing
from mim3d.models.gathering import batch_moments
from mim3d.models.hidden_states import HiddenStates
from mim3d.models.looks import kept_tokens, received, spread
from mim3d.models.vit import VolumeViT
from mim3d.tokens.masking import TokenSplit
from mim3d.tokens.patches import cut_crop

Pool = Literal["mean", "statistics", "class_token"]
KeepBy = Literal["chance", "attention"]
Polarity = Literal["high", "low"]

SMALLEST_VARIANCE = 1e-6
"""Added to variances: a root has no slope at 0."""
FIRST_LOOK = 0x2545F4914F6CDD1D
"""Makes other keys of those of a volume: the second look's draw is independent of the first's."""
MEMORY = 0.95
"""What running means keep of themselves with each update, where nothing else is said."""


class VolumeHead(nn.Module):
    """From hidden states to the outputs of a volume.

    Args:
        width: of a token.
        outputs: of the linear map.
        pool: what stands for a volume (`pooled`).
        dropout: of what is pooled, in training.
        standardises: whether what is pooled is brought to mean 0 and deviation 1 first: in training
            by the batch of all processes (Ioffe and Szegedy, 2015), else by `mean` and `deviation`,
            which follow the batches.
        memory: what these keep of themselves with each update, 0 to below 1. Where weights are
            averaged over steps it is the decay of that average: of nearby weights, the features of
            their mean are about the mean of their features.
        is_fixed: whether `mean` and `deviation` stay and count in training too, as they may where
            the encoder does not learn.

    What all volumes have in common is most of what is pooled, and a step of the encoder moves all
    of them alike; without that norm the map mistakes it for an answer.
    """

    mean: Tensor
    deviation: Tensor
    updates: Tensor

    def __init__(
        self,
        width: int,
        outputs: int,
        *,
        pool: Pool = "mean",
        dropout: float = 0.0,
        standardises: bool = False,
        memory: float = MEMORY,
        is_fixed: bool = False,
    ) -> None:
        super().__init__()
        self.pool, self.standardises = pool, standardises
        self.memory, self.is_fixed = memory, is_fixed
        self._of_batch: tuple[Tensor, Tensor] | None = None
        width = 2 * width if pool == "statistics" else width
        if standardises:
            self.register_buffer("mean", torch.zeros(width))
            self.register_buffer("deviation", torch.ones(width))
            self.register_buffer("updates", torch.zeros(()))
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
        features = pooled(states, self.pool).to(self.linear.weight.dtype)
        with torch.autocast(features.device.type, enabled=False):
            if self.standardises:
                features = self._standardised(features)
            outputs: Tensor = self.linear(self.dropout(features))
        return outputs

    def _standardised(self, features: Tensor) -> Tensor:
        if self.is_fixed or not self.training:
            return (features - self.mean) / self.deviation
        mean, variance = batch_moments(features)
        variance = variance + SMALLEST_VARIANCE
        self._of_batch = mean.detach(), variance.detach()
        return (features - mean) / variance.sqrt()

    @torch.no_grad()
    def follow(self) -> None:
        """Takes in the moments of the last batch: to be called where its step was made.

        The first batch replaces what was there; then they follow as `training.ema` does, which is
        short early on.
        """
        if self._of_batch is None:
            return
        (mean, variance), self._of_batch = self._of_batch, None
        share = 1 - (self.updates / (9 + self.updates)).clamp_max(self.memory).to(mean.dtype)
        self.mean.lerp_(mean, share)
        self.deviation.copy_(torch.lerp(self.deviation.square(), variance, share).sqrt())
        self.updates += 1


def pooled(states: HiddenStates, pool: Pool) -> Tensor:
    """What stands for a volume, `b d` or `b 2d`.

    Args:
        states: of volumes.
        pool: the mean of the valid tokens; that and their standard deviation, which tells how much
            they differ (statistics pooling, Snyder et al., 2017; Okabe et al., arXiv:1803.10963);
            or the class token.
    """
    if pool == "class_token":
        assert states.prefix is not None  # `VolumeClassifier` has looked
        return states.prefix[:, 0]
    return pooled_tokens(states.tokens, states.token_valid, pool)


def pooled_tokens(
    tokens: Tensor, valid: Tensor | None, pool: Literal["mean", "statistics"]
) -> Tensor:
    """As `pooled`, of tokens `b n d`, of which those are `valid`, `b n` bool; None is all."""
    mean = _mean(tokens, valid)
    if pool == "mean":
        return mean
    squares = _mean((tokens - mean[:, None]).square(), valid)
    return torch.cat([mean, (squares + SMALLEST_VARIANCE).sqrt()], dim=1)


def _mean(tokens: Tensor, valid: Tensor | None) -> Tensor:
    """Of the valid ones, `b n d` to `b d`."""
    if valid is None:
        return tokens.mean(dim=1)
    total = torch.where(valid[..., None], tokens, tokens.new_zeros(())).sum(dim=1)
    return total / valid.sum(dim=1, keepdim=True).clamp_min(1)


class Looked(NamedTuple):
    """What a network made of some volumes."""

    outputs: Tensor
    """`b k`."""
    states: HiddenStates
    """Of the tokens that it saw, with the attention of the last block where that was asked for."""
    split: TokenSplit | None
    """Which those are; None is all."""


class VolumeClassifier(nn.Module):
    """Outputs for a whole volume; its weights are named `encoder.*` and `decoder.*`.

    Args:
        encoder: a `VolumeViT`, pre-trained or not.
        outputs: of the last map: classes, labels or numbers.
        pool: what stands for a volume.
        dropout: before the last map, 0 to below 1, in training alone.
        standardises: whether what is pooled is standardised (`VolumeHead`).
        memory: of what it is standardised by.
        is_fixed: whether that stays.
        drop_air: whether callers mark patches without body as padding (`without_air`), and padding
            does not pass the encoder.
        keep: share of the valid tokens that the encoder sees, above 0 to 1, where it is given keys.
        keep_by: `chance` draws them evenly; `attention` by what the caller says they weigh, or out
            of training by the attention of a first look at as many, drawn evenly.
        keep_polarity: `attention`: whether tokens of high weight are seen, or left out.
        keep_at_test: whether it sees only so many out of training too; `chance`: of every window
            the same.

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
        standardises: bool = False,
        memory: float = MEMORY,
        is_fixed: bool = False,
        drop_air: bool = False,
        keep: float = 1.0,
        keep_by: KeepBy = "chance",
        keep_polarity: Polarity = "high",
        keep_at_test: bool = False,
    ) -> None:
        super().__init__()
        if pool == "class_token" and encoder.class_token is None:
            raise no_class_token()
        if not 0 <= dropout < 1:
            raise _beyond("dropout", dropout, "0 to below 1")
        if not 0 < keep <= 1:
            raise _beyond("keep", keep, "above 0 to 1")
        if keep == 1 and (keep_by == "attention" or keep_at_test):
            said = "keep_by attention" if keep_by == "attention" else "keep_at_test true"
            raise ConfigError(
                f"`classification.{said}` is about the tokens that are seen, and all are",
                remedy="say how many, for example `--classification.keep 0.25`",
                code="range",
            )
        if keep_by == "chance" and keep_polarity == "low":
            raise ConfigError(
                "`classification.keep_polarity low` leaves out what attention marks, and "
                "`classification.keep_by` is `chance`",
                remedy="add `--classification.keep_by attention`",
                code="keep",
            )
        self.drop_air = drop_air
        self.keep, self.keep_at_test = keep, keep_at_test
        self.keep_by, self.keep_polarity = keep_by, keep_polarity
        self.encoder = encoder
        self.decoder = VolumeHead(
            encoder.width, outputs, pool=pool, dropout=dropout, standardises=standardises,
            memory=memory, is_fixed=is_fixed,
        )  # fmt: skip

    def forward(
        self,
        voxels: Tensor,
        spacing_mm: Spacing = None,
        valid: Tensor | None = None,
        present: Tensor | None = None,
        *,
        keys: Tensor | None = None,
    ) -> Tensor:
        """Outputs `b k`; takes what `look` takes, but for weights."""
        return self.look(voxels, spacing_mm, valid, present, keys=keys).outputs

    @property
    def queries(self) -> Literal["class_token", "patches"]:
        """Whose attention tells what matters: that of the tokens which the answer is made of.

        A class token that is not pooled is not trained by the answer.
        """
        return "class_token" if self.decoder.pool == "class_token" else "patches"

    def features(
        self, voxels: Tensor, spacing_mm: Spacing = None, valid: Tensor | None = None
    ) -> Tensor:
        """What the last map is given before it is standardised, `b d`; as `forward` else."""
        return pooled(self.look(voxels, spacing_mm, valid).states, self.decoder.pool)

    def look(
        self,
        voxels: Tensor,
        spacing_mm: Spacing = None,
        valid: Tensor | None = None,
        present: Tensor | None = None,
        *,
        keys: Tensor | None = None,
        weights: Tensor | None = None,
        wants_attention: bool = False,
    ) -> Looked:
        """Outputs, and what they were made of.

        Args:
            voxels: `b c x y z`, normalised, any size.
            spacing_mm: `b 3` or three numbers; none takes the encoder's default.
            valid: `b x y z` bool, False at padding; none is all valid.
            present: `b c` bool, which contrasts are there; none is all (`VolumeViT.placed`).
            keys: `b` int64, by which the tokens that are seen are drawn; none sees all of them but
                for `keep_at_test`.
            weights: `b n`, what tokens weigh in that draw; none draws evenly.
            wants_attention: whether the states hold the attention of the last block.
        """
        voxels, shown = self.encoder.placed(voxels, present)
        at_test = keys is None and self.keep_at_test and not self.training
        if at_test:
            # One key for all: an answer must not depend on what passes beside it.
            keys = torch.zeros(len(voxels), dtype=torch.int64, device=voxels.device)
        keep = 1.0 if keys is None else self.keep
        cut = None
        if keep < 1 or (self.drop_air and valid is not None):
            cut = cut_crop(voxels, valid, self.encoder.patch)

        def seen(split: TokenSplit | None, *, wants_attention: bool) -> HiddenStates:
            states: HiddenStates = self.encoder(
                voxels,
                spacing_mm,
                valid=valid,
                split=split,
                cut=cut,
                shown=shown,
                attention_maps=(self.encoder.depth,) if wants_attention else (),
            )
            return states

        split = None
        if cut is not None:
            if keys is None:
                keys = torch.zeros(len(voxels), dtype=torch.int64, device=voxels.device)
            if at_test and self.keep_by == "attention":
                first = kept_tokens(cut, keys ^ FIRST_LOOK, keep)
                noticed = received(seen(first, wants_attention=True), self.queries)
                weights = spread(noticed, first.seen, cut.crop.grid)
            split = kept_tokens(cut, keys, keep, weights, polarity=self.keep_polarity)
        states = seen(split, wants_attention=wants_attention)
        return Looked(self.decoder(states), states, split)


def no_class_token() -> ConfigError:
    """What to raise where a class token is asked for and there is none."""
    return ConfigError(
        "`classification.pool class_token` needs an encoder with a class token",
        remedy="train it with `--encoder.class_token true`, or take `--classification.pool mean`",
        code="class-token",
    )


def _beyond(name: str, value: float, expected: str) -> ConfigError:
    return ConfigError(
        f"`classification.{name}` is {value}, expected {expected}",
        remedy="`mim3d finetune --help` says what it is",
        code="range",
    )
