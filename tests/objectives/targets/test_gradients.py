"""Derivatives against NumPy's, histograms against a loop over voxels and faces."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial import ConvexHull

from mim3d.foundation.errors import ConfigError
from mim3d.objectives.targets.base import Look
from mim3d.objectives.targets.gradients import DIRECTIONS, FLAT, Gradient, Hog

MakeLook = Callable[..., Look]

PATCH = (4, 6, 2)
Array = NDArray[np.float64]


def slow_gradient(look: Look, sample: int, channel: int) -> Array:
    """`3 x y z` of the padded crop, voxel by voxel: the mean of the steps to either side."""
    crop = look.cut.crop
    voxels = crop.voxels[sample, channel].double().numpy()
    valid = np.ones(voxels.shape, bool)
    if crop.valid is not None:
        valid = crop.valid[sample].numpy()
    spacing = look.batch.spacing_mm[sample].double().numpy()
    found = np.zeros((3, *voxels.shape))
    for place in itertools.product(*map(range, voxels.shape)):
        for axis in range(3):
            steps = []
            for sign in (-1, 1):
                other = list(place)
                other[axis] += sign
                if not 0 <= other[axis] < voxels.shape[axis]:
                    continue
                if valid[place] and valid[tuple(other)]:
                    steps.append(sign * (voxels[tuple(other)] - voxels[place]))
            if steps:
                size = float(np.prod(spacing)) ** (1 / 3) / spacing[axis]
                found[(axis, *place)] = np.mean(steps) * size
    return found


def box_of(look: Look, sample: int, asked: int) -> tuple[slice, slice, slice]:
    grid = look.cut.crop.grid
    number = int(look.index[sample, asked])
    place = np.unravel_index(number, grid.counts)
    x, y, z = (
        slice(int(i) * side, (int(i) + 1) * side) for i, side in zip(place, grid.patch, strict=True)
    )
    return x, y, z


@pytest.mark.parametrize("padded", [False, True])
def test_derivatives_are_the_mean_of_the_steps_to_either_side(
    make_look: MakeLook, padded: bool
) -> None:
    look = make_look(PATCH, padded=padded)

    values = Gradient(2).of(look).values

    values = values.reshape(*values.shape[:2], 2, 3, *PATCH)
    for sample, channel in [(0, 1), (1, 0)]:
        slow = slow_gradient(look, sample, channel)
        for asked in range(look.index.shape[1]):
            expected = slow[(slice(None), *box_of(look, sample, asked))]
            found = values[sample, asked, channel].numpy()
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_derivatives_of_a_whole_crop_are_numpys(make_look: MakeLook) -> None:
    voxels = torch.randn(1, 1, 8, 12, 6, generator=torch.Generator().manual_seed(3))
    look = make_look(PATCH, voxels=voxels)

    values = Gradient(1).of(look).values.reshape(1, -1, 3, *PATCH)

    spacing = np.array([2.0, 1.0, 3.0]) / 6 ** (1 / 3)  # of the crop, over their geometric mean
    numpys = np.stack(np.gradient(voxels[0, 0].double().numpy(), *spacing))
    for asked in range(values.shape[1]):
        expected = numpys[(slice(None), *box_of(look, 0, asked))]
        np.testing.assert_allclose(values[0, asked].numpy(), expected, atol=1e-5)


def test_a_slice_one_voxel_thick_has_no_derivative_across_it(make_look: MakeLook) -> None:
    look = make_look((4, 4, 1), size=(8, 12, 1))

    edges = Gradient(2).of(look).values.reshape(2, -1, 2, 3, 16)
    bins = Hog(2, (4, 4, 1), (2, 2, 2)).of(look).values

    assert (edges[:, :, :, 2] == 0).all()
    assert edges[:, :, :, 0].abs().sum() > 0
    assert bins.shape[-1] == 2 * 4 * 10
    assert bins.isfinite().all()


def test_directions_are_the_faces_of_an_icosahedron() -> None:
    g = (1 + math.sqrt(5)) / 2
    corners = [p for a in (-1, 1) for b in (-g, g) for p in ((0, b, a), (b, a, 0), (a, 0, b))]
    corners_array = np.array(corners, float)
    faces = corners_array[ConvexHull(corners_array).simplices].mean(axis=1)
    faces *= math.sqrt(3) / np.linalg.norm(faces, axis=1, keepdims=True)

    ours = np.concatenate([np.array(DIRECTIONS), -np.array(DIRECTIONS)])

    assert len(faces) == len(ours) == 20
    distance = np.linalg.norm(faces[:, None] - ours[None], axis=-1)
    assert (distance.min(axis=0) < 1e-9).all()
    assert (distance.min(axis=1) < 1e-9).all()


def slow_votes(edge: Array) -> Array:
    """Kläser et al., equations 2 to 4, with opposite faces merged."""
    faces = np.array(DIRECTIONS)
    length = np.linalg.norm(edge)
    if length == 0:
        return np.zeros(len(faces))
    near = np.abs(faces @ edge) / length - math.sqrt(5) / math.sqrt(3)
    near = np.maximum(near, 0)
    return np.asarray(length * near / np.linalg.norm(near))


@pytest.mark.parametrize("padded", [False, True])
def test_histograms_are_a_loop_over_voxels(make_look: MakeLook, padded: bool) -> None:
    look = make_look(PATCH, padded=padded)
    cells = (2, 3, 1)
    target = Hog(2, PATCH, cells)

    values = target.of(look).values

    assert values.shape[-1] == target.answer.numbers == 2 * 6 * 10
    sample, channel = 1, 1
    slow = slow_gradient(look, sample, channel)
    for asked in (0, 3, 10):
        edges = slow[(slice(None), *box_of(look, sample, asked))]
        there = np.ones(PATCH, bool)
        if look.inside is not None:
            there = look.inside[sample, asked].reshape(2, *PATCH)[channel].numpy()
        histogram = np.zeros((*cells, 10))
        number = np.zeros(cells)
        for x, y, z in itertools.product(*map(range, PATCH)):
            cell = (x // 2, y // 2, z // 2)
            if there[x, y, z]:
                histogram[cell] += slow_votes(edges[:, x, y, z])
                number[cell] += 1
        histogram /= np.maximum(number, 1)[..., None]
        expected = histogram / math.sqrt((histogram**2).sum() + FLAT**2) * math.sqrt(60)
        found = values[sample, asked].reshape(2, *cells, 10)[channel].numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_gradient_along_a_face_votes_for_it_alone_and_either_way(make_look: MakeLook) -> None:
    direction = torch.tensor(DIRECTIONS[4])
    places = torch.stack(torch.meshgrid(*(torch.arange(8.0),) * 3, indexing="ij"))
    ramp = (places * direction[:, None, None, None]).sum(dim=0)
    voxels = torch.stack([ramp, -2 * ramp])[:, None]
    look = make_look((4, 4, 4), voxels=voxels)
    look.batch.affine[:] = torch.eye(4, dtype=torch.float64)

    bins = Hog(1, (4, 4, 4), (1, 1, 1)).of(look).values

    expected = torch.zeros(10)
    expected[4] = math.sqrt(10)
    torch.testing.assert_close(bins[0, 0], expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(bins[1, 0], expected, atol=1e-3, rtol=1e-3)


def test_noise_in_air_is_not_blown_up(make_look: MakeLook) -> None:
    noise = 1e-4 * torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(5))

    bins = Hog(1, (4, 4, 4), (2, 2, 2)).of(make_look((4, 4, 4), voxels=noise)).values

    assert bins.square().mean() < 1e-2  # 1 where there is an edge


def test_neither_has_a_way_back_to_voxels(make_look: MakeLook) -> None:
    look = make_look(PATCH)

    for target in (Gradient(2), Hog(2, PATCH, (2, 2, 2))):
        truth = target.of(look)
        assert truth.to_voxels(truth.values) is None


def test_derivatives_and_bins_count_as_their_voxels(make_look: MakeLook) -> None:
    look = make_look(PATCH, padded=True)
    assert look.inside is not None
    there = look.inside.float()

    edges = Gradient(2).weigh(there, PATCH)
    bins = Hog(2, PATCH, (2, 3, 1)).weigh(there, PATCH)

    assert edges is not None
    assert bins is not None
    box = there[1, 4].reshape(2, *PATCH)
    for axis in range(3):
        assert torch.equal(edges[1, 4].reshape(2, 3, *PATCH)[:, axis], box)
    cell = box[1, 2:4, 2:4, 0:2].mean()
    assert torch.equal(bins[1, 4].reshape(2, 2, 3, 1, 10)[1, 1, 1, 0], cell.expand(10))


def test_cells_that_do_not_divide_the_patch_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"hog_cells.* \[4, 4, 2\]|hog_cells.*4 x 6 x 2"):
        Hog(1, PATCH, (2, 4, 2))
    with pytest.raises(ConfigError, match="hog_cells"):
        Hog(1, PATCH, (0, 2, 2))
