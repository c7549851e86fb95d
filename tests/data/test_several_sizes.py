"""Crops of several sizes in a step: each is right, and nothing but their size sets them apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from positions import make_store, value_at

from mim3d.config.data import AugmentationConfig, DataConfig
from mim3d.data.batch import BatchNeeds, CropBatch, CropBatches
from mim3d.data.feed import Feed, make_feed
from mim3d.data.store import Store
from mim3d.foundation.errors import ConfigError

SIZES = ((11, 13, 7), (6, 9, 14), (16, 8, 4))
FIXED = (8, 8, 8)
SHAPES = [(31, 23, 17), (25, 29, 12), (18, 20, 30), (9, 26, 5)]
GEOMETRY = AugmentationConfig(
    flip_axes=("x", "y", "z"), affine_probability=0.5, rotation_degrees=(8, 8, 15), zoom=0.1
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("store"), SHAPES)


def feed_of(
    store: Store,
    augmentation: AugmentationConfig = GEOMETRY,
    needs: BatchNeeds | None = None,
    **data: Any,
) -> Feed:
    return make_feed(
        store,
        store.cases,
        data=DataConfig(**{"crop_size": FIXED, "crop_sizes": SIZES, **data}),
        augmentation=augmentation,
        needs=needs or BatchNeeds(several_sizes=True),
        batch_size=8,
        seed=0,
    )


def crops_of(batches: list[CropBatches]) -> dict[int, tuple[Any, ...]]:
    """Case, voxels, affine and validity of every crop by its place in the global batch."""
    found: dict[int, tuple[Any, ...]] = {}
    for batch in batches:
        for part in batch.parts:
            for row, crop_id in enumerate(part.crop_ids.tolist()):
                voxels = part.voxels[row]
                valid = torch.ones(voxels.shape[1:]) > 0 if part.valid is None else part.valid[row]
                content = (voxels, part.affine[row], valid)
                found[crop_id] = (part.case_ids[row], *(t.numpy().tobytes() for t in content))
    return found


def test_sizes_take_turns_by_place_in_the_global_batch(store: Store) -> None:
    for _, (batch,) in feed_of(store).batches(0, 2):
        assert isinstance(batch, CropBatches)
        assert [part.voxels.shape[2:] for part in batch.parts] == list(SIZES)
        assert [part.crop_ids.tolist() for part in batch.parts] == [[0, 3, 6], [1, 4, 7], [2, 5]]
        assert batch.case_ids == tuple(name for part in batch.parts for name in part.case_ids)


@pytest.mark.parametrize("name", ["store", "resident"])
def test_every_valid_voxel_shows_what_its_case_has_at_that_point(store: Store, name: str) -> None:
    for _, (batch,) in feed_of(store, feed=name, overhang=(4, 4, 2)).batches(0, 6):
        for part in batch.parts:
            size = tuple(part.voxels.shape[2:])
            for row in range(len(part.case_ids)):
                inside = torch.ones(size) > 0 if part.valid is None else part.valid[row]
                expected = value_at(part.affine[row].numpy(), size)
                error = np.abs(part.voxels[row].numpy() - expected)[:, inside.numpy()]
                # As in test_feed: half a voxel around a volume its outermost value goes on.
                assert np.quantile(error, 0.5) < 0.0055
                assert error.max() < 2.5


@pytest.mark.parametrize(
    "data",
    [
        {"workers": 2},
        {"feed": "resident"},
        {"feed": "resident", "resident_on": "host", "workers": 1},
    ],
)
def test_workers_and_memory_change_no_bit(store: Store, data: dict[str, Any]) -> None:
    plain, other = feed_of(store), feed_of(store, **data)

    for (step, batches), (again, others) in zip(
        plain.batches(0, 4), other.batches(0, 4), strict=True
    ):
        assert step == again
        assert crops_of(others) == crops_of(batches)


def test_volumes_on_the_device_give_the_same_crops(store: Store) -> None:
    """To rounding: whole batches are interpolated in another order."""
    windowed = {"window_cases": 4, "max_crops_per_visit": 3}
    host = feed_of(store, feed="resident", **windowed)
    device = feed_of(store, feed="resident", resident_on="device", **windowed)

    for (_, (batch,)), (_, (other,)) in zip(host.batches(0, 4), device.batches(0, 4), strict=True):
        for one, two in zip(batch.parts, other.parts, strict=True):
            assert one.case_ids == two.case_ids
            torch.testing.assert_close(two.affine, one.affine)
            torch.testing.assert_close(two.voxels, one.voxels, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (1, 4), (2, 2)])
def test_devices_and_accumulation_share_the_same_crops(
    store: Store, world: int, accumulation: int
) -> None:
    feed = feed_of(store)
    (_, whole) = next(feed.batches(3, 4))

    shares: list[CropBatches] = []
    for rank in range(world):
        _, batches = next(feed.batches(3, 4, rank=rank, world=world, accumulation=accumulation))
        assert len(batches) == accumulation
        shares += batches

    assert sum(len(batch.case_ids) for batch in shares) == 8
    assert crops_of(shares) == crops_of(whole)


def test_a_crop_of_a_size_is_that_of_a_feed_of_that_size_alone(store: Store) -> None:
    (batch,) = next(feed_of(store).batches(2, 3))[1]
    single = feed_of(store, crop_size=SIZES[1], crop_sizes=())

    (alone,) = next(single.batches(2, 3))[1]

    assert isinstance(alone, CropBatch)
    assert torch.equal(batch.parts[1].voxels, alone.voxels[[1, 4, 7]])


def test_fixed_crops_have_the_one_size(store: Store) -> None:
    (batch,) = feed_of(store).fixed(5)

    assert isinstance(batch, CropBatch)
    assert batch.voxels.shape[2:] == FIXED


def test_tasks_that_cannot_are_refused_and_so_are_sizes_that_cannot_be(store: Store) -> None:
    with pytest.raises(ConfigError, match="crop_sizes"):
        feed_of(store, needs=BatchNeeds(labels=True))
    with pytest.raises(ConfigError, match="crop_sizes"):
        feed_of(store, crop_sizes=((8, 0, 8),))
    with pytest.raises(ConfigError, match="9 sizes, which take turns in a step's 8 crops"):
        feed_of(store, crop_sizes=tuple((8, 8, side) for side in range(8, 17)))
    turns = replace(GEOMETRY, turn_plane=("x", "y"), turn_probability=0.5)
    with pytest.raises(ConfigError, match="11 x 13"):
        feed_of(store, turns)
