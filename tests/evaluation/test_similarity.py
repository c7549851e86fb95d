"""PSNR and SSIM against formulas written with SciPy, and MONAI's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import SSIMMetric
from scipy.ndimage import gaussian_filter

from mim3d.evaluation.similarity import psnr, ssim, ssim_map

SIZE = (11, 13, 7)


def pair(size: tuple[int, int, int] = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 3, math.prod(size)).reshape(size)
    truth = ramp + torch.randn(2, 2, *size, generator=random)
    return truth, truth + 0.4 * torch.randn(2, 2, *size, generator=random)


def some_voxels(size: tuple[int, int, int] = SIZE) -> torch.Tensor:
    return torch.rand(2, *size, generator=torch.Generator().manual_seed(1)) < 0.3


def test_psnr_is_that_of_the_voxels_asked_for_with_the_crops_own_range() -> None:
    truth, guess = pair()
    where = some_voxels()

    found = psnr(truth, guess, where)

    for b in range(2):
        for c in range(2):
            true, said = truth[b, c].double().numpy(), guess[b, c].double().numpy()
            error = np.mean((true - said)[where[b].numpy()] ** 2)
            expected = 10 * np.log10((true.max() - true.min()) ** 2 / error)
            assert float(found[b, c]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("size", [SIZE, (9, 4, 2)], ids=["usual", "thinner-than-the-window"])
def test_ssim_is_wangs_formula_with_scipys_gaussian_where_asked(
    size: tuple[int, int, int],
) -> None:
    truth, guess = pair(size)
    where = some_voxels(size)

    found = ssim(truth, guess, where)

    def smooth(volume: np.ndarray) -> np.ndarray:
        return gaussian_filter(volume, 1.5, mode="reflect", radius=5)

    for b in range(2):
        for c in range(2):
            x, y = truth[b, c].double().numpy(), guess[b, c].double().numpy()
            span = x.max() - x.min()
            c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
            mx, my = smooth(x), smooth(y)
            vx, vy = smooth(x * x) - mx**2, smooth(y * y) - my**2
            both = smooth(x * y) - mx * my
            expected = ((2 * mx * my + c1) * (2 * both + c2)) / (
                (mx**2 + my**2 + c1) * (vx + vy + c2)
            )
            assert float(found[b, c]) == pytest.approx(expected[where[b].numpy()].mean(), rel=1e-9)


def test_ssim_away_from_the_faces_is_monais() -> None:
    truth, guess = (volume[:1, :1] for volume in pair((15, 19, 13)))
    span = float(truth.max() - truth.min())
    metric = SSIMMetric(spatial_dims=3, data_range=span, kernel_sigma=1.5, win_size=11)

    inside = ssim_map(truth, guess)[:, :, 5:-5, 5:-5, 5:-5].mean()

    # MONAI computes in float32.
    assert float(inside) == pytest.approx(float(metric(guess, truth)), abs=1e-5)


def test_equal_volumes_are_alike_and_without_noise() -> None:
    truth, _ = pair()
    everywhere = torch.ones(2, *SIZE, dtype=torch.bool)

    assert ssim(truth, truth, everywhere).allclose(torch.ones(2, 2, dtype=torch.float64))
    assert psnr(truth, truth, everywhere).isposinf().all()
    assert psnr(truth, truth + 1, ~everywhere).isnan().all()


def test_a_constant_crop_has_a_range_of_one() -> None:
    """By its own range of 0, PSNR is minus infinity and SSIM no number."""
    truth = torch.full((1, 1, *SIZE), 3.0, dtype=torch.float64)
    everywhere = torch.ones(1, *SIZE, dtype=torch.bool)

    # 10 log10(1 / 0.1^2), and Wang's eq. 13 of two constants: (2 * 3 * 2 + c1) / (9 + 4 + c1).
    assert psnr(truth, truth + 0.1, everywhere).item() == pytest.approx(20)
    assert ssim(truth, truth - 1, everywhere).item() == pytest.approx(12.0001 / 13.0001)
