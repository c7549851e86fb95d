"""Windows against intensities in Hounsfield units as they were before normalisation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from mim3d.data.intensity import Normalisation
from mim3d.foundation.errors import ConfigError
from mim3d.objectives.targets.base import Look
from mim3d.objectives.targets.windows import Windows

MakeLook = Callable[..., Look]

PATCH = (4, 4, 2)
WINDOWS = ((-1000.0, 200.0), (-160.0, 240.0), (-200.0, 1000.0))
PREPARED = (-1000.0, 1000.0)


def hounsfield() -> torch.Tensor:
    spread = torch.rand(2, 2, 11, 13, 7, generator=torch.Generator().manual_seed(0))
    return spread * 2600 - 1300


def test_values_are_what_each_window_shows_of_hounsfield_units(make_look: MakeLook) -> None:
    stored = Normalisation("window", *PREPARED)
    look = make_look(PATCH, voxels=stored.apply(hounsfield()))
    plain = make_look(PATCH, voxels=hounsfield())

    values = Windows(2, WINDOWS, PREPARED).of(look).values

    assert values.shape[-1] == 3 * 2 * 32
    for number, (low, high) in enumerate(WINDOWS):
        hu = np.clip(plain.patches.numpy(), *PREPARED)
        expected = (np.clip(hu, low, high) - low) / (high - low)
        # padding is 0 in either, which is another intensity
        inside = look.inside.numpy() if look.inside is not None else np.ones_like(hu, bool)
        found = values[..., number * 64 : (number + 1) * 64].numpy()
        np.testing.assert_allclose(found[inside], expected[inside], atol=2e-6)


def test_a_prediction_goes_back_by_the_narrowest_window_that_shows_it(make_look: MakeLook) -> None:
    look = make_look(PATCH, voxels=Normalisation("window", *PREPARED).apply(hounsfield()))
    truth = Windows(2, WINDOWS, PREPARED).of(look)

    torch.testing.assert_close(truth.to_voxels(truth.values), look.patches)

    # 0 HU in the widest, +40 HU (middle) in the soft tissue's: 40 HU is shown
    guess = torch.cat([torch.full((1, 1, 64), v) for v in (1000 / 1200, 0.5, 200 / 1200)], dim=-1)
    shown = truth.to_voxels(guess)
    assert shown is not None
    torch.testing.assert_close(shown, torch.full((1, 1, 64), 1040 / 2000))


def test_each_window_counts_as_the_voxels(make_look: MakeLook) -> None:
    look = make_look(PATCH, padded=True)
    assert look.inside is not None
    weights = Windows(2, WINDOWS, PREPARED).weigh(look.inside.float(), PATCH)

    assert weights is not None
    for part in weights.chunk(3, dim=-1):
        assert torch.equal(part, look.inside.float())


def test_windows_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="by which voxels are normalised"):
        Windows(1, WINDOWS, None)
    with pytest.raises(ConfigError, match=r"clipped to \[-175, 250\]"):
        Windows(1, WINDOWS, (-175.0, 250.0))
    with pytest.raises(ConfigError, match="lower and a higher"):
        Windows(1, [(40.0, 40.0)], PREPARED)
    with pytest.raises(ConfigError, match="lower and a higher"):
        Windows(1, [], PREPARED)
