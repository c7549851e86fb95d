"""Charts of confusions, ROC curves and numbers are drawn, and hold what they are given."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from mim3d.foundation.errors import UserError
from mim3d.pictures import targets
from mim3d.pictures.targets import Roc, draw_classes, draw_numbers

CURVES = [Roc("0", [0, 0.5, 1], [0, 0.75, 1]), Roc("a $ b", [0, 0, 1], [0, 1, 1])]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are written from now on."""
    written: list[Figure] = []
    save = targets.save
    monkeypatch.setattr(
        targets, "save", lambda figure, path: (written.append(figure), save(figure, path))[1]
    )
    return written


def test_confusions_stand_where_truth_and_prediction_meet(
    tmp_path: Path, figures: list[Figure]
) -> None:
    confusion = np.array([[7, 1, 0], [2, 30, 4], [0, 0, 0]])

    path = draw_classes(tmp_path / "c.png", confusion, ["x", "y", "z"], CURVES, title="kind")

    matrix, rates = figures[0].axes
    shown = {tuple(map(int, text.get_position())): text.get_text() for text in matrix.texts}
    assert shown[1, 0] == "1"
    assert shown[0, 1] == "2"
    assert np.allclose(matrix.images[0].get_array()[1], [2 / 36, 30 / 36, 4 / 36])
    assert [label.get_text() for label in matrix.get_yticklabels()] == ["x", "y", "z"]
    assert (matrix.get_xlabel(), matrix.get_ylabel()) == ("predicted", "true")
    assert rates.lines[1].get_xydata().tolist() == [[0, 0], [0.5, 0.75], [1, 1]]
    assert matplotlib.image.imread(path).shape[:2] == (630, 1290)


def test_many_classes_have_shades_without_numbers_and_eight_named_curves(
    tmp_path: Path, figures: list[Figure]
) -> None:
    curves = [Roc(str(place), [0, 1], [0, 1]) for place in range(13)]

    draw_classes(tmp_path / "c.png", np.eye(13, dtype=int), list(map(str, range(13))), curves)

    matrix, rates = figures[0].axes
    assert not matrix.texts
    assert len(rates.lines) == 14
    assert len(rates.get_legend().get_texts()) == 8


def test_without_curves_there_is_the_matrix_alone(tmp_path: Path, figures: list[Figure]) -> None:
    draw_classes(tmp_path / "c.png", np.array([[3]]), ["only"], [])

    assert len(figures[0].axes) == 1


def test_numbers_stand_over_the_true_ones(tmp_path: Path, figures: list[Figure]) -> None:
    truth, predicted = np.array([20.0, 40.0, 60.0]), np.array([25.0, 30.0, 75.0])

    path = draw_numbers(tmp_path / "n.png", truth, predicted, title="age", text="error 10")

    axes = figures[0].axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[20, 20], [75, 75]]
    assert axes.lines[1].get_xydata().tolist() == [[20, 25], [40, 30], [60, 75]]
    assert axes.get_xlim() == axes.get_ylim()
    assert path.is_file()


def test_equal_numbers_are_drawn_too(tmp_path: Path) -> None:
    assert draw_numbers(tmp_path / "n.png", np.zeros(1), np.zeros(1)).is_file()


def test_equal_charts_are_equal_files(tmp_path: Path) -> None:
    one, other = (
        draw_classes(tmp_path / name, np.eye(2, dtype=int), ["0", "1"], CURVES)
        for name in ("1.png", "2.png")
    )

    assert one.read_bytes() == other.read_bytes()


def test_nothing_to_draw_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        draw_classes(tmp_path / "c.png", np.zeros((0, 0), int), [], [])
    with pytest.raises(UserError):
        draw_numbers(tmp_path / "n.png", np.zeros(0), np.zeros(0))
