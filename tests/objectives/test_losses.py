"""Closed-form losses against MONAI's, written-out formulas and finite differences."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss, GeneralizedDiceLoss, TverskyLoss
from torch import Tensor

from mim3d.data.classes import IGNORE_INDEX
from mim3d.foundation.errors import ShapeError
from mim3d.objectives.losses import (
    DiceOptions,
    _by_class,
    dice_ce,
    dice_ce_regions,
    monai_loss,
    on_valid_voxels,
)

SHAPE = (11, 13, 7)


def logits_of(channels: int, *, seed: int = 0, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn((batch, channels, *SHAPE), generator=generator)
    return logits.requires_grad_()


def labels_of(classes: int, *, batch: int = 2) -> Tensor:
    """Classes in slabs along x, different in each sample; the last class is absent from one."""
    x = torch.arange(SHAPE[0]).view(1, -1, 1, 1).expand(batch, *SHAPE)
    labels = (x + torch.arange(batch).view(-1, 1, 1, 1)) % classes
    labels = labels.clone()
    labels[0][labels[0] == classes - 1] = 0
    return labels.to(torch.uint8)


def regions_of(channels: int) -> Tensor:
    """Nested boxes, the innermost empty in the first sample."""
    regions = torch.zeros((2, channels, *SHAPE), dtype=torch.bool)
    for channel in range(channels):
        regions[:, channel, channel : 9 - channel, channel:, : 6 - channel] = True
    regions[0, -1] = False
    return regions


def value_and_gradient(loss: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient


def assert_alike(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    # float32 sums over 1,001 voxels in another order; gradients relative to their largest.
    torch.testing.assert_close(ours[0], theirs[0], rtol=2e-6, atol=1e-6)
    scale = theirs[1].abs().max()
    torch.testing.assert_close(ours[1] / scale, theirs[1] / scale, rtol=1e-5, atol=2e-6)


OPTIONS = [
    DiceOptions(squared, numerator, denominator, batch, background)
    for squared, (numerator, denominator), batch, background in product(
        (False, True), ((1e-5, 1e-5), (0.0, 1e-6), (0.3, 0.7)), (False, True), (False, True)
    )
]


def monai_arguments(options: DiceOptions) -> dict[str, object]:
    return {
        "squared_pred": options.squared,
        "smooth_nr": options.smooth_numerator,
        "smooth_dr": options.smooth_denominator,
        "batch": options.batch_dice,
        "include_background": options.include_background,
    }


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("classes", [2, 5])
def test_softmax_dice_ce_has_monais_value_and_gradient(options: DiceOptions, classes: int) -> None:
    logits, labels = logits_of(classes), labels_of(classes)
    reference = DiceCELoss(to_onehot_y=True, softmax=True, **monai_arguments(options))

    ours = value_and_gradient(dice_ce(logits, labels, options)[0], logits)

    assert_alike(ours, value_and_gradient(reference(logits, labels[:, None]), logits))


@pytest.mark.filterwarnings("ignore:single channel prediction")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_sigmoid_dice_ce_has_monais_value_and_gradient(options: DiceOptions, channels: int) -> None:
    logits, regions = logits_of(channels), regions_of(channels)
    reference = DiceCELoss(sigmoid=True, **monai_arguments(options))

    ours = value_and_gradient(dice_ce_regions(logits, regions, options)[0], logits)

    assert_alike(ours, value_and_gradient(reference(logits, regions.float()), logits))


@pytest.mark.parametrize("squared", [False, True])
def test_dice_alone_has_monais_value_and_gradient(squared: bool) -> None:
    options = DiceOptions(squared=squared, cross_entropy=0.0)
    logits, labels, regions = logits_of(3), labels_of(3), regions_of(3)
    softmax = DiceLoss(to_onehot_y=True, softmax=True, squared_pred=squared)
    sigmoid = DiceLoss(sigmoid=True, squared_pred=squared)

    ours = value_and_gradient(dice_ce(logits, labels, options)[0], logits)
    ours_regions = value_and_gradient(dice_ce_regions(logits, regions, options)[0], logits)

    assert_alike(ours, value_and_gradient(softmax(logits, labels[:, None]), logits))
    assert_alike(ours_regions, value_and_gradient(sigmoid(logits, regions.float()), logits))


def test_one_channel_counts_even_without_background() -> None:
    logits, regions = logits_of(1), regions_of(1)

    with_background, _ = dice_ce_regions(logits, regions, DiceOptions())
    without, _ = dice_ce_regions(logits, regions, DiceOptions(include_background=False))

    assert with_background == without


@pytest.mark.parametrize("options", [DiceOptions(), DiceOptions(True, 0.0, 1e-6, True, False)])
def test_ignored_and_padded_voxels_are_as_if_cut_away(options: DiceOptions) -> None:
    logits, labels = logits_of(4), labels_of(4)
    valid = torch.ones_like(labels, dtype=torch.bool)
    valid[:, 8:] = False
    labels[:, :, 10:] = IGNORE_INDEX
    inner = logits[:, :, :8, :10].detach().requires_grad_()
    reference = DiceCELoss(to_onehot_y=True, softmax=True, **monai_arguments(options))

    ours = value_and_gradient(dice_ce(logits, labels, options, valid)[0], logits)

    value, gradient = value_and_gradient(reference(inner, labels[:, None, :8, :10]), inner)
    assert_alike((ours[0], ours[1][:, :, :8, :10]), (value, gradient))
    assert not ours[1][:, :, 8:].any()
    assert not ours[1][:, :, :, 10:].any()


@pytest.mark.parametrize("channels", [1, 3])
def test_padded_voxels_of_regions_are_as_if_cut_away(channels: int) -> None:
    logits, regions = logits_of(channels), regions_of(channels)
    valid = torch.ones_like(regions[:, 0])
    valid[..., 4:] = False
    inner = logits[..., :4].detach().requires_grad_()

    ours = value_and_gradient(dice_ce_regions(logits, regions, DiceOptions(), valid)[0], logits)

    reference = DiceCELoss(sigmoid=True)(inner, regions[..., :4].float())
    value, gradient = value_and_gradient(reference, inner)
    assert_alike((ours[0], ours[1][..., :4]), (value, gradient))
    assert not ours[1][..., 4:].any()


def test_a_batch_without_any_counted_voxel_gives_no_gradient() -> None:
    logits, labels = logits_of(3), torch.full((2, *SHAPE), IGNORE_INDEX)

    loss, gradient = value_and_gradient(dice_ce(logits, labels, DiceOptions())[0], logits)

    assert loss == 0
    assert not gradient.any()


def test_gradient_is_scaled_by_what_comes_in() -> None:
    logits, labels, regions = logits_of(3), labels_of(3), regions_of(3)
    for function, target in ((dice_ce, labels), (dice_ce_regions, regions)):
        loss, _ = function(logits, target, DiceOptions())

        (once,) = torch.autograd.grad(loss, logits, retain_graph=True)
        (scaled,) = torch.autograd.grad(-2.5 * loss, logits)

        torch.testing.assert_close(scaled, -2.5 * once)


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_under_autocast_the_loss_is_that_of_the_bf16_logits_in_float32(name: str) -> None:
    logits = logits_of(3).detach().bfloat16().requires_grad_()
    whole = logits.detach().float().requires_grad_()
    function, target = {
        "softmax": (dice_ce, labels_of(3)),
        "sigmoid": (dice_ce_regions, regions_of(3)),
    }[name]
    loss_whole, _ = function(whole, target, DiceOptions())
    loss_whole.backward()

    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = function(logits, target, DiceOptions())
        loss.backward()

    assert loss.dtype == torch.float32
    assert torch.equal(loss, loss_whole)
    assert torch.equal(logits.grad, whole.grad.bfloat16())


def test_soft_dice_in_the_log_is_the_mean_over_labelled_foreground() -> None:
    labels = torch.zeros((1, 2, 3, 4), dtype=torch.uint8)
    labels[0, 0] = 1
    logits = torch.zeros((1, 3, 2, 3, 4))
    # Half of the probability at class 1 everywhere: I = 6, sum p = 12, sum t = 12, Dice 0.5.
    logits[:, 2] = -torch.inf

    _, overlap = dice_ce(logits.clamp_min(-100), labels, DiceOptions())

    torch.testing.assert_close(overlap.dice(skip_first=True), torch.tensor(0.5))


def test_sums_stay_exact_where_a_float32_counter_would_stick() -> None:
    # One float32 counter that adds ones ends at 2^24.
    count = 2**24 + 8
    labels = torch.zeros((1, 1), dtype=torch.int64).expand(1, count)
    ones = torch.ones((1, 1)).expand(1, count)

    (total,) = _by_class(labels, (ones,), 2)

    assert total.tolist() == [[count, 0]]


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="expects"):
        dice_ce(torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5), DiceOptions())
    with pytest.raises(ShapeError, match="labels"):
        dice_ce(logits_of(3), torch.zeros((2, 13, 11, 7)), DiceOptions())
    with pytest.raises(ShapeError, match="regions"):
        dice_ce_regions(logits_of(3), regions_of(2), DiceOptions())


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("name", ["dice_focal", "tversky", "generalised_dice"])
def test_further_losses_are_monais_on_the_valid_voxels(name: str, batch_dice: bool) -> None:
    kind = {
        "dice_focal": DiceFocalLoss,
        "tversky": TverskyLoss,
        "generalised_dice": GeneralizedDiceLoss,
    }[name]
    logits, labels = logits_of(3), labels_of(3)
    reference = kind(to_onehot_y=True, softmax=True, batch=batch_dice, include_background=False)
    ours = monai_loss(
        name, DiceOptions(batch_dice=batch_dice, include_background=False), has_regions=False
    )
    valid = torch.ones_like(labels, dtype=torch.bool)
    valid[:, 8:] = False

    loss = on_valid_voxels(ours, logits, labels[:, None], valid, batch_dice=batch_dice)

    expected = reference(logits[:, :, :8], labels[:, None, :8])
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def test_further_losses_are_zero_where_nothing_is_valid() -> None:
    logits, labels = logits_of(3), labels_of(3)
    ours = monai_loss("tversky", DiceOptions(), has_regions=False)
    nothing = torch.zeros_like(labels, dtype=torch.bool)

    loss = on_valid_voxels(ours, logits, labels[:, None], nothing, batch_dice=False)
    loss.backward()

    assert loss == 0
    assert not logits.grad.any()
