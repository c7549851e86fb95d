"""Grids, centres and valid boxes."""

from __future__ import annotations

import itertools

import torch

from mim3d.tokens.grid import TokenGrid, valid_box

SIZE = (11, 13, 7)
PATCH = (4, 4, 2)


def test_the_grid_covers_the_crop_with_the_fewest_patches() -> None:
    grid = TokenGrid.over(SIZE, PATCH)

    assert grid.counts == (3, 4, 4)
    assert grid.n == 48
    assert grid.padded == (12, 16, 8)


def test_tokens_are_numbered_with_z_fastest() -> None:
    grid = TokenGrid.over(SIZE, PATCH)

    places = list(itertools.product(range(3), range(4), range(4)))

    assert grid.indices().tolist() == [list(place) for place in places]


def test_centres_in_mm_are_measured_from_the_centre_of_the_crop_before_padding() -> None:
    grid = TokenGrid.over(SIZE, PATCH)
    spacing = torch.tensor([[0.5, 1.0, 3.0], [1.0, 2.0, 0.25]])

    centres = grid.centres_mm(spacing)

    # first token of the first sample: ((0.5 * 4) - 5.5) * 0.5, (2 - 6.5) * 1, (1 - 3.5) * 3
    assert centres[0, 0].tolist() == [-1.75, -4.5, -7.5]
    # last token of the second sample: (10 - 5.5) * 1, (14 - 6.5) * 2, (7 - 3.5) * 0.25
    assert centres[1, -1].tolist() == [4.5, 15.0, 0.875]


def test_the_valid_box_is_the_smallest_that_holds_all_valid_voxels() -> None:
    valid = torch.zeros(2, *SIZE, dtype=torch.bool)
    valid[0, 2:9, 1:13, 3:4] = True
    valid[1, 4, 5, 6] = True
    valid[1, 10, 0, 2] = True

    box = valid_box(valid)

    assert box.start.tolist() == [[2, 1, 3], [4, 0, 2]]
    assert box.stop.tolist() == [[9, 13, 4], [11, 6, 7]]


def test_a_sample_without_valid_voxels_has_the_whole_crop_as_its_box() -> None:
    box = valid_box(torch.zeros(1, *SIZE, dtype=torch.bool))

    assert box.start.tolist() == [[0, 0, 0]]
    assert box.stop.tolist() == [list(SIZE)]
