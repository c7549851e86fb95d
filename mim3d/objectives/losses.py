"""Dice with cross-entropy in closed form, and MONAI's further losses by name.

The closed form keeps one tensor for the backward pass (the probabilities) and never makes a
one-hot map. With probabilities `p`, labels `t`, intersections `I_c = sum p_c t_c` and sums
`D_c = sum p_c + sum t_c` (squares: `sum p_c^2 + sum t_c`) over the valid voxels of a sample (or of
the batch), over n pairs of sample and class,

    Dice = 1/n sum_c 1 - (2 I_c + s_n) / (D_c + s_d)        (Milletari et al., arXiv:1606.04797)
    a_c = (2 I_c + s_n) / (D_c + s_d)^2 / n,    b_c = -2 / (D_c + s_d) / n
    dDice/dp_c = a_c (squares: 2 a_c p_c) + b_c t_c

and the chain through softmax or sigmoid is written out below. Values and gradients are those of
`monai.losses.DiceCELoss` and `DiceLoss`, computed in float32 whatever autocast says.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mim3d.data.classes import IGNORE_INDEX
from mim3d.foundation.errors import ShapeError, check_shape


@dataclass(frozen=True)
class DiceOptions:
    """How Dice is counted; the names are `SegmentationConfig`'s.

    Args:
        squared: squares in the denominator.
        smooth_numerator: `s_n`.
        smooth_denominator: `s_d`.
        batch_dice: sum over the batch before the quotient.
        include_background: whether channel 0 counts; with one channel it always does.
        cross_entropy: weight of the cross-entropy beside 1 for Dice.
    """

    squared: bool = False
    smooth_numerator: float = 1e-5
    smooth_denominator: float = 1e-5
    batch_dice: bool = False
    include_background: bool = True
    cross_entropy: float = 1.0


@dataclass(frozen=True)
class Overlap:
    """What a step tells about overlap, at no further cost: sums over the batch, detached.

    Args:
        intersection: `k`, `sum p t`.
        predicted: `k`, `sum p`.
        labelled: `k`, `sum t`.
    """

    intersection: Tensor
    predicted: Tensor
    labelled: Tensor

    def __add__(self, other: Overlap) -> Overlap:
        """Sums over both batches."""
        return Overlap(
            self.intersection + other.intersection,
            self.predicted + other.predicted,
            self.labelled + other.labelled,
        )

    def dice(self, *, skip_first: bool) -> Tensor:
        """Soft Dice, mean over the channels that are labelled in the batch; NaN if none is."""
        dice = 2 * self.intersection / (self.predicted + self.labelled).clamp_min(1e-12)
        dice = torch.where(self.labelled > 0, dice, torch.nan)
        return dice[int(skip_first) :].nanmean()


def dice_ce(
    logits: Tensor, labels: Tensor, options: DiceOptions, valid: Tensor | None = None
) -> tuple[Tensor, Overlap]:
    """Softmax Dice plus cross-entropy of one class a voxel.

    Args:
        logits: `b k x y z`, two channels or more.
        labels: `b x y z`, class indices; `IGNORE_INDEX` takes no part.
        options: how Dice is counted.
        valid: `b x y z`, False where a voxel takes no part, or None.

    Returns:
        The loss, a scalar (0 where no voxel takes part and nothing is smoothed), and the overlap.
    """
    check_shape(logits, "b k x y z", "dice_ce")
    if logits.shape[1] < 2 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise ShapeError(
            f"dice_ce expects logits `b k x y z` with k > 1 and labels `b x y z`, got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    counted = labels != IGNORE_INDEX
    if valid is not None:
        counted = counted & valid
    labels = torch.where(counted, labels, 0).long().flatten(1)
    loss, *sums = _SoftmaxDiceCE.apply(  # type: ignore[no-untyped-call]
        logits.float().flatten(2), labels, counted.flatten(1), options
    )
    return loss, Overlap(*sums)


def dice_ce_regions(
    logits: Tensor, regions: Tensor, options: DiceOptions, valid: Tensor | None = None
) -> tuple[Tensor, Overlap]:
    """Sigmoid Dice plus cross-entropy of regions that may overlap.

    The cross-entropy is that of MONAI's `DiceCELoss(sigmoid=True)`: with several channels the
    softmax cross-entropy against the multi-hot regions, with one channel the binary one.

    Args:
        logits: `b k x y z`.
        regions: `b k x y z` bool.
        options: how Dice is counted.
        valid: `b x y z`, False where a voxel takes no part, or None.

    Returns:
        The loss, a scalar, and the overlap.
    """
    check_shape(logits, "b k x y z", "dice_ce_regions")
    if regions.shape != logits.shape:
        raise ShapeError(
            f"dice_ce_regions expects regions of the logits' shape {tuple(logits.shape)}, got "
            f"{tuple(regions.shape)}"
        )
    if valid is None:
        valid = torch.ones_like(regions[:, 0])
    loss, *sums = _SigmoidDiceCE.apply(  # type: ignore[no-untyped-call]
        logits.float().flatten(2), regions.flatten(2), valid.flatten(1), options
    )
    return loss, Overlap(*sums)


class _SoftmaxDiceCE(torch.autograd.Function):
    """Logits `b k v` float32, labels `b v` int64, counted `b v` bool."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, counted: Tensor, options: DiceOptions
    ) -> tuple[Tensor, ...]:
        p = torch.softmax(logits, 1)
        # On an accelerator looking would wait for the device.
        everywhere = counted.device.type == "cpu" and bool(counted.all())
        at_label = p.gather(1, labels.unsqueeze(1)).squeeze(1)
        intersection, labelled = _by_class(labels, (at_label * counted, counted), p.shape[1])
        masked = p if everywhere else p * counted.unsqueeze(1)
        predicted = masked.sum(2)
        norm = masked.square().sum(2) if options.squared else predicted

        dice, a, b = _dice(intersection, norm + labelled, options)
        count = counted.sum().clamp_min(1).float()
        # log sum exp = x - log p at the likeliest class, whose p never underflows.
        log_sum = logits.amax(1) - p.amax(1).log()
        surprise = log_sum - logits.gather(1, labels.unsqueeze(1)).squeeze(1)
        entropy = torch.where(counted, surprise, 0).sum() / count

        ctx.save_for_backward(p, labels, counted, a, b, count)
        ctx.options, ctx.everywhere = options, everywhere
        sums = [total.sum(0) for total in (intersection, predicted, labelled)]
        ctx.mark_non_differentiable(*sums)
        return (dice + options.cross_entropy * entropy, *sums)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor, None, None, None]:
        p, labels, counted, a, b, count = ctx.saved_tensors
        weight = incoming[0] * ctx.options.cross_entropy / count
        a, b = (a * incoming[0]).unsqueeze(1), b * incoming[0]
        # With g = dDice/dp: dDice/dx_j = p_j (g_j - sum_k p_k g_k), where the label adds b_y;
        # the cross-entropy adds weight (p - t).
        at_label = (p.gather(1, labels.unsqueeze(1))).mul_(b.gather(1, labels).unsqueeze(1))
        with torch.autocast(p.device.type, enabled=False):
            if ctx.options.squared:
                squares = p.square()
                mean = torch.bmm(2 * a, squares).add_(at_label)
                gradient = squares.mul_(2 * a.mT).addcmul_(p, weight - mean)
            else:
                mean = torch.bmm(a, p).add_(at_label)
                gradient = (a.mT + weight - mean).mul_(p)
        gradient.scatter_add_(1, labels.unsqueeze(1), at_label - weight)
        if not ctx.everywhere:
            gradient.masked_fill_(~counted.unsqueeze(1), 0)
        return gradient, None, None, None


