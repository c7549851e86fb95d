"""Resampling by matrices against SciPy's general routine and slow oracles."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.ndimage import affine_transform, map_coordinates

from mim3d.data.resample import (
    axis_matrix,
    resample,
    resample_labels,
    resample_to,
    resampled_affine,
    resampled_shape,
)

SPACING = (0.8, 1.2, 2.5)
SPACINGS = [(0.5, 1.7, 1.1), (2.0, 0.9, 4.0), (0.8, 0.6, 2.5), (1.0, 1.0, 1.0)]


def _volume(channels: int = 2) -> np.ndarray:
    random = np.random.default_rng(0)
    x, y, z = np.meshgrid(np.arange(11), np.arange(13), np.arange(7), indexing="ij")
    ramp = 3.0 * x - 2.0 * y + 5.0 * z
    return np.stack([ramp * (c + 1) + random.standard_normal(x.shape) for c in range(channels)])


def _coordinates(shape, new_shape, step) -> list[np.ndarray]:
    """Places of the new voxels in old ones: both grids share their centre."""
    axes = [
        (np.arange(m) - (m - 1) / 2) * s + (n - 1) / 2
        for n, m, s in zip(shape, new_shape, step, strict=True)
    ]
    return np.meshgrid(*axes, indexing="ij")


@pytest.mark.parametrize("new_spacing", SPACINGS)
@pytest.mark.parametrize(("order", "number"), [("linear", 1), ("cubic", 3)])
def test_resampling_equals_scipy(order, number, new_spacing):
    """Caught: cubic without the factor 2 at the ends of the prefilter; axes in a wrong order."""
    volume = _volume().astype(np.float32)

    new = resample(volume, SPACING, new_spacing, order)

    step = np.array(new_spacing) / SPACING
    places = _coordinates(volume.shape[1:], new.shape[1:], step)
    for channel, values in zip(volume, new, strict=True):
        expected = map_coordinates(channel.astype(float), places, order=number, mode="mirror")
        assert np.abs(values - expected).max() < 1e-6 * np.ptp(channel)
    assert new.shape[1:] == resampled_shape((11, 13, 7), SPACING, new_spacing)


@pytest.mark.parametrize("memory", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize(("order", "number"), [("linear", 1), ("cubic", 3)])
def test_long_axes_equal_scipy_in_any_memory_order(order, number, memory):
    """Two slabs added, bands of rows, in every place; caught: bands without a cubic's far ends."""
    x, y, z = np.indices((61, 9, 83))
    wave = 400 * np.sin(x / 9.0 + y) * np.cos(z / 11.0) + 3 * x - 20 * y
    volume = np.rint(wave + np.random.default_rng(5).normal(0, 30, x.shape)).astype(np.int16)
    stored = np.ascontiguousarray(volume.transpose(memory)).transpose(np.argsort(memory))

    for new_spacing in ((0.5, 1.7, 1.1), (2.0, 0.9, 4.0)):
        new = resample(stored[None], SPACING, new_spacing, order)[0]

        step = np.array(new_spacing) / SPACING
        places = _coordinates(volume.shape, new.shape, step)
        expected = map_coordinates(volume.astype(float), places, order=number, mode="mirror")
        assert np.abs(new - expected).max() < 1e-6 * np.ptp(volume)
        assert np.argsort(new.strides).tolist() == np.argsort(stored.strides).tolist()


def test_a_point_in_millimetres_stays_where_it_is():
    """The value at a point, by either grid's affine, is the same: a linear ramp in mm."""
    turn = np.array([[0.0, -1, 0], [0.8, 0, 0.6], [-0.6, 0, 0.8]])
    affine = np.eye(4)
    affine[:3, :3] = turn * SPACING
    affine[:3, 3] = (-12.0, 40.0, 7.0)
    indices = np.indices((11, 13, 7)).reshape(3, -1)
    millimetres = affine[:3, :3] @ indices + affine[:3, 3:]
    volume = (np.array([0.3, -0.7, 0.2]) @ millimetres).reshape(1, 11, 13, 7)
    spacing = (1.0, 1.0, 1.0)

    new = resample(volume, SPACING, spacing)[0]

    moved = resampled_affine(affine, (11, 13, 7), new.shape, spacing)
    assert np.linalg.norm(moved[:3, :3], axis=0) == pytest.approx(spacing)
    inner = np.indices(new.shape)[:, 1:-1, 2:-2, 3:-3].reshape(3, -1)
    expected = np.array([0.3, -0.7, 0.2]) @ (moved[:3, :3] @ inner + moved[:3, 3:])
    assert np.abs(new[1:-1, 2:-2, 3:-3].ravel() - expected).max() < 1e-4


