"""Errors and weighted means against written-out formulas."""

from __future__ import annotations

import pytest
import torch

from mim3d.foundation.errors import ConfigError
from mim3d.objectives.targets import voxel_error, weighted_mean


@pytest.mark.parametrize(
    ("kind", "expected"), [("l1", [0.5, 3.0]), ("l2", [0.25, 9.0]), ("smooth_l1", [0.125, 2.5])]
)
def test_errors_are_their_formulas(kind: str, expected: list[float]) -> None:
    # smooth L1: x^2 / 2 below 1, |x| - 1/2 above
    error = voxel_error(torch.tensor([1.5, -1.0]), torch.tensor([1.0, 2.0]), kind)

    assert error.tolist() == expected


def test_errors_are_taken_in_float32() -> None:
    assert voxel_error(torch.ones(1).bfloat16(), torch.ones(1), "l2").dtype == torch.float32


def test_a_weighted_mean_is_the_quotient_of_sums() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    weights = torch.tensor([[1.0], [0.5]])

    # (1 + 2 + 1.5 + 2) / (1 + 1 + 0.5 + 0.5)
    assert weighted_mean(values, weights).item() == pytest.approx(6.5 / 3)
    assert weighted_mean(values, None).item() == 2.5
    assert weighted_mean(values, torch.zeros(2, 1)).item() == 0.0


def test_an_unknown_error_is_refused() -> None:
    with pytest.raises(ConfigError, match="l1, l2, smooth_l1"):
        voxel_error(torch.ones(1), torch.ones(1), "huber")
