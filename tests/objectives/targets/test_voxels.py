"""Raw and normalised voxels against written-out formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mim3d.foundation.errors import ConfigError
from mim3d.objectives.targets import patch_target
from mim3d.objectives.targets.base import Look
from mim3d.objectives.targets.voxels import Voxels

MakeLook = Callable[..., Look]


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


@pytest.mark.parametrize("padded", [False, True])
def test_each_channel_of_a_patch_has_its_own_mean_and_deviation(
    make_look: MakeLook, padded: bool
) -> None:
    look = make_look(padded=padded)

    values = Voxels(2, "normalised_per_channel").of(look).values

    length = 4 * 4 * 2
    for i, j in [(0, 0), (0, 7), (1, 20)]:
        for channel in range(2):
            part = slice(channel * length, (channel + 1) * length)
            there = torch.ones(length, dtype=torch.bool)
            if look.inside is not None:
                there = look.inside[i, j, part]
            if not there.any():
                continue
            own = look.patches[i, j, part][there]
            expected = (own - own.mean()) / (own.var(unbiased=False) + 1e-6).sqrt()
            torch.testing.assert_close(values[i, j, part][there], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["raw", "normalised", "normalised_per_channel"])
def test_a_prediction_goes_back_to_voxels(kind: str) -> None:
    target = patch_target(patches(), kind, channels=3)

    torch.testing.assert_close(target.to_voxels(target.values), patches())


@pytest.mark.parametrize("kind", ["normalised", "normalised_per_channel"])
def test_a_constant_patch_has_a_finite_target(kind: str) -> None:
    assert (patch_target(torch.full((1, 1, 8), 3.0), kind, channels=2).values == 0).all()


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(ConfigError, match="raw, normalised"):
        patch_target(patches(), "hog")
