from __future__ import annotations

import numpy as np
import torch
from positions import make_case, value_at
from scipy.ndimage import gaussian_filter

from mim3d.data.augment import AugmentationPlan, apply
from mim3d.data.blur import TRUNCATE, blur
from mim3d.data.crop_reading import cut_crop
from mim3d.data.crops import CropPlan
from mim3d.foundation.randomness import generator

SIZE = (11, 13, 7)


def textured(count: int = 3) -> torch.Tensor:
    noise = generator("blur").standard_normal((count, 2, *SIZE))
    return torch.from_numpy((noise + value_at(np.eye(4), SIZE)).astype(np.float32))


def expected(values: np.ndarray, inside: np.ndarray, sigma: float) -> np.ndarray:
    """SciPy's filter of what is inside, divided by the weight that is inside."""

    def smooth(array):
        return gaussian_filter(array, sigma, mode="constant", truncate=TRUNCATE)

    return smooth(values * inside) / np.maximum(smooth(inside.astype(float)), 1e-9)


def test_a_blur_is_scipys_gaussian_of_what_is_inside_the_crop():
    voxels, sigmas = textured(), [0.4, 1.0, 2.3]

    found = blur(voxels, None, sigmas)

    for row, sigma in enumerate(sigmas):
        for channel in range(2):
            values = voxels[row, channel].double().numpy()
            wanted = expected(values, np.ones(SIZE), sigma)
            np.testing.assert_allclose(found[row, channel], wanted, atol=2e-5)


def test_each_axis_can_have_a_deviation_of_its_own():
    voxels = textured(2)
    sigmas = [[1.3, 0.0, 0.6], [0.0, 0.9, 2.0]]

    whole = blur(voxels, None, sigmas)
    masked = blur(voxels, torch.ones(len(voxels), *voxels.shape[2:]) > 0, sigmas)

    for sample, sigma in enumerate(sigmas):
        for channel, values in enumerate(voxels[sample].double().numpy()):
            total, share = (
                gaussian_filter(x, sigma, mode="constant", truncate=3.0)
                for x in (values, np.ones_like(values))
            )
            for found in (whole, masked):
                np.testing.assert_allclose(found[sample, channel], total / share, atol=1e-4)


def test_padding_takes_no_part_in_a_blur():
    voxels = textured(2)
    valid = torch.ones((2, *SIZE), dtype=torch.bool)
    valid[0, :4], valid[1, :, 9:, 2:] = False, False
    spoilt = voxels.masked_fill(~valid[:, None], 1e3)

    found = blur(spoilt, valid, [1.0, 1.7])

    for row, sigma in enumerate((1.0, 1.7)):
        inside = valid[row].numpy()
        values = voxels[row, 0].double().numpy()
        wanted = expected(values, inside, sigma)
        np.testing.assert_allclose(found[row, 0].numpy()[inside], wanted[inside], atol=2e-5)


def test_samples_are_blurred_each_by_itself_and_zero_changes_nothing():
    voxels = textured()

    together = blur(voxels, None, [0.0, 0.9, 2.0])

    assert torch.equal(together[0], voxels[0])
    for row, sigma in enumerate((0.0, 0.9, 2.0)):
        alone = blur(voxels[row : row + 1], None, [sigma])[0]
        torch.testing.assert_close(together[row], alone, atol=1e-6, rtol=1e-6)


def test_an_augmented_crop_is_blurred_before_its_noise_and_padding_stays_zero():
    def cut():
        return cut_crop(make_case(), CropPlan("case", (-4, 14, 3), SIZE))

    crop, plain = cut(), apply(AugmentationPlan(blur=1.2), cut())
    noisy = apply(AugmentationPlan(blur=1.2, noise=0.5, noise_key=3), cut())
    noise = apply(AugmentationPlan(noise=0.5, noise_key=3), cut()).voxels - crop.voxels

    wanted = blur(crop.voxels[None], crop.valid[None], [1.2])[0]
    torch.testing.assert_close(plain.voxels[:, plain.valid], wanted[:, plain.valid])
    torch.testing.assert_close(noisy.voxels, plain.voxels + noise, atol=1e-5, rtol=0)
    assert (plain.voxels[:, ~plain.valid] == 0).all()
