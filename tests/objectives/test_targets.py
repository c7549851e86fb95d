"""Targets, errors and weighted means against written-out formulas."""

from __future__ import annotations

import pytest
import torch

from mim3d.foundation.errors import ConfigError
from mim3d.objectives.targets import patch_target, voxel_error, weighted_mean


def patches() -> torch.Tensor:
    return torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0)) * 3 + 1


def test_raw_targets_are_the_patches() -> None:
    target = patch_target(patches(), "raw")

    assert torch.equal(target.values, patches())
    assert torch.equal(target.to_voxels(target.values), patches())


def test_normalised_targets_are_a_layer_norm_of_the_whole_patch() -> None:
    target = patch_target(patches(), "normalised")

    oracle = torch.nn.functional.layer_norm(patches(), (24,), eps=1e-6)
    torch.testing.assert_close(target.values, oracle, atol=1e-5, rtol=1e-5)


def test_statistics_of_a_patch_leave_padding_out() -> None:
    valid = torch.rand(2, 5, 24, generator=torch.Generator().manual_seed(1)) > 0.4

    target = patch_target(patches(), "normalised", valid)

    inside = patches()[1, 3][valid[1, 3]]
    expected = (inside - inside.mean()) / (inside.var(unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(target.values[1, 3][valid[1, 3]], expected, atol=1e-5, rtol=1e-5)


def test_a_normalised_prediction_goes_back_to_voxels() -> None:
    target = patch_target(patches(), "normalised")

    torch.testing.assert_close(target.to_voxels(target.values), patches())


def test_a_constant_patch_has_a_finite_target() -> None:
    assert (patch_target(torch.full((1, 1, 8), 3.0), "normalised").values == 0).all()


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


def test_unknown_words_are_refused() -> None:
    with pytest.raises(ConfigError, match="raw, normalised"):
        patch_target(patches(), "hog")
    with pytest.raises(ConfigError, match="l1, l2, smooth_l1"):
        voxel_error(patches(), patches(), "huber")
