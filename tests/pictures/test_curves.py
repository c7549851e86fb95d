"""Charts: the numbers behind them, and that they are drawn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

import mim3d.pictures
from mim3d.foundation.errors import UserError
from mim3d.pictures.curves import (
    Panel,
    draw_cases,
    draw_curves,
    draw_loss,
    draw_panels,
    on_common_steps,
    running_median,
    worst_cases,
)

CASES = {"head": {"a": 0.9, "b": 0.2}, "tail": {"a": 0.4, "b": 0.95, "c": 0.5}}


def test_running_median_is_that_of_each_neighbourhood() -> None:
    values = np.random.default_rng(0).random(41)

    smooth = running_median(values, share=0.2)

    assert smooth[20] == np.median(values[16:25])
    assert smooth[0] == np.median(values[:5])
    assert np.isfinite(running_median(np.array([1.0, np.nan, 3.0]))).all()


def test_curves_of_other_steps_meet_on_what_both_span() -> None:
    steps, values = on_common_steps([([0, 10, 20], [0.0, 1.0, 2.0]), ([5, 15], [1.0, 3.0])])

    assert steps.tolist() == [5, 10, 15]
    assert values.tolist() == [[0.5, 1.0, 1.5], [1.0, 2.0, 3.0]]


def test_worst_cases_are_the_smallest_dice_and_the_largest_distance() -> None:
    assert worst_cases(CASES, True, 2) == [("head", "b", 0.2), ("tail", "a", 0.4)]
    assert worst_cases(CASES, False, 1) == [("tail", "b", 0.95)]


def test_charts_are_written(tmp_path: Path) -> None:
    loss = draw_loss(tmp_path / "loss.png", range(1, 40), np.geomspace(1, 0.1, 39))
    arms = {"one": [([1, 2], [0.1, 0.2])] * 2, "two": [([1, 2], [0.2, 0.3])], "none": []}
    curves = draw_curves(tmp_path / "curves.png", arms, log_steps=True)
    cases = draw_cases(tmp_path / "cases.png", CASES)
    panel = Panel("R2", {"encoder": ([0, 5], [0.1, 0.2])}, {"before": 0.15, "voxels": 0.1})
    panels = draw_panels(tmp_path / "panels.png", [panel, Panel("none", {}), panel])

    for path in (loss, curves, cases, panels):
        picture = matplotlib.image.imread(path)
        assert picture.shape[0] > 400
        assert picture[..., :3].std() > 0.01


def test_empty_panels_take_no_room(tmp_path: Path) -> None:
    panel, none = Panel("R2", {"encoder": ([0, 5], [0.1, 0.2])}), Panel("none", {})

    one = draw_panels(tmp_path / "one.png", [panel, panel])
    same = draw_panels(tmp_path / "same.png", [none, panel, none, panel])
    two = draw_panels(tmp_path / "two.png", [panel] * 3)

    assert one.read_bytes() == same.read_bytes()
    assert matplotlib.image.imread(two).shape[0] > matplotlib.image.imread(one).shape[0]


def test_a_loss_that_is_not_positive_or_not_finite_is_drawn(tmp_path: Path) -> None:
    path = draw_loss(tmp_path / "loss.png", [1, 2, 3], [0.5, float("nan"), -0.1])

    assert path.is_file()


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: draw_loss(path, [], []),
        lambda path: draw_curves(path, {"one": []}),
        lambda path: draw_cases(path, {"head": {}}),
        lambda path: draw_panels(path, [Panel("none", {"x": ([], [])})]),
    ],
)
def test_nothing_to_draw_is_said(draw: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one"):
        draw(tmp_path / "x.png")  # type: ignore[operator]


def test_pictures_do_without_pyplot() -> None:
    folder = Path(mim3d.pictures.__file__).parent
    lines = "; ".join(f"import mim3d.pictures.{path.stem}" for path in folder.glob("*.py"))
    code = f"{lines}; import sys; assert 'matplotlib.pyplot' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], check=True)
