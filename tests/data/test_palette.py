"""The colour table."""

from __future__ import annotations

import matplotlib
import numpy as np

from mim3d.data.palette import OKABE_ITO, TAB20, colour


def test_the_first_28_colours_differ_and_then_repeat() -> None:
    assert len({colour(place) for place in range(28)}) == 28
    assert colour(28) == colour(0) == OKABE_ITO[0]


def test_the_second_part_is_matplotlibs_tab20() -> None:
    theirs = np.array(matplotlib.colormaps["tab20"].colors) * 255

    assert np.array_equal(np.rint(theirs), TAB20)
