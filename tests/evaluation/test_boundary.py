"""Surface voxels of all classes at once, against a loop over voxels and neighbours."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from mim3d.evaluation.boundary import boundary


def organs(seed: int, kind: type = np.uint8) -> np.ndarray:
    random = np.random.default_rng(seed)
    field = gaussian_filter(random.standard_normal((11, 13, 7)), 1.5)
    return np.array([0, 1, 2, 4])[
        np.digitize(field, np.quantile(field, (0.3, 0.6, 0.8)))
    ].astype(kind)  # fmt: skip


def slow_surface(mask: np.ndarray) -> list[tuple[int, ...]]:
    found = []
    for point in map(tuple, np.argwhere(mask).tolist()):
        for axis, step in itertools.product(range(3), (-1, 1)):
            beside = list(point)
            beside[axis] += step
            outside = not 0 <= beside[axis] < mask.shape[axis]
            if outside or not mask[tuple(beside)]:
                found.append(point)
                break
    return found


@pytest.mark.parametrize("members", [(1,), (2,), (4,), (1, 2), (1, 4), (1, 2, 4)], ids=str)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_points_are_the_surface_of_a_class_or_of_a_region(
    members: tuple[int, ...], kind: type
) -> None:
    for seed in range(3):
        labels = organs(seed, kind)

        points = boundary(labels).points(members)

        expected = slow_surface(np.isin(labels, members))
        assert sorted(map(tuple, points.tolist())) == expected


def test_values_that_do_not_occur_have_no_surface() -> None:
    found = boundary(organs(0))

    for members in ((3,), (5,), (200,), (3, 200)):
        assert found.points(members).shape == (0, 3)
    assert found.points((3, 4)).tolist() == found.points((4,)).tolist()
    assert boundary(np.zeros((3, 4, 5), np.uint8)).points((1,)).shape == (0, 3)


def test_a_map_of_one_voxel_along_an_axis_is_all_border() -> None:
    for axis in range(3):
        labels = np.take(organs(1), [2], axis)

        assert len(boundary(labels).points((1, 2, 4))) == np.count_nonzero(labels)
