"""What a fine-tuning minimises, and what stands on the encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SegmentationConfig:
    """The supervised task: a class, or overlapping regions, for every voxel."""

    loss: Literal["dice_ce", "dice", "dice_focal", "tversky", "generalised_dice"] = "dice_ce"
    """Dice with cross-entropy (closed form), Dice alone, or MONAI's loss of that name."""
    squared: bool = False
    """Squares in the denominator of Dice."""
    smooth_numerator: float = 1e-5
    """Added to the numerator of Dice."""
    smooth_denominator: float = 1e-5
    """Added to the denominator of Dice."""
    batch_dice: bool = False
    """Sum over the batch before the quotient is taken."""
    include_background: bool = True
    """Whether class 0 counts in Dice."""
    contrast_dropout: float = 0.0
    """With `encoder.embedding per_contrast`: probability, 0 to below 1, that a contrast of a
    training crop is left out, so that the decoder too learns to do without; one always stays."""
    regions: str | None = None
    """Scheme of overlapping regions with a sigmoid each, for example `brats2021`; none is one class
    a voxel with a softmax. `docs/reference.md` lists the schemes."""


@dataclass(frozen=True)
class ClassificationConfig:
    """The tasks of whole volumes: a class, or a number, for each."""

    target: str | tuple[str, ...] | None = None
    """Which of the store's targets, or several, as a list or parted by commas; none takes the
    store's only one."""
    loss: Literal["ce", "bce", "l1", "l2", "smooth_l1"] | None = None
    """Classes: `ce` is a softmax over those of each target; `bce` a sigmoid for each target, of
    which several may be true at once (0 and 1 alone). Numbers: error in deviations of the training
    cases. None is `ce` or `smooth_l1`."""
    pool: Literal["mean", "statistics", "class_token"] = "mean"
    """What stands for a volume: the mean of its tokens; that and their standard deviation, which
    tells how much they differ; or the class token, which the encoder must have."""
    norm: Literal["none", "batch"] = "none"
    """Whether that is standardised before the last linear map: in training by the batch, of two
    crops or more on all devices together, in prediction by what training went through."""
    start: Literal["random", "linear"] = "random"
    """Where the last map starts: at random; or from a linear probe of the initial encoder, fitted
    before the first step to the training volumes as they are predicted, by windows and mirrors."""
    dropout: float = 0.0
    """Dropout of that before the last linear map, in training only, 0 to below 1."""
    label_smoothing: float = 0.0
    """Share of each label that is spread evenly over all classes, 0 to below 1."""
    mixup: float = 0.0
    """Above 0, crops are blended with others of their step, voxels and targets alike, by shares
    from the Beta distribution with both parameters this (arXiv:1710.09412); 0.2 is usual."""
    class_weights: Literal["none", "balanced"] | tuple[float, ...] = "none"
    """Weight of each class in the loss: all 1; inversely to how many training cases have it; or
    these, in the order of the classes."""
    drop_air: bool = False
    """Leave patches without any body out of the encoder, in training and in prediction, as if they
    were padding: most of a shape's frame, and of a scan's, says nothing."""
    keep: float = 1.0
    """Share of the tokens that the encoder sees of a training crop, drawn anew each time; with
    `drop_air`, of those that hold body."""
    keep_by: Literal["chance", "attention"] = "chance"
    """Which those are: any; or a draw by the attention that the last block paid to their place
    (MSMAE), which training keeps in a map of each volume."""
    keep_polarity: Literal["high", "low"] = "high"
    """`keep_by: attention`: see tokens in proportion to it, or leave them out in proportion to it,
    which sees what is attended to least, as MSMAE's released code."""
    keep_at_test: bool = False
    """See only so many when predicting too: the same places of every window; by `attention` those
    that a first look at as many, drawn evenly, finds, which costs twice."""


DecoderName = Literal["unetr", "half", "interpolate", "hybrid", "light"]


@dataclass(frozen=True)
class DecoderConfig:
    """From hidden states to logits."""

    name: DecoderName = "unetr"
    """`unetr` is UNETR's decoder with skips up to full resolution; `half` ends skips and
    convolutions at half resolution; `interpolate` is `unetr` with trilinear interpolation and
    convolutions in place of transposed ones; `hybrid` adds a small convolutional path for the raw
    voxels down to the token grid; `light` has no skips and no raw voxels."""
    taps: tuple[int, int, int, int] | None = None
    """Blocks passed where hidden states are taken; none is L/4, L/2, 3L/4, L."""
    tap_norm: Literal["none", "layer"] = "layer"
    """LayerNorm on the inner taps, or the residual stream as it is (as published)."""
    feature_size: int = 16
    """Channels at full resolution; doubled at each level."""
    dropout: float = 0.0
    """Dropout of whole channels before the logits, in training only."""
    direct: Literal["none", "random", "ridge", "linear"] = "none"
    """A linear path from the last hidden states to logits beside the decoder. It starts at random,
    or from a probe that is fitted to the labels before the first step: `ridge` in closed form,
    `linear` from there on cross-entropy and Dice. Fine-tunings have `linear` where nothing is said,
    networks of one's own have none."""
    deep_supervision: int = 0
    """Coarser levels of `unetr`, `half` and `interpolate` that are trained on the labels too, each
    with half the weight of the level above it; they take no part in prediction."""


def from_a_probe(name: DecoderName = "unetr") -> DecoderConfig:
    """The default of trainings, which start from a linear probe of what the encoder knows."""
    return DecoderConfig(name=name, direct="linear")
