"""Colours of labels."""

from __future__ import annotations

import numpy as np

from mim3d.data.classes import ClassTable
from mim3d.data.palette import OKABE_ITO
from mim3d.pictures.colours import fill, grey_to_rgb, paints


def test_labels_take_okabe_ito_first_and_background_takes_none() -> None:
    table = paints(ClassTable.from_values([0, 3, 7], {3: "head", 7: "tail"}))

    assert list(table) == [3, 7]
    assert (table[3].name, table[3].colour) == ("head", OKABE_ITO[0])
    assert table[7].colour == OKABE_ITO[1]


def test_a_fill_mixes_its_colour_into_the_grey() -> None:
    grey = grey_to_rgb(np.array([[0.0, 5.0], [10.0, 20.0]]), 0, 10)

    mixed = fill(grey, np.array([[3, 0], [3, 0]]), paints(ClassTable.from_values([0, 3])), 0.5)

    assert grey[..., 0].tolist() == [[0, 0.5], [1, 1]]
    tone = np.array(OKABE_ITO[0]) / 255
    assert np.allclose(mixed[0, 0], tone / 2)
    assert np.allclose(mixed[1, 0], 0.5 + tone / 2)
    assert np.array_equal(mixed[:, 1], grey[:, 1])
