"""Logits laid on a volume's grid by rows, against the whole array by SciPy and by `resample_to`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from mim3d.data.regions import SCHEMES
from mim3d.data.resample import resample_to
from mim3d.inference import way_back
from mim3d.inference.outputs import labels_of
from mim3d.inference.segmenter import Segmenter
from mim3d.inference.way_back import WayBack

SHAPE = (11, 13, 7)
FROM = np.array([[1.3, 0, 0, -4], [0, 2.0, 0, 3], [0, 0, 0.7, 9], [0, 0, 0, 1.0]])


def to(spacing: tuple[float, float, float], first: tuple[float, float, float]) -> np.ndarray:
    """A grid of that spacing whose first voxel lies at voxel `first` of the other grid."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = FROM[:3, :3] @ np.array(first) + FROM[:3, 3]
    return affine


def logits(outputs: int = 3) -> torch.Tensor:
    return torch.randn((outputs, *SHAPE), generator=torch.Generator().manual_seed(2))


def laid(way: WayBack, values: torch.Tensor, axis: int, pieces: list[int]) -> torch.Tensor:
    """All that comes out, of slabs whose memory is overwritten once they were read."""

    def rows():  # type: ignore[no-untyped-def]
        first = 0
        for count in pieces:
            slab = values.narrow(1 + axis, first, count).clone()
            yield first, slab
            slab.fill_(torch.nan)
            first += count
        assert first == values.shape[1 + axis]

    parts, expected = [], 0
    for first, part in way.lay(rows(), axis):
        assert first == expected
        expected += part.shape[1 + axis]
        parts.append(part.clone())
    return torch.cat(parts, 1 + axis)


GRIDS = {
    "finer": (to((0.6, 0.9, 0.4), (-0.4, -0.2, -0.3)), (24, 29, 13)),
    "coarser": (to((2.9, 4.1, 1.5), (0.3, 0.4, 0.2)), (5, 6, 3)),
    "mixed": (to((0.6, 4.1, 0.7), (0.3, 0.1, 0.25)), (20, 6, 6)),
    "cropped": (to((1.3, 2.0, 0.7), (-4, -2, -3)), (19, 17, 12)),
    "finer-and-cropped": (to((1.1, 1.5, 0.5), (-3.3, -2.1, -4.4)), (24, 25, 18)),
    "within": (to((1.0, 1.5, 0.5), (2.2, 3.1, 1.4)), (6, 7, 5)),
    "much-coarser": (to((6.0, 9.0, 2.2), (0.1, 0.2, 0.4)), (2, 3, 2)),
}
PIECES = {0: [11], 1: [1] * 13, 2: [3, 1, 2, 1]}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("most", [1, 2000, 1 << 24])
def test_rows_are_those_of_the_whole_array(
    grid: str, axis: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caught: the row kept for the next slab being a view of memory that is overwritten."""
    monkeypatch.setattr(way_back, "MOST_VALUES", most)
    affine, shape = GRIDS[grid]
    way = WayBack(FROM, SHAPE, affine, shape)

    found = laid(way, logits(), axis, PIECES[axis])

    whole = resample_to(logits().numpy(), FROM, affine, shape, outside=np.nan)
    box = (slice(None), *way.box)
    assert np.allclose(found.numpy(), whole[box], atol=1e-5)
    inside = np.zeros(shape, bool)
    inside[way.box] = True
    assert (np.isnan(whole[0]) == ~inside).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_values_are_scipys(grid: str) -> None:
    affine, shape = GRIDS[grid]
    way = WayBack(FROM, SHAPE, affine, shape)

    found = laid(way, logits(), 0, [4, 7])

    relation = np.linalg.inv(FROM) @ affine
    places = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    places = (
        np.einsum("ij,jxyz->ixyz", relation[:3, :3], places) + relation[:3, 3, None, None, None]
    )
    expected = np.stack(
        [ndimage.map_coordinates(one, places, order=1, mode="mirror") for one in logits().numpy()]
    )
    assert np.allclose(found.numpy(), expected[(slice(None), *way.box)], atol=1e-5)


def test_a_crop_comes_back_untouched() -> None:
    affine, shape = GRIDS["cropped"]

    way = WayBack(FROM, SHAPE, affine, shape)

    assert way.is_straight
    assert way.box == (slice(4, 15), slice(2, 15), slice(3, 10))
    assert not WayBack(FROM, SHAPE, *GRIDS["finer"]).is_straight


@pytest.mark.parametrize("turn", ["oblique", "mirrored"])
def test_grids_that_are_turned_against_each_other_are_refused(turn: str) -> None:
    affine = FROM.copy()
    if turn == "oblique":
        affine[0, 1] = 0.1
    else:
        affine[0, 0] = -1.3

    with pytest.raises(ValueError, match="turned"):
        WayBack(FROM, SHAPE, affine, SHAPE)


@pytest.mark.parametrize("model", ["classes", "regions"])
def test_nothing_asks_the_device_for_a_number_on_the_way_from_logits_to_labels(model: str) -> None:
    """On the `meta` device any read of a value raises."""
    regions = SCHEMES["brats2021"] if model == "regions" else None
    segmenter = Segmenter(torch.nn.Identity(), (8, 8, 8), regions=regions)
    affine, shape = GRIDS["finer-and-cropped"]
    way = WayBack(FROM, SHAPE, affine, shape, device="meta")
    rows = [
        (0, torch.empty((3, 4, 13, 7), device="meta")),
        (4, torch.empty((3, 7, 13, 7), device="meta")),
    ]

    found = [labels_of(segmenter, logits) for _, logits in way.lay(rows, 0)]

    assert {one.device.type for one in found} == {"meta"}
    assert sum(len(one) for one in found) == way.box[0].stop - way.box[0].start
