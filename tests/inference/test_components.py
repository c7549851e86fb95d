"""Largest components against a flood fill written out here."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mim3d.inference import components as module
from mim3d.inference.components import largest_components


@pytest.fixture(params=[1, 10**9], ids=["runs", "flooding"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test goes both ways, whichever its map's share of runs would choose."""
    monkeypatch.setattr(module, "RUN_SHARE", request.param)


def flood(labels: np.ndarray) -> np.ndarray:
    """The slow way: every component by walking over all 26 neighbours."""
    kept = np.zeros_like(labels)
    steps = [s for s in itertools.product((-1, 0, 1), repeat=3) if any(s)]
    for value in np.unique(labels[labels > 0]):
        left = {tuple(p) for p in np.argwhere(labels == value)}
        pieces = []
        while left:
            todo, piece = [min(left)], set()
            while todo:
                point = todo.pop()
                if point in left:
                    left.remove(point)
                    piece.add(point)
                    todo += [tuple(np.add(point, step)) for step in steps]
            pieces.append(piece)
        # max takes the first of equals, and pieces begin with their smallest voxel.
        for point in max(pieces, key=len):
            kept[point] = value
    return kept


def test_equals_a_flood_fill_over_26_neighbours() -> None:
    random = np.random.default_rng(2)
    for share in (0.05, 0.1, 0.2):
        labels = (random.random((11, 13, 7)) < share) * random.choice([1, 2, 500], (11, 13, 7))
        labels = labels.astype(np.uint16)

        assert np.array_equal(largest_components(labels), flood(labels))


def test_voxels_that_touch_by_a_corner_are_one_component() -> None:
    labels = np.zeros((6, 5, 4), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = labels[2, 2, 2] = 3
    labels[4, 4, 0] = labels[5, 4, 0] = 3

    cleaned = largest_components(labels)

    assert cleaned.sum() == 9
    assert cleaned[4:, 4, 0].sum() == 0


def test_one_label_may_lie_within_the_box_of_another() -> None:
    labels = np.ones((9, 8, 7), np.uint8)
    labels[2:4, 2:4, 2:4] = 2
    labels[6, 6, 5] = 2

    cleaned = largest_components(labels)

    assert (cleaned == 2).sum() == 8
    assert cleaned[6, 6, 5] == 0
    assert (cleaned == 1).sum() == (labels == 1).sum()


def test_the_input_stays_as_it_is_and_an_empty_map_is_fine() -> None:
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[0, 0, 0] = labels[3, 3, 3] = 1
    before = labels.copy()

    assert largest_components(labels).sum() == 1
    assert np.array_equal(labels, before)
    assert not largest_components(np.zeros((4, 5, 6), np.uint8)).any()


def test_the_order_in_memory_does_not_matter_and_stays() -> None:
    random = np.random.default_rng(3)
    labels = (random.random((11, 13, 7)) < 0.1) * random.choice([1, 2], (11, 13, 7))
    labels = labels.astype(np.uint8)

    for axes in itertools.permutations(range(3)):
        turned = np.ascontiguousarray(labels.transpose(axes)).transpose(np.argsort(axes))
        cleaned = largest_components(turned)
        assert np.array_equal(cleaned, flood(labels))
        assert cleaned.strides == turned.strides


def test_of_equal_pieces_the_first_in_the_order_of_x_y_z_stays_in_any_memory() -> None:
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[1, 5, 6] = labels[4, 0, 0] = labels[2, 2, 7] = 1

    for stored in (labels, np.asfortranarray(labels)):
        assert np.argwhere(largest_components(stored)).tolist() == [[1, 5, 6]]


def test_rows_and_planes_do_not_touch_around_the_end() -> None:
    labels = np.zeros((4, 5, 6), np.uint8)
    # The last voxel of a row and the first of the next, the last row of a plane likewise.
    labels[0, 1, 5] = labels[0, 2, 0] = labels[0, 4, 3] = labels[1, 0, 3] = 1
    labels[3, 0, 0] = labels[3, 0, 1] = 1

    assert np.argwhere(largest_components(labels)).tolist() == [[3, 0, 0], [3, 0, 1]]


def test_noise_is_flooded_and_organs_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RUN_SHARE", 16)
    taken = []
    flooded = module._flooded
    monkeypatch.setattr(module, "_flooded", lambda labels: taken.append(1) or flooded(labels))
    noise = np.random.default_rng(4).integers(0, 3, (11, 13, 7)).astype(np.uint8)
    organ = np.zeros((11, 13, 37), np.uint8)
    organ[2:6, 3:9, 4:30] = 1

    assert np.array_equal(largest_components(noise), flood(noise))
    assert taken == [1]
    assert np.array_equal(largest_components(organ), organ)
    assert taken == [1]