class _SigmoidDiceCE(torch.autograd.Function):
    """Logits `b k v` float32, regions `b k v` bool, counted `b v` bool."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, regions: Tensor, counted: Tensor, options: DiceOptions
    ) -> tuple[Tensor, ...]:
        p = torch.sigmoid(logits)
        inside = regions & counted.unsqueeze(1)
        masked = p * counted.unsqueeze(1)
        labelled = inside.sum(2).float()
        intersection = (p * inside).sum(2)
        predicted = masked.sum(2)
        norm = masked.square().sum(2) if options.squared else predicted

        dice, a, b = _dice(intersection, norm + labelled, options)
        count = counted.sum().clamp_min(1).float()
        at_regions = (logits * inside).sum()
        if logits.shape[1] == 1:
            entropy = (F.softplus(logits) * counted.unsqueeze(1)).sum() - at_regions
        else:
            entropy = (torch.logsumexp(logits, 1) * inside.sum(1)).sum() - at_regions
        ctx.save_for_backward(logits, p, inside, counted, a, b, count)
        ctx.options = options
        sums = [total.sum(0) for total in (intersection, predicted, labelled)]
        ctx.mark_non_differentiable(*sums)
        return (dice + options.cross_entropy * entropy / count, *sums)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor, None, None, None]:
        logits, p, inside, counted, a, b, count = ctx.saved_tensors
        weight = incoming[0] * ctx.options.cross_entropy / count
        a, b = (a * incoming[0]).unsqueeze(2), (b * incoming[0]).unsqueeze(2)
        g = (a * (2 * p) if ctx.options.squared else a) + b * inside
        gradient = g * p * (1 - p)
        if logits.shape[1] == 1:
            gradient += weight * (p - inside.float())
        else:
            shares = torch.softmax(logits, 1) * inside.sum(1, keepdim=True)
            gradient += weight * (shares - inside.float())
        return gradient.masked_fill_(~counted.unsqueeze(1), 0), None, None, None


def _by_class(labels: Tensor, values: tuple[Tensor, ...], classes: int) -> tuple[Tensor, ...]:
    """Sums of each `b v` of values over the voxels of each class, `b k` float32."""
    # float64: a float32 counter that adds ones sticks at 2^24.
    empty = torch.zeros((len(labels), classes), dtype=torch.float64, device=labels.device)
    return tuple(empty.scatter_add(1, labels, value.double()).float() for value in values)


def _dice(
    intersection: Tensor, total: Tensor, options: DiceOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Dice loss of `b k` sums, and `a`, `b` of the module's formulas, `b k`."""
    samples = intersection.shape[0]
    if options.batch_dice:
        intersection = intersection.sum(0, keepdim=True)
        total = total.sum(0, keepdim=True)
    numerator = 2 * intersection + options.smooth_numerator
    denominator = total + options.smooth_denominator
    counts = torch.ones_like(numerator)
    if not options.include_background and counts.shape[1] > 1:
        counts[:, 0] = 0
    share = counts / counts.sum()
    dice = (share * (1 - numerator / denominator)).sum()
    a, b = share * numerator / denominator.square(), -2 * share / denominator
    return dice, a.expand(samples, -1), b.expand(samples, -1)


