"""One set of colours for labels and lines, told apart by most colour-blind readers."""

from __future__ import annotations

Rgb = tuple[int, int, int]

OKABE_ITO: tuple[Rgb, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
    (0, 114, 178), (213, 94, 0), (204, 121, 167), (153, 153, 153),
)  # fmt: skip
"""Okabe and Ito (2008), "Color Universal Design"; black is left to text and background."""
TAB20: tuple[Rgb, ...] = (
    (31, 119, 180), (174, 199, 232), (255, 127, 14), (255, 187, 120), (44, 160, 44),
    (152, 223, 138), (214, 39, 40), (255, 152, 150), (148, 103, 189), (197, 176, 213),
    (140, 86, 75), (196, 156, 148), (227, 119, 194), (247, 182, 210), (127, 127, 127),
    (199, 199, 199), (188, 189, 34), (219, 219, 141), (23, 190, 207), (158, 218, 229),
)  # fmt: skip
"""Matplotlib's `tab20`, from the ninth label on."""


def colour(place: int) -> Rgb:
    """The colour of the label, arm or line number `place`, from 0; repeats after 28."""
    palette = OKABE_ITO + TAB20
    return palette[place % len(palette)]
