from __future__ import annotations

import numpy as np

from mim3d.data.crop_starts import grid_starts


def test_where_the_crop_holds_the_volume_or_reaches_beyond_it_starts_are_as_without_a_grid():
    assert grid_starts(9, 11, -4, 2, 8).tolist() == list(range(-4, 3))
    assert grid_starts(30, 11, -3, 22, 8).tolist() == [-3, 0, 8, 16, 22]
    assert grid_starts(11, 11, 0, 0, 8).tolist() == [0]


def test_every_voxel_of_a_volume_can_be_seen_on_a_grid():
    for shape in range(11, 60):
        found = grid_starts(shape, 11, 0, shape - 11, 8)
        assert (np.diff(found) <= 8).all()
        assert found[0] == 0
        assert found[-1] + 11 == shape
