"""Losses of answers that know next to nothing, and of shapes alone."""

from __future__ import annotations

import pytest
import torch

from mim3d.objectives.levels import (
    mean_predictor,
    number_mean_predictor,
    patch_mean_predictor,
    shape_loss,
)


@pytest.mark.parametrize("weighted", [False, True])
def test_each_number_of_a_token_is_answered_with_its_own_mean(weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(2, 5, 3, generator=generator) + torch.tensor([0.0, 10.0, -4.0])
    weights = torch.rand(2, 5, 1, generator=generator) if weighted else None

    found = number_mean_predictor(truth, weights, "l1")

    each = torch.ones(2, 5) if weights is None else weights[..., 0]
    total = 0.0
    for number in range(3):
        values = truth[..., number]
        mean = (values * each).sum() / each.sum()
        total += float(((values - mean).abs() * each).sum())
    assert found.item() == pytest.approx(total / (3 * float(each.sum())), rel=1e-5)
    assert found < mean_predictor(truth, weights, "l1") / 2


@pytest.mark.parametrize("kind", ["l1", "l2", "smooth_l1"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_of_shapes_is_that_with_each_patchs_mean_told(kind: str, weighted: bool) -> None:
    drawn = torch.Generator().manual_seed(4)
    predicted, truth = (torch.randn(2, 3, 5, generator=drawn) for _ in range(2))
    weights = torch.rand(2, 3, 5, generator=drawn) if weighted else None
    error = {
        "l1": abs, "l2": lambda e: e * e,
        "smooth_l1": lambda e: e * e / 2 if abs(e) < 1 else abs(e) - 0.5,
    }[kind]  # fmt: skip

    found = shape_loss(predicted, truth, weights, kind)

    total = count = 0.0
    for b in range(2):
        for q in range(3):
            each = [1.0] * 5 if weights is None else weights[b, q].tolist()
            given, asked = predicted[b, q].tolist(), truth[b, q].tolist()
            shift = sum(w * (t - p) for w, t, p in zip(each, asked, given, strict=True)) / sum(each)
            for w, t, p in zip(each, asked, given, strict=True):
                total += w * error(p + shift - t)
                count += w
    assert found.item() == pytest.approx(total / count, rel=1e-5)


def test_flat_answers_have_the_loss_of_patch_means_and_a_shape_alone_is_below_it() -> None:
    truth = torch.arange(24.0).reshape(1, 4, 6).square()
    flat = torch.tensor([3.0, -1.0, 7.0, 0.0]).reshape(1, 4, 1).expand(1, 4, 6)
    level = patch_mean_predictor(truth, None, "l2")

    torch.testing.assert_close(shape_loss(flat, truth, None, "l2"), level)
    assert shape_loss(truth - 1000, truth, None, "l2") < 1e-3 * level


def test_the_mean_predictor_goes_by_weight() -> None:
    truth = torch.tensor([[[0.0, 4.0]]])
    weights = torch.tensor([[[3.0, 1.0]]])

    # the mean is 1: (3 * 1 + 1 * 9) / 4
    assert mean_predictor(truth, weights, "l2").item() == 3.0
