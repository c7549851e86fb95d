"""Box plots: every value is seen, and boxes are where quartiles are."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.image import imread

from mim3d.foundation.errors import UserError
from mim3d.pictures import boxes
from mim3d.pictures.boxes import draw_boxes

VALUES = [0.1, 0.62, 0.65, 0.7, 0.71, 0.74, 0.8]


@pytest.fixture
def figures(monkeypatch):
    """The figures as they are before they become pixels."""
    kept = []
    save = boxes.save
    monkeypatch.setattr(
        boxes, "save", lambda figure, path: kept.append(figure) or save(figure, path)
    )
    return kept


def test_a_box_goes_from_quartile_to_quartile_and_whiskers_to_the_last_near_value(
    tmp_path, figures
):
    draw_boxes(tmp_path / "a.png", {"organ": {"": VALUES}})

    [axes] = figures[0].axes
    [bar] = axes.patches
    low, median, high = np.percentile(VALUES, (25, 50, 75))
    assert bar.get_x() == pytest.approx(low)
    assert bar.get_x() + bar.get_width() == pytest.approx(high)
    lines = [line.get_xdata() for line in axes.lines]
    # 0.1 lies beyond 0.635 - 1.5 x 0.09 = 0.5.
    assert [0.62, low] in [sorted(map(float, line)) for line in lines]
    assert any(np.allclose(line, median) for line in lines)
    dots = next(line for line in axes.lines if line.get_marker() == "o")
    assert sorted(dots.get_xdata()) == VALUES


def test_a_whisker_never_runs_into_its_box(tmp_path, figures):
    # The upper quartile, 17.25, lies beyond the last value that is not far out, 9.
    draw_boxes(tmp_path / "a.png", {"organ": {"": [8.0, 8.5, 9.0, 42.0]}}, quantity="HD95")

    [axes] = figures[0].axes
    [bar] = axes.patches
    ends = [x for line in axes.lines if line.get_marker() != "o" for x in line.get_xdata()]
    assert max(ends) >= bar.get_x() + bar.get_width()


def test_groups_stand_below_each_other_and_arms_keep_their_colour(tmp_path, figures):
    groups = {
        "b": {"mae": [0.5, 0.6], "scratch": [0.1, 0.2]},
        "a": {"scratch": [0.3, 0.4], "mae": [float("nan")]},
        "empty": {"mae": []},
    }

    path = draw_boxes(tmp_path / "a.png", groups, title="a $title")

    [axes] = figures[0].axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["b", "a"]
    tones = [bar.get_edgecolor() for bar in axes.patches]
    assert tones[1] == tones[2] != tones[0]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    pixels = imread(path)
    assert pixels.std() > 0.05


def test_the_same_values_are_the_same_file(tmp_path):
    one, other = (draw_boxes(tmp_path / name, {"a": {"": VALUES}}) for name in ("1.png", "2.png"))

    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("groups", [{}, {"a": {}}, {"a": {"x": []}}, {"a": {"x": [float("nan")]}}])
def test_nothing_to_draw_is_said(tmp_path, groups):
    with pytest.raises(UserError, match="at least one value"):
        draw_boxes(tmp_path / "a.png", groups)
