"""Places of further views: shared voxels are counted, not reckoned."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mim3d.data.nearby import draw_nearby

SIZE = (11, 13, 7)
SHARES = [0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999, 1.0]


def shared_voxels(one: tuple[int, ...], other: tuple[int, ...], size: tuple[int, ...]) -> int:
    """Voxels of both boxes, counted along each axis by their numbers."""
    along = [
        len(set(range(a, a + n)) & set(range(b, b + n)))
        for a, b, n in zip(one, other, size, strict=True)
    ]
    return along[0] * along[1] * along[2]


def drawn(start, size, low, high, share, seed=0, step=1) -> tuple[int, int, int]:
    possible = [np.arange(a, b + 1, step) for a, b in zip(low, high, strict=True)]
    return draw_nearby(start, size, possible, share, np.random.default_rng(seed))


def test_the_oracle_counts_voxels_of_both_boxes():
    ours = {p for p in product(range(3, 14), range(5, 18), range(2, 9))}
    theirs = {p for p in product(range(7, 18), range(4, 17), range(5, 12))}

    assert shared_voxels((3, 5, 2), (7, 4, 5), SIZE) == len(ours & theirs) == 7 * 12 * 4


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_enough_voxels_are_shared_and_the_place_is_a_possible_one(data):
    size = tuple(data.draw(st.integers(1, 20)) for _ in range(3))
    low = tuple(data.draw(st.integers(-10, 5)) for _ in range(3))
    high = tuple(a + data.draw(st.integers(0, 40)) for a in low)
    start = tuple(data.draw(st.integers(a, b)) for a, b in zip(low, high, strict=True))
    share = data.draw(st.sampled_from(SHARES))

    other = drawn(start, size, low, high, share, data.draw(st.integers(0, 2**32)))

    assert all(a <= s <= b for a, s, b in zip(low, other, high, strict=True))
    # half a voxel in a million is what a share such as 0.7 may be off as a float
    assert shared_voxels(start, other, size) >= share * np.prod(size) * (1 - 1e-6)


def test_every_place_that_shares_enough_comes_equally_often():
    start, size, low, high, share = (4, 6, 3), (5, 6, 4), (1, 0, 2), (20, 30, 9), 0.45
    near = {
        place
        for place in product(*(range(a, b + 1) for a, b in zip(low, high, strict=True)))
        if shared_voxels(start, place, size) >= share * np.prod(size)
    }

    found = Counter(drawn(start, size, low, high, share, seed) for seed in range(6000))

    assert set(found) == near
    assert len(near) > 20
    expected = 6000 / len(near)
    assert max(abs(n - expected) for n in found.values()) < 5 * np.sqrt(expected)


@pytest.mark.parametrize(
    ("side", "share", "most"), [(10, 0.9, 1), (10, 0.7, 3), (10, 0.1, 9), (7, 0.9, 0)]
)
def test_the_widest_shift_along_one_axis_is_exact(side, share, most):
    """(1 - 0.9) x 10 is 0.9999999999999998 as a float, and must still be one voxel."""
    found = {
        drawn((50, 0, 0), (side, 3, 3), (0, 0, 0), (99, 0, 0), share, s)[0] for s in range(400)
    }

    assert found == set(range(50 - most, 50 + most + 1))


def test_at_no_overlap_any_possible_place_will_do():
    found = {drawn((0, 0, 0), (4, 4, 4), (0, 0, 0), (50, 0, 0), 0.0, s)[0] for s in range(2000)}

    assert found == set(range(51))


def test_a_whole_overlap_is_the_same_place():
    assert {drawn((3, 5, 2), SIZE, (0, 0, 0), (20, 20, 20), 1.0, s) for s in range(50)} == {
        (3, 5, 2)
    }


def test_places_stay_on_a_grid():
    found = {drawn((8, 8, 8), (12, 12, 12), (0, 0, 0), (40, 40, 40), 0.3, s, 4) for s in range(500)}

    assert all(axis % 4 == 0 for place in found for axis in place)
    assert len(found) > 20
