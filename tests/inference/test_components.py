"""Largest components against a flood fill written out here."""

from __future__ import annotations

import itertools

import numpy as np

from mim3d.inference.components import largest_components


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
