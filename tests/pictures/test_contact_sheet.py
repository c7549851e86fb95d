"""The contact sheet, looked up in its pixels."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from mim3d.data.classes import ClassTable
from mim3d.foundation.errors import UserError
from mim3d.pictures.canvas import as_typed
from mim3d.pictures.colours import paints, unit
from mim3d.pictures.contact_sheet import draw_contact_sheet, sheet_entry

TABLE = paints(ClassTable.from_values([0, 1], {1: "organ"}))
SPACING = (1.0, 2.0, 5.0)


def case() -> tuple[np.ndarray, np.ndarray]:
    labels = np.zeros((40, 30, 8), np.uint8)
    labels[26:36, 18:25, 6] = 1
    return np.random.default_rng(0).uniform(0, 1, labels.shape), labels


def test_an_entry_is_the_fullest_slice_of_the_thick_plane() -> None:
    image, labels = case()

    entry = sheet_entry("a", image, labels, SPACING)

    assert entry.image.plane == "axial"
    assert np.array_equal(entry.image.pixels, image[::-1, ::-1, 6].T)
    assert entry.labels is not None
    assert entry.labels.sum() == labels.sum()
    assert entry.field_mm == (40.0, 60.0, 40.0)


def test_every_case_has_a_cell_and_labels_have_outlines_on_the_right_side(tmp_path: Path) -> None:
    image, labels = case()
    entries = [sheet_entry(f"case_{i}", image, labels, SPACING) for i in range(6)]

    path = draw_contact_sheet(tmp_path / "s.png", entries, TABLE, title="six", columns=3)

    picture = matplotlib.image.imread(path)[..., :3]
    assert picture.shape[1] == 3 * 206
    outline = np.abs(picture - np.array(unit(TABLE[1].colour))).max(axis=-1) < 0.03
    for column in range(3):
        places = np.argwhere(outline[:, 206 * column : 206 * column + 200])
        assert len(places) > 60
        # The organ lies to the right of the body: on the left half of its cell.
        assert places[:, 1].max() < 100


def test_a_cohort_without_labels_is_drawn(tmp_path: Path) -> None:
    image, _ = case()

    entries = [sheet_entry("a_rather_long_name_of_a_case_0001", image, None, SPACING)]

    assert draw_contact_sheet(tmp_path / "s.png", entries, TABLE).stat().st_size > 1000


def test_no_cases_are_no_sheet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one case"):
        draw_contact_sheet(tmp_path / "s.png", [], TABLE)


@pytest.mark.parametrize("name", ["a$\\frac$b", "$", "\udcff\udcfe", "a$b$c"])
def test_any_name_of_a_file_is_drawn_as_it_is_typed(name: str, tmp_path: Path) -> None:
    image, _ = case()
    entries = [sheet_entry(name, image, None, SPACING)]

    path = draw_contact_sheet(tmp_path / "s.png", entries, TABLE, title=name)

    assert path.stat().st_size > 1000
    assert as_typed("a$b\udcff") == r"a\$b?"