def test_one_voxel_thick_volumes_and_equal_spacings_pass():
    flat = _volume()[:, :, :, :1]

    assert resample(flat, SPACING, SPACING).tolist() == flat.astype(np.float32).tolist()
    thick = resample(flat, SPACING, (0.8, 1.2, 1.25), "cubic")
    assert thick.shape == (2, 11, 13, 2)
    assert (thick[..., 0] == thick[..., 1]).all()


def test_resampling_commutes_with_flips():
    volume = _volume()

    flipped = resample(volume[:, ::-1, :, ::-1], SPACING, (0.5, 1.7, 1.1), "cubic")

    straight = resample(volume, SPACING, (0.5, 1.7, 1.1), "cubic")
    assert np.abs(flipped[:, ::-1, :, ::-1] - straight).max() < 1e-4


@pytest.mark.parametrize("new_spacing", SPACINGS)
def test_labels_take_the_class_with_the_largest_linear_weight(new_spacing):
    """Caught: weights of a class cut off at its bounding box."""
    random = np.random.default_rng(1)
    labels = random.integers(0, 5, (11, 13, 7)).astype(np.uint8)
    labels[labels == 3] = 255

    new = resample_labels(labels, SPACING, new_spacing)

    step = np.array(new_spacing) / SPACING
    places = _coordinates(labels.shape, new.shape, step)
    values = [0, 1, 2, 4, 255]
    weights = np.stack([
        map_coordinates((labels == v).astype(float), places, order=1, mode="mirror") for v in values
    ])  # fmt: skip
    top = np.sort(weights, axis=0)
    clear = top[-1] - top[-2] > 1e-4  # of equal weights either is right
    assert clear.mean() > 0.5
    assert (new == np.array(values)[weights.argmax(0)])[clear].all()


def test_labels_in_any_memory_order_are_the_same():
    labels = np.random.default_rng(3).integers(0, 4, (11, 61, 7)).astype(np.uint8)

    straight = resample_labels(labels, SPACING, (0.5, 1.7, 1.1))

    turned = resample_labels(np.asfortranarray(labels), SPACING, (0.5, 1.7, 1.1))
    assert (straight == turned).all()
    assert turned.flags.f_contiguous


def test_labels_without_foreground_stay_background():
    assert not resample_labels(np.zeros((11, 13, 7), np.uint8), SPACING, (1, 1, 1)).any()


@pytest.mark.parametrize(("order", "number"), [("linear", 1), ("cubic", 3)])
def test_values_on_another_grid_equal_scipy(order, number):
    volume = _volume(3).astype(np.float32)
    to = np.diag([0.4, 1.5, 2.0, 1.0])
    to[:3, 3] = (0.9, 0.4, -0.6)
    here = np.diag([*SPACING, 1.0])

    there = resample_to(volume, here, to, (14, 9, 8), order)

    relation = np.linalg.inv(here) @ to
    for channel, values in zip(volume, there, strict=True):
        expected = affine_transform(
            channel.astype(float), np.diag(relation[:3, :3]), relation[:3, 3], (14, 9, 8),
            order=number, mode="mirror",
        )  # fmt: skip
        assert np.abs(values - expected).max() < 1e-6 * np.ptp(channel)


def test_there_and_back_reproduces_a_smooth_volume():
    x, y, z = np.meshgrid(*(np.linspace(0, 2, n) for n in (31, 23, 17)), indexing="ij")
    volume = (np.sin(x) + np.cos(y) * z)[None]
    affine = np.diag([*SPACING, 1.0])
    new = resample(volume, SPACING, (1.0, 1.0, 2.0), "cubic")
    moved = resampled_affine(affine, (31, 23, 17), new.shape[1:], (1.0, 1.0, 2.0))

    back = resample_to(new, moved, affine, (31, 23, 17), "cubic")

    # The mirror bends what rises at the ends; inside, only the curvature is lost.
    assert np.abs(back - volume)[:, 6:-6, 6:-6, 4:-4].max() < 1e-3


def test_beyond_half_a_voxel_there_is_only_what_the_caller_says():
    volume = _volume(2)
    to = np.eye(4)
    to[:3, 3] = (-3, 0, 0)

    there = resample_to(volume, np.eye(4), to, (16, 13, 7), outside=(7.0, -1.0))

    assert (there[0, :3] == 7).all()
    assert (there[1, :3] == -1).all()
    assert np.abs(there[:, 3:14] - volume).max() < 1e-5
    assert (there[0, 14:] == 7).all()


def test_grids_turned_against_each_other_are_refused():
    turned = np.eye(4)
    turned[:2, :2] = [[0.99, -0.14], [0.14, 0.99]]

    with pytest.raises(ValueError, match="turned against each other"):
        resample_to(_volume(), np.eye(4), turned, (11, 13, 7))


def test_rows_of_every_matrix_sum_to_one():
    for order in ("linear", "cubic"):
        matrix = axis_matrix(9, np.linspace(-0.5, 8.5, 23), order)
        assert np.abs(matrix.sum(axis=1) - 1).max() < 1e-6
