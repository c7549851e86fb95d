"""The decoders' parts, against MONAI's where it has them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from mim3d.models.convolutions import (
    TapPath,
    depth_to_space,
    instance_norm,
    space_to_depth,
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