def monai_loss(
    name: str, options: DiceOptions, *, has_regions: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    """One of MONAI's losses, `(logits b k ..., labels b 1 ... or regions b k ...) -> scalar`.

    Args:
        name: `dice_focal`, `tversky` or `generalised_dice`.
        options: what the loss takes of them.
        has_regions: sigmoid of overlapping regions instead of a softmax.
    """
    # MONAI takes four seconds to import.
    losses: Any = importlib.import_module("monai.losses")
    common: dict[str, Any] = {
        "sigmoid": has_regions,
        "softmax": not has_regions,
        "to_onehot_y": not has_regions,
        "include_background": options.include_background,
        "smooth_nr": options.smooth_numerator,
        "smooth_dr": options.smooth_denominator,
        "batch": options.batch_dice,
    }
    built: Callable[[Tensor, Tensor], Tensor]
    if name == "dice_focal":
        built = losses.DiceFocalLoss(**common, squared_pred=options.squared)
    else:
        kinds = {"tversky": losses.TverskyLoss, "generalised_dice": losses.GeneralizedDiceLoss}
        built = kinds[name](**common)
    return built


def on_valid_voxels(
    loss: Callable[[Tensor, Tensor], Tensor],
    logits: Tensor,
    target: Tensor,
    counted: Tensor,
    *,
    batch_dice: bool,
) -> Tensor:
    """A loss without a word for padding, on the voxels that count alone.

    Args:
        loss: takes `b k v` and `b 1 v` or `b k v`.
        logits: `b k x y z`.
        target: `b 1 x y z` or `b k x y z`.
        counted: `b x y z` bool.
        batch_dice: all samples' voxels as one sample, else the mean over samples.

    Returns:
        A scalar; samples without any such voxel take no part.
    """
    chosen = [
        (logits[i][:, where], target[i][:, where]) for i, where in enumerate(counted) if where.any()
    ]
    if not chosen:
        return logits.float().sum() * 0
    if batch_dice:
        columns = list(zip(*chosen, strict=True))
        chosen = [(torch.cat(columns[0], 1), torch.cat(columns[1], 1))]
    return torch.stack([loss(x.float()[None], t[None]) for x, t in chosen]).mean()
