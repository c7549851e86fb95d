"""Means over cubes against a loop over the voxels of each."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch

from mim3d.foundation.errors import ConfigError
from mim3d.objectives.targets.base import Look
from mim3d.objectives.targets.scales import Scales

MakeLook = Callable[..., Look]

PATCH = (4, 5, 2)


def slow(look: Look, factors: list[int]) -> tuple[list[float], list[float], list[float]]:
    """Values of one token, the mean of its weights in each cube, and the weight of each scale."""
    box = look.patches[1, 3].reshape(2, *PATCH)
    there = torch.ones_like(box, dtype=torch.bool)
    if look.inside is not None:
        there = look.inside[1, 3].reshape(2, *PATCH)
    values, shares, of_scale = [], [], []
    counts = []
    for factor in factors:
        before = len(values)
        for channel in range(2):
            starts = [range(0, side, factor) for side in PATCH]
            for x, y, z in itertools.product(*starts):
                cube = (channel, slice(x, x + factor), slice(y, y + factor), slice(z, z + factor))
                own = box[cube][there[cube]]
                values.append(float(own.mean()) if len(own) else 0.0)
                shares.append(float(there[cube].float().mean()))
        counts.append(len(values) - before)
    for count in counts:
        of_scale += [float(Fraction(sum(counts), len(counts) * count))] * count
    return values, shares, of_scale


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("factors", [[1, 2, 4], [3], [2, 9]])
def test_values_are_means_over_the_cubes_of_each_scale(
    make_look: MakeLook, padded: bool, factors: list[int]
) -> None:
    look = make_look(PATCH, padded=padded)
    target = Scales(2, PATCH, factors)

    values = target.of(look).values

    expected, _, _ = slow(look, factors)
    assert values.shape[-1] == target.answer.numbers == len(expected)
    assert values[1, 3].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_cube_counts_as_its_voxels_do_and_every_scale_as_much(make_look: MakeLook) -> None:
    look = make_look(PATCH, padded=True)
    target = Scales(2, PATCH, [1, 2, 4])
    assert look.inside is not None

    weights = target.weigh(look.inside.float(), PATCH)
    every = target.weigh(None, PATCH)

    _, shares, of_scale = slow(look, [1, 2, 4])
    assert weights is not None
    assert every is not None
    assert every.tolist() == pytest.approx(of_scale)
    products = [a * b for a, b in zip(shares, of_scale, strict=True)]
    assert weights[1, 3].tolist() == pytest.approx(products)
    # 80 voxels, 2 x 3 x 1 cubes of two channels, 1 x 2 x 1 of the largest
    parts = every.split([80, 24 // 2, 4])
    assert [float(part.sum()) for part in parts] == pytest.approx([32.0] * 3)


def test_a_prediction_is_shown_by_its_finest_scale(make_look: MakeLook) -> None:
    look = make_look(PATCH)

    truth = Scales(2, PATCH, [4, 1]).of(look)
    coarse = Scales(2, PATCH, [2, 4]).of(look)

    torch.testing.assert_close(truth.to_voxels(truth.values), look.patches)
    shown = coarse.to_voxels(coarse.values)
    assert shown is not None
    cube = look.patches[0, 0].reshape(2, *PATCH)[1, 2:4, 2:4]
    torch.testing.assert_close(
        shown[0, 0].reshape(2, *PATCH)[1, 2:4, 2:4], cube.mean().expand_as(cube)
    )


@pytest.mark.parametrize("factors", [[], [0, 2], [2, 2]])
def test_scales_that_are_none_are_refused(factors: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"objective\.targets\.scales"):
        Scales(1, PATCH, factors)
