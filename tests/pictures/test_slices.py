"""Planes as they are shown: a planted landmark lies where the letters say."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import nibabel as nib
import numpy as np
import pytest

from mim3d.pictures.canvas import axes_at, new_figure, save
from mim3d.pictures.slices import (
    LETTERS,
    NORMAL_AXIS,
    PLANES,
    cut,
    fullest,
    grey_range,
    said,
    show,
    thick_plane,
)

SHAPE = (11, 13, 7)
SPACING = (1.0, 1.5, 4.0)
ENDS = {"R": (0, -1), "L": (0, 0), "A": (1, -1), "P": (1, 0), "S": (2, -1), "I": (2, 0)}
"""Letter to the axis of RAS+ and the end of it where that side of the body lies."""


@pytest.mark.parametrize("plane", PLANES)
def test_letters_stand_where_that_side_of_the_body_is_shown(plane: str) -> None:
    edges = {0: np.s_[:, 0], 1: np.s_[:, -1], 2: np.s_[0, :], 3: np.s_[-1, :]}
    for place, letter in enumerate(LETTERS[plane]):
        axis, end = ENDS[letter]
        volume = np.zeros(SHAPE)
        np.moveaxis(volume, axis, 0)[end] = 1

        shown = cut(volume, plane, 3, SPACING)

        # left, right, top, bottom edge of the picture
        assert (shown.pixels[edges[place]] == 1).all()
        assert shown.pixels.mean() < 0.3


def test_right_is_shown_on_the_left_in_axial_and_coronal_planes() -> None:
    assert LETTERS["axial"] == ("R", "L", "A", "P")
    assert LETTERS["coronal"] == ("R", "L", "S", "I")


def test_axes_of_ras_mean_what_nibabel_says() -> None:
    assert nib.aff2axcodes(np.diag([*SPACING, 1.0])) == ("R", "A", "S")


@pytest.mark.parametrize("plane", PLANES)
def test_a_pixel_has_the_size_of_its_voxel(plane: str) -> None:
    shown = cut(np.zeros(SHAPE), plane, 2, SPACING)

    across = {"axial": 0, "coronal": 0, "sagittal": 1}[plane]
    down = {"axial": 1, "coronal": 2, "sagittal": 2}[plane]
    assert shown.pixels.shape == (SHAPE[down], SHAPE[across])
    assert shown.pixel_mm == (SPACING[down], SPACING[across])
    assert shown.size_mm == (SHAPE[down] * SPACING[down], SHAPE[across] * SPACING[across])


@pytest.mark.parametrize("plane", PLANES)
def test_a_cube_in_millimetres_is_drawn_as_a_square(plane: str, tmp_path: Path) -> None:
    volume = np.zeros((40, 32, 15))
    volume[8:20, 4:12, 5:8] = 1  # 12 mm along each axis at 1 x 1.5 x 4 mm
    figure = new_figure(4, 3)

    index = {"axial": 6, "coronal": 8, "sagittal": 12}[plane]
    # brg: 0 is blue, 1 is green; neither is the paper's white.
    show(axes_at(figure, 0.2, 0.2, 3, 2.5), cut(volume, plane, index, SPACING), cmap="brg")
    drawn = matplotlib.image.imread(save(figure, tmp_path / "p.png"))

    green = (drawn[..., 1] > 0.9) & (drawn[..., 0] < 0.1)
    rows, columns = (np.count_nonzero(green.any(axis=axis)) for axis in (1, 0))
    assert rows > 40
    assert rows == pytest.approx(columns, abs=2)


@pytest.mark.parametrize(
    ("spacing", "plane"),
    [((1, 1, 1), "axial"), ((1, 1, 3), "axial"), ((1, 5, 1), "coronal"), ((4, 1, 1), "sagittal")],
)
def test_the_plane_is_the_one_the_slices_were_taken_in(spacing: tuple, plane: str) -> None:
    assert thick_plane(spacing) == plane


def test_the_fullest_slice_has_the_most_voxels() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[2, 3, 4] = mask[5, 6, 1] = mask[7, 6, 1] = True

    assert [fullest(mask, plane) for plane in PLANES] == [1, 6, 2]
    empty = np.zeros(SHAPE, bool)
    assert [fullest(empty, plane) for plane in PLANES] == [
        SHAPE[NORMAL_AXIS[plane]] // 2 for plane in PLANES
    ]


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ((-160, 240), "-160 to 240"),
        ((0.0123, 0.7421), "0.012 to 0.74"),
        ((0, 9e4), "0 to 90,000"),
    ],
)
def test_grey_values_are_said_in_sensible_digits(limits: tuple, text: str) -> None:
    assert said(limits) == text


def test_grey_range_leaves_out_padding_and_single_bright_voxels() -> None:
    random = np.random.default_rng(0)
    tissue = random.uniform(10, 20, 5000)
    volume = np.concatenate([tissue, np.full(20000, -1000.0), [1e6, np.nan]])

    low, high = grey_range(volume)

    assert 10 <= low <= 10.5
    assert 19.5 <= high <= 20
    assert grey_range(np.zeros((3, 3))) == (0.0, 1.0)
    assert grey_range(np.full((2, 2), np.nan)) == (0.0, 1.0)
