from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from mim3d.data.files.geometry import nearest_ras, ras_affine
from mim3d.data.volume import Note, Origin, Volume, from_file_order, spacing_of, to_file_order
from mim3d.foundation.errors import ShapeError

FILE_SHAPE = (11, 13, 7)
SIGNED = [
    (axes, flips)
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((False, True), repeat=3)
]


def origin_of(axes, flips) -> Origin:
    return Origin(FILE_SHAPE, axes, flips, np.eye(4), FILE_SHAPE)


def volume_of(shape=(2, 11, 13, 7)) -> Volume:
    affine = np.diag([0.8, 1.2, 2.5, 1.0])
    affine[:3, 3] = (4, 5, 6)
    origin = Origin(shape[1:], (0, 1, 2), (False,) * 3, affine, shape[1:])
    return Volume(np.arange(np.prod(shape)).reshape(shape), affine, origin=origin)


@pytest.mark.parametrize(("axes", "flips"), SIGNED)
def test_the_way_to_ras_and_back_is_exact_for_all_48_orders(axes, flips):
    stored = np.arange(2 * 11 * 13 * 7).reshape(2, *FILE_SHAPE)

    turned = from_file_order(stored, origin_of(axes, flips))

    # Voxel by voxel, written out: RAS+ axis r runs along file axis axes[r], backwards if flipped.
    for index in itertools.product(
        range(0, turned.shape[1], 3), range(0, turned.shape[2], 4), (0, 1)
    ):
        place = [0, 0, 0]
        for ras in range(3):
            size = FILE_SHAPE[axes[ras]]
            place[axes[ras]] = size - 1 - index[ras] if flips[ras] else index[ras]
        assert (turned[(slice(None), *index)] == stored[(slice(None), *place)]).all()
    assert (to_file_order(turned, origin_of(axes, flips)) == stored).all()
    assert (to_file_order(turned[0], origin_of(axes, flips)) == stored[0]).all()


@pytest.mark.parametrize(("axes", "flips"), SIGNED)
def test_a_voxel_keeps_its_millimetres_when_axes_are_turned(axes, flips):
    affine = np.zeros((4, 4))
    for ras in range(3):
        affine[ras, axes[ras]] = (-1 if flips[ras] else 1) * (0.8, 1.2, 2.5)[ras]
    affine[:, 3] = (3, -4, 50, 1)

    found = nearest_ras(affine)
    turned = ras_affine(affine, FILE_SHAPE, *found)

    assert found == (axes, flips)
    assert np.allclose(turned[:3, :3], np.diag((0.8, 1.2, 2.5)))
    grid = np.indices(FILE_SHAPE).reshape(3, 1, -1)
    origin = origin_of(axes, flips)
    homogeneous = np.vstack([grid[:, 0], np.ones((1, grid.shape[-1]))])
    millimetres = (affine @ homogeneous)[:3].reshape(3, *FILE_SHAPE)
    ras = from_file_order(millimetres, origin)
    index = np.indices(ras.shape[1:]).reshape(3, -1)
    again = (turned @ np.vstack([index, np.ones((1, index.shape[1]))]))[:3]
    assert np.allclose(again.reshape(ras.shape), ras)


def test_spacing_shape_and_channels_come_from_affine_and_voxels():
    volume = volume_of()

    assert volume.spacing_mm == pytest.approx((0.8, 1.2, 2.5))
    assert volume.shape == (11, 13, 7)
    assert volume.channels == 2
    turned = np.array([[0.0, -2, 0], [3, 0, 0], [0, 0, 4]])
    assert spacing_of(np.block([[turned, np.zeros((3, 1))], [np.zeros((1, 3)), 1]])) == (3, 2, 4)


def test_other_voxels_on_the_same_grid_keep_everything_else():
    volume = Volume(**{**vars(volume_of()), "notes": (Note("a", "b"),)})

    other = volume.with_voxels(np.zeros(volume.shape))

    assert other.voxels.shape == (1, 11, 13, 7)
    assert other.notes == volume.notes
    assert other.origin is volume.origin


@pytest.mark.parametrize("shape", [(13, 11, 7), (1, 11, 13, 8)])
def test_voxels_of_another_shape_are_refused(shape):
    with pytest.raises(ShapeError):
        volume_of().with_voxels(np.zeros(shape))
    with pytest.raises(ShapeError):
        to_file_order(np.zeros(shape), origin_of((0, 1, 2), (False,) * 3))
    with pytest.raises(ShapeError):
        from_file_order(np.zeros(shape), origin_of((0, 1, 2), (False,) * 3))


def test_a_volume_needs_its_channel_axis():
    volume = volume_of()

    with pytest.raises(ShapeError, match="c x y z"):
        Volume(volume.voxels[0], volume.affine, origin=volume.origin)


def test_other_voxels_on_the_same_grid_forget_which_were_replaced():
    volume = replace(volume_of(), unusable=np.ones((2, 11, 13, 7), bool))

    assert volume.with_voxels(np.zeros((2, 11, 13, 7))).unusable is None
