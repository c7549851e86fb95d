"""The decoders' parts, against MONAI's where it has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from scipy.ndimage import map_coordinates

from mim3d.models.convolutions import (
    Conv3,
    Interpolation,
    TapPath,
    depth_to_space,
    instance_norm,
    space_to_depth,
    upsample,
)


def test_instance_norm_is_torchs_without_weights() -> None:
    features = torch.randn(2, 3, 4, 5, 6)

    assert torch.equal(instance_norm(features), F.instance_norm(features))


def test_a_map_of_one_voxel_is_normalised_over_its_channels() -> None:
    features = torch.tensor([1.0, 2.0, 6.0]).reshape(1, 3, 1, 1, 1)

    normal = instance_norm(features).flatten()

    # mean 3, variance (4 + 1 + 9) / 3
    expected = torch.tensor([-2.0, -1.0, 3.0]) / (14 / 3 + 1e-5) ** 0.5
    torch.testing.assert_close(normal, expected)


@pytest.mark.parametrize("factor", [(2, 2, 2), (2, 2, 1), (1, 2, 4)])
def test_space_to_depth_is_its_pattern_and_depth_to_space_takes_it_back(
    factor: tuple[int, int, int],
) -> None:
    voxels = torch.arange(2.0 * 3 * 4 * 6 * 8).reshape(2, 3, 4, 6, 8)
    i, j, k = factor

    deep = space_to_depth(voxels, factor)

    pattern = "b c (x i) (y j) (z k) -> b (c i j k) x y z"
    assert torch.equal(deep, rearrange(voxels, pattern, i=i, j=j, k=k))
    assert torch.equal(depth_to_space(deep, factor), voxels)


def test_a_tap_path_grows_by_its_strides() -> None:
    path = TapPath(6, 4, [(2, 2, 1), (2, 2, 2)])

    assert path(torch.randn(1, 6, 2, 3, 5)).shape == (1, 4, 8, 12, 10)
    assert TapPath(6, 4, [])(torch.randn(1, 6, 2, 3, 5)).shape == (1, 4, 2, 3, 5)


@pytest.mark.parametrize("stride", [(2, 2, 2), (2, 2, 1), (1, 2, 4)])
def test_an_interpolation_is_linear_between_voxels_and_then_a_convolution(
    stride: tuple[int, int, int],
) -> None:
    torch.manual_seed(0)
    step = Interpolation(6, 4, stride)
    features = torch.randn(1, 6, 5, 3, 7)

    found = step(features)

    low = torch.einsum("oi,bixyz->boxyz", step.linear.weight[:, :, 0, 0, 0], features)[0]
    size = [side * factor for side, factor in zip((5, 3, 7), stride, strict=True)]
    # Voxel i of the finer grid has its centre at (i + 1/2) / factor - 1/2 of the coarser one.
    where = [(np.arange(n) + 0.5) / f - 0.5 for n, f in zip(size, stride, strict=True)]
    places = np.meshgrid(*where, indexing="ij")
    between = np.stack(
        [map_coordinates(one, places, order=1, mode="nearest") for one in low.detach().numpy()]
    )
    expected = F.conv3d(torch.from_numpy(between)[None], step.conv.weight, padding=1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_an_interpolation_leaves_no_pattern_of_boxes_and_a_transposed_convolution_does() -> None:
    torch.manual_seed(0)
    flat = torch.ones(1, 6, 5, 4, 6)

    with torch.no_grad():
        smooth, boxes = (
            up(6, 4, (2, 2, 2))(flat)[..., 1:-1, 1:-1, 1:-1] for up in (Interpolation, upsample)
        )

    assert float(smooth.std(dim=(2, 3, 4)).max()) < 1e-5
    assert float(boxes.std(dim=(2, 3, 4)).min()) > 0.05


def test_without_a_stride_an_interpolation_is_a_linear_map() -> None:
    step = Interpolation(6, 4, (1, 1, 1))
    features = torch.randn(1, 6, 5, 3, 7)

    assert [name for name, _ in step.named_parameters()] == ["linear.weight"]
    torch.testing.assert_close(step(features), F.conv3d(features, step.linear.weight))


def _weight_gradient(
    layer: torch.nn.Conv3d, features: torch.Tensor, *, in_bf16: bool
) -> torch.Tensor:
    layer.weight.grad = None
    # Memory that was just freed is what a kernel reads that goes beyond its input.
    junk = [torch.full((1000 * k,), 500.0) for k in range(1, 200, 7)]
    del junk
    with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
        output = layer(features)
    output.float().square().mean().backward()
    assert layer.weight.grad is not None
    return layer.weight.grad.clone()


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (1, 2, 2)])
@pytest.mark.parametrize(
    "size",
    [(1, 1, 1), (2, 2, 2), (2, 3, 3), (2, 12, 12), (12, 1, 12), (12, 12, 1), (3, 3, 3), (5, 4, 6)],
)
def test_thin_grids_have_the_same_gradient_in_bf16(
    size: tuple[int, int, int], stride: tuple[int, int, int]
) -> None:
    """With `nn.Conv3d` in place of `Conv3`, grids of 2 x 12 x 12 are wrong by a factor of 100."""
    for seed in range(3):
        torch.manual_seed(seed)
        layer = Conv3(32, 16, stride)
        features = torch.randn(2, 32, *size)

        expected = _weight_gradient(layer, features, in_bf16=False)
        found = _weight_gradient(layer, features, in_bf16=True)

        # bf16 has three digits.
        assert float((found - expected).norm() / expected.norm()) < 0.05
