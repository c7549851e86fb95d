"""Overlap by counting against sets of voxels."""

from __future__ import annotations

import numpy as np
import pytest

from mim3d.evaluation import overlap
from mim3d.evaluation.overlap import Structure, dice, index_maps, meetings, sizes
from mim3d.foundation.errors import ShapeError, UserError

RANDOM = np.random.default_rng(5)


def label_maps(values: list[int], shape: tuple[int, ...] = (11, 13, 7)) -> tuple[np.ndarray, ...]:
    one, two = RANDOM.choice(values, (2, *shape))
    return one.astype(np.uint16), two.astype(np.uint16)


def by_sets(reference: np.ndarray, prediction: np.ndarray, values: tuple[int, ...]) -> float:
    ours = {tuple(p) for p in np.argwhere(np.isin(reference, values))}
    theirs = {tuple(p) for p in np.argwhere(np.isin(prediction, values))}
    return 2 * len(ours & theirs) / (len(ours) + len(theirs))


@pytest.mark.parametrize("largest", [255, 256, 900])
@pytest.mark.parametrize("place", [(1,), (2,), (3,), (1, 2), (1, 2, 3)])
def test_dice_equals_that_of_two_sets_of_voxels(place: tuple[int, ...], largest: int) -> None:
    possible = [0, 1, 2, largest]
    values = tuple(possible[i] for i in place)
    reference, prediction = label_maps(possible)

    maps = index_maps(reference, prediction)
    ours, theirs, both = sizes(meetings(maps), maps.indices(Structure("s", values)))

    assert dice(ours, theirs, both) == pytest.approx(by_sets(reference, prediction, values))


def test_more_values_than_fit_a_byte_are_counted_exactly() -> None:
    values = list(range(0, 65535, 200))
    reference, prediction = label_maps(values, (30, 21, 17))

    maps = index_maps(reference, prediction)
    table = meetings(maps)

    assert table.sum() == reference.size
    for i, j in ((0, 5), (300, 300), (len(maps.values) - 1, 2)):
        expected = ((reference == maps.values[i]) & (prediction == maps.values[j])).sum()
        assert table[i, j] == expected


def test_background_stays_index_zero_where_no_voxel_is_background() -> None:
    maps = index_maps(np.full((2, 3, 4), 700), np.full((2, 3, 4), 900))

    assert maps.values == (0, 700, 900)
    assert (maps.reference.min(), maps.prediction.min()) == (1, 2)


def test_a_structure_that_no_voxel_has_is_empty_on_both_sides() -> None:
    reference, prediction = label_maps([0, 1])

    maps = index_maps(reference, prediction)

    assert sizes(meetings(maps), maps.indices(Structure("s", (4,)))) == (0, 0, 0)


def test_values_beyond_the_range_of_labels_are_refused() -> None:
    with pytest.raises(UserError, match="-1, beyond 0 to 65535"):
        index_maps(np.full((2, 2, 2), -1), np.zeros((2, 2, 2), int))


def test_instance_maps_are_refused() -> None:
    many = np.arange(11 * 13 * 8).reshape(11, 13, 8)

    with pytest.raises(UserError, match="1,144 different values"):
        index_maps(many, many)


def test_maps_of_two_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match="do not compare"):
        index_maps(np.zeros((2, 2, 3), int), np.zeros((2, 3, 2), int))


@pytest.mark.parametrize("share", [0.0, 0.05, 0.9])
@pytest.mark.parametrize("largest", [2, 255, 900])
def test_few_labelled_voxels_are_counted_as_many_are(
    share: float, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlap, "PIECE", 100)
    random = np.random.default_rng(6)
    kept = random.random((2, 11, 13, 7)) < share
    reference, prediction = random.choice([1, 2, largest], kept.shape) * kept

    for stored in (prediction, np.asfortranarray(prediction)):
        maps = index_maps(np.asfortranarray(reference), stored)
        table = meetings(maps)
        step = max(1, len(maps.values) // 8)
        chosen = [*list(enumerate(maps.values))[::step], (-1, maps.values[-1])]
        for i, ours in chosen:
            for j, theirs in chosen:
                both = (reference == ours) & (prediction == theirs)
                assert table[i, j] == np.count_nonzero(both)
