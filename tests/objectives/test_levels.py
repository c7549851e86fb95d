"""The mean predictor of targets whose numbers are not alike."""

from __future__ import annotations

import pytest
import torch

from mim3d.objectives.levels import mean_predictor, number_mean_predictor


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
