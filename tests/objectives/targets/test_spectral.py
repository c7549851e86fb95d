"""The spectrum of a patch against SciPy's cosine transform."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from mim3d.objectives.targets.base import Look
from mim3d.objectives.targets.spectral import Spectrum

MakeLook = Callable[..., Look]

PATCH = (4, 5, 2)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("slope", [0.0, 1.0, 0.5])
def test_values_are_the_raised_cosine_transform(
    make_look: MakeLook, padded: bool, slope: float
) -> None:
    look = make_look(PATCH, padded=padded)

    values = Spectrum(2, PATCH, slope).of(look).values

    k = np.mgrid[:4, :5, :2]
    raised = (1 + np.sqrt((k**2).sum(axis=0))) ** slope
    for i, j in [(0, 0), (0, 11), (1, 4)]:
        box = look.patches[i, j].reshape(2, *PATCH).double().numpy().copy()
        if look.inside is not None:
            there = look.inside[i, j].reshape(2, *PATCH).numpy()
            for channel in range(2):
                own = box[channel][there[channel]]
                box[channel][~there[channel]] = own.mean() if len(own) else 0.0
        expected = np.stack([dctn(one, norm="ortho") * raised for one in box])
        np.testing.assert_allclose(values[i, j].numpy(), expected.ravel(), atol=2e-5)


def test_without_slope_the_squared_error_is_that_of_voxels(make_look: MakeLook) -> None:
    look = make_look(PATCH)
    values = Spectrum(2, PATCH, 0.0).of(look).values

    error = (values[0, 0] - values[0, 1]).square().sum()

    expected = (look.patches[0, 0] - look.patches[0, 1]).square().sum()
    torch.testing.assert_close(error, expected)


def test_a_prediction_goes_back_to_voxels(make_look: MakeLook) -> None:
    look = make_look(PATCH)
    truth = Spectrum(2, PATCH, 1.0).of(look)

    shown = truth.to_voxels(truth.values)
    assert shown is not None
    assert look.inside is not None  # the last patches are not full
    there = look.inside
    torch.testing.assert_close(shown[there], look.patches[there], atol=1e-5, rtol=1e-5)


def test_autocast_does_not_coarsen_it(make_look: MakeLook) -> None:
    look, target = make_look(PATCH), Spectrum(2, PATCH, 1.0)

    with torch.autocast("cpu", torch.bfloat16):
        values = target.of(look).values

    assert torch.equal(values, target.of(look).values)


def test_a_coefficient_counts_as_the_voxels_of_its_channel(make_look: MakeLook) -> None:
    look = make_look(PATCH, padded=True)
    target = Spectrum(2, PATCH, 1.0)
    assert look.inside is not None
    look.inside[0, 0, :40] = False

    weights = target.weigh(look.inside.float(), PATCH)

    assert weights is not None
    expected = look.inside[0, 0].reshape(2, 40).float().mean(dim=1)
    assert torch.equal(weights[0, 0].reshape(2, 40), expected[:, None].expand(2, 40))
    assert target.weigh(None, PATCH) is None
