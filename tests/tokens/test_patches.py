"""Patchify and padding, against loops; losslessness is invariant 1."""

from __future__ import annotations

import itertools

import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

from mim3d.foundation.errors import ShapeError
from mim3d.tokens.grid import TokenGrid
from mim3d.tokens.patches import pad_to_patches, patchify, unpatchify, without_air

SIZE = (11, 13, 7)
PATCH = (4, 4, 2)


def volume(*shape: int) -> torch.Tensor:
    """Voxels that all differ."""
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape)


def test_patches_are_what_the_einops_pattern_says() -> None:
    voxels = volume(2, 3, 8, 12, 6)

    patches = patchify(voxels, PATCH)

    pattern = "b c (gx px) (gy py) (gz pz) -> b (gx gy gz) (c px py pz)"
    assert torch.equal(patches, rearrange(voxels, pattern, px=4, py=4, pz=2))


def test_a_side_that_is_no_multiple_of_the_patch_is_refused() -> None:
    with pytest.raises(ShapeError, match="multiples"):
        patchify(volume(1, 1, *SIZE), PATCH)


def test_patches_of_another_grid_are_refused() -> None:
    with pytest.raises(ShapeError, match="unpatchify expects"):
        unpatchify(torch.zeros(1, 47, 32), TokenGrid.over(SIZE, PATCH), 1)


def test_padding_goes_to_the_far_end_and_is_zero() -> None:
    voxels = volume(2, 2, *SIZE) + 1

    crop = pad_to_patches(voxels, None, PATCH)

    assert crop.voxels.shape == (2, 2, 12, 16, 8)
    assert torch.equal(crop.voxels[:, :, :11, :13, :7], voxels)
    assert crop.voxels.sum() == voxels.sum()
    assert crop.valid is not None
    assert crop.valid.sum() == 2 * 11 * 13 * 7
    assert crop.token_valid is None, "every token still holds a valid voxel"


def test_a_crop_of_whole_patches_without_padding_is_handed_through() -> None:
    voxels = volume(1, 1, 8, 12, 6)

    crop = pad_to_patches(voxels, None, PATCH)

    assert crop.voxels is voxels
    assert crop.valid is None
    assert crop.token_valid is None


def test_what_stands_in_padding_is_blanked_even_nan() -> None:
    voxels = volume(1, 2, *SIZE) + 1
    valid = torch.ones(1, *SIZE, dtype=torch.bool)
    valid[:, 5:] = False
    voxels[:, :, 5:] = torch.nan

    crop = pad_to_patches(voxels, valid, PATCH)

    assert crop.voxels.isfinite().all()
    assert (crop.voxels[:, :, 5:] == 0).all()


def test_a_token_is_valid_where_any_of_its_voxels_is() -> None:
    valid = torch.zeros(1, *SIZE, dtype=torch.bool)
    valid[0, 4, 12, 6] = True

    crop = pad_to_patches(volume(1, 1, *SIZE), valid, PATCH)

    # voxel (4, 12, 6) lies in token (1, 3, 3), number (1 * 4 + 3) * 4 + 3
    assert crop.token_valid is not None
    assert crop.token_valid.nonzero().tolist() == [[0, 31]]


def test_a_valid_map_of_another_size_is_refused() -> None:
    with pytest.raises(ShapeError, match="valid"):
        pad_to_patches(volume(1, 1, *SIZE), torch.ones(1, 7, 13, 11, dtype=torch.bool), PATCH)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.sampled_from([1, 2, 4])] * 3))
def test_any_size_is_padded_by_less_than_a_patch(
    size: tuple[int, int, int], patch: tuple[int, int, int]
) -> None:
    crop = pad_to_patches(volume(1, 1, *size), None, patch)

    for padded, side, edge in zip(crop.voxels.shape[2:], size, patch, strict=True):
        assert padded % edge == 0
        assert 0 <= padded - side < edge


@pytest.mark.parametrize("with_padding", [False, True])
def test_patches_without_body_are_padding(with_padding: bool) -> None:
    body = torch.rand((3, 11, 13, 7), generator=torch.Generator().manual_seed(1)) < 0.02
    body[2] = False
    body[2, 3, 3, 3] = True  # one patch with body: too few, all stay
    valid = None
    if with_padding:
        valid = torch.ones_like(body)
        valid[:, 9:] = False

    found = without_air(valid, body, (4, 3, 2))

    for row in range(3):
        inside = torch.ones_like(body[row]) if valid is None else valid[row]
        slow = torch.zeros_like(inside)
        held = 0
        for x, y, z in itertools.product(range(0, 11, 4), range(0, 13, 3), range(0, 7, 2)):
            box = (slice(x, x + 4), slice(y, y + 3), slice(z, z + 2))
            if (body[row] & inside)[box].any():
                slow[box] = inside[box]
                held += 1
        assert torch.equal(found[row], slow if held >= 2 else inside)
