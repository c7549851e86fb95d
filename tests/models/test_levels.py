"""Levels for any patch."""

from __future__ import annotations

import math

import pytest

from mim3d.foundation.errors import ConfigError
from mim3d.models.levels import level_strides


@pytest.mark.parametrize(
    ("patch", "strides"),
    [
        ((16, 16, 16), [(2, 2, 2)] * 4),
        ((8, 8, 8), [(2, 2, 2)] * 3),
        ((16, 16, 4), [(2, 2, 2), (2, 2, 2), (2, 2, 1), (2, 2, 1)]),
        ((2, 8, 1), [(2, 2, 1), (1, 2, 1), (1, 2, 1)]),
        ((1, 1, 1), []),
    ],
)
def test_an_axis_is_upsampled_while_it_still_has_to_be(
    patch: tuple[int, int, int], strides: list[tuple[int, int, int]]
) -> None:
    assert level_strides(patch) == strides
    assert tuple(math.prod(s[a] for s in strides) for a in range(3)) == patch


def test_a_patch_that_is_no_power_of_two_is_refused() -> None:
    with pytest.raises(ConfigError, match="power of two"):
        level_strides((12, 8, 8))
