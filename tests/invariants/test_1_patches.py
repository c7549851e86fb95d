"""Invariant 1: patches are lossless.

Tried with these breaks, each of which fails here: `unpatchify` with y and z exchanged in its
permutation; `patchify` with c fastest; a pixel shuffle with x and z of the box exchanged.
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mim3d.models.convolutions import depth_to_space, space_to_depth
from mim3d.tokens.grid import TokenGrid
from mim3d.tokens.patches import pad_to_patches, patchify, unpatchify

triples = st.tuples(*[st.integers(1, 5)] * 3)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(counts=triples, patch=triples, channels=st.integers(1, 4), batch=st.integers(1, 3))
def test_unpatchify_undoes_patchify(
    counts: tuple[int, int, int], patch: tuple[int, int, int], channels: int, batch: int
) -> None:
    size = tuple(count * edge for count, edge in zip(counts, patch, strict=True))
    voxels = torch.arange(float(batch * channels * torch.Size(size).numel()))
    voxels = voxels.reshape(batch, channels, *size)
    grid = TokenGrid.over(size, patch)  # type: ignore[arg-type]

    patches = patchify(voxels, patch)

    assert torch.equal(unpatchify(patches, grid, channels), voxels)
    # and each patch is the box it stands for, c slowest
    last = patches[-1, -1].reshape(channels, *patch)
    px, py, pz = patch
    assert torch.equal(last, voxels[-1, :, -px:, -py:, -pz:])
    second = min(1, counts[2] - 1)
    there = voxels[0, :, :px, :py, second * pz : (second + 1) * pz]
    assert torch.equal(patches[0, second].reshape(channels, *patch), there)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(size=triples, patch=triples, channels=st.integers(1, 3))
def test_a_crop_of_any_size_comes_back_from_its_padded_patches(
    size: tuple[int, int, int], patch: tuple[int, int, int], channels: int
) -> None:
    voxels = torch.arange(1.0, channels * torch.Size(size).numel() + 1).reshape(1, channels, *size)

    crop = pad_to_patches(voxels, None, patch)
    back = unpatchify(patchify(crop.voxels, patch), crop.grid, channels)

    x, y, z = size
    assert torch.equal(back[..., :x, :y, :z], voxels)
    assert back.sum() == voxels.sum()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(counts=triples, factor=triples, channels=st.integers(1, 3))
def test_a_pixel_shuffle_undoes_space_to_depth(
    counts: tuple[int, int, int], factor: tuple[int, int, int], channels: int
) -> None:
    size = [count * edge for count, edge in zip(counts, factor, strict=True)]
    voxels = torch.arange(float(2 * channels * torch.Size(size).numel()))
    voxels = voxels.reshape(2, channels, *size)

    assert torch.equal(depth_to_space(space_to_depth(voxels, factor), factor), voxels)
