"""The overlay panel, looked up in its pixels."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from mim3d.data.classes import ClassTable
from mim3d.data.palette import Rgb
from mim3d.foundation.errors import ShapeError
from mim3d.pictures.colours import FALSE_NEGATIVE, FALSE_POSITIVE, WRONG_CLASS, paints, unit
from mim3d.pictures.overlay import draw_overlay

SHAPE = (60, 50, 12)
SPACING = (1.0, 1.0, 3.0)
TABLE = paints(ClassTable.from_values([0, 1, 2], {1: "head", 2: "tail"}))


def has(picture: np.ndarray, rgb: Rgb, image: float = 0.0, opacity: float = 1.0) -> np.ndarray:
    """Where the picture has a colour, laid over grey of `image`."""
    wanted = opacity * np.array(unit(rgb)) + (1 - opacity) * image
    return np.abs(picture[..., :3] - wanted).max(axis=-1) < 0.02


def drawn(path: Path) -> np.ndarray:
    return matplotlib.image.imread(path)


def scene() -> tuple[np.ndarray, np.ndarray]:
    image, labels = np.zeros(SHAPE), np.zeros(SHAPE, np.uint8)
    labels[20:30, 20:30, 3:9] = 1
    labels[30:40, 20:30, 3:9] = 2
    return image, labels


def test_errors_have_colours_of_their_own(tmp_path: Path) -> None:
    image, truth = scene()
    guess = truth.copy()
    guess[20:24, 20:30, 3:9] = 0
    guess[40:43, 20:30, 3:9] = 2
    guess[30:32, 20:30, 3:9] = 1

    path = draw_overlay(
        tmp_path / "o.png", image=image, prediction=guess, truth=truth, spacing_mm=SPACING,
        table=TABLE, grey=(0, 1),
    )  # fmt: skip

    picture = drawn(path)
    sizes = [
        has(picture, rgb, opacity=0.8).sum()
        for rgb in (FALSE_NEGATIVE, FALSE_POSITIVE, WRONG_CLASS)
    ]
    # 4, 3 and 2 columns of ten voxels, in each of three slices.
    assert sizes[0] / sizes[1] == pytest.approx(4 / 3, rel=0.06)
    assert sizes[1] / sizes[2] == pytest.approx(3 / 2, rel=0.06)


def test_a_perfect_prediction_shows_no_error(tmp_path: Path) -> None:
    image, truth = scene()

    path = draw_overlay(
        tmp_path / "o.png", image=image, prediction=truth, truth=truth, spacing_mm=SPACING,
        table=TABLE, grey=(0, 1),
    )  # fmt: skip

    assert not has(drawn(path), FALSE_NEGATIVE, opacity=0.8).any()
    assert has(drawn(path), TABLE[1].colour, opacity=0.5).any()


def test_right_is_on_the_left_and_anterior_on_top(tmp_path: Path) -> None:
    image, labels = scene()
    labels[:] = 0
    labels[50:55, 40:45, 4:8] = 1  # right anterior
    labels[5:10, 5:10, 4:8] = 2  # left posterior

    path = draw_overlay(
        tmp_path / "o.png", image=image, prediction=labels, spacing_mm=SPACING, table=TABLE,
        grey=(0, 1),
    )  # fmt: skip

    picture = drawn(path)
    one, two = (
        np.argwhere(has(picture, TABLE[value].colour, opacity=0.5)).mean(axis=0) for value in (1, 2)
    )
    assert one[0] < two[0]
    assert one[1] < two[1]


@pytest.mark.parametrize("best", [0, 5, 11])
def test_three_slices_are_shown_wherever_the_fullest_lies(best: int, tmp_path: Path) -> None:
    image, labels = scene()
    labels[:] = 0
    labels[20:30, 20:30, :] = 1
    labels[15:35, 15:35, best] = 1

    path = draw_overlay(
        tmp_path / "o.png", image=image, prediction=labels, spacing_mm=SPACING, table=TABLE,
        grey=(0, 1),
    )  # fmt: skip

    columns = np.flatnonzero(has(drawn(path), TABLE[1].colour, opacity=0.5).any(axis=0))
    blocks = 1 + np.count_nonzero(np.diff(columns) > 20)
    assert blocks == 3


def test_a_volume_of_one_slice_is_shown_once(tmp_path: Path) -> None:
    image, labels = scene()
    flat = np.s_[:, :, 5:6]

    path = draw_overlay(
        tmp_path / "o.png", image=image[flat], prediction=labels[flat], spacing_mm=SPACING,
        table=TABLE, grey=(0, 1),
    )  # fmt: skip

    columns = np.flatnonzero(has(drawn(path), TABLE[1].colour, opacity=0.5).any(axis=0))
    assert not np.count_nonzero(np.diff(columns) > 20)


def test_an_empty_prediction_without_truth_is_drawn(tmp_path: Path) -> None:
    image, labels = scene()

    path = draw_overlay(
        tmp_path / "o.png", image=image, prediction=0 * labels, spacing_mm=SPACING, table=TABLE
    )

    assert drawn(path).shape[1] >= 900


def test_labels_on_another_grid_are_refused(tmp_path: Path) -> None:
    image, labels = scene()

    with pytest.raises(ShapeError, match="one grid"):
        draw_overlay(
            tmp_path / "o.png", image=image, prediction=labels[1:], spacing_mm=SPACING, table=TABLE
        )
    assert not list(tmp_path.iterdir())
