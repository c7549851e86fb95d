"""Two views of a place, and two places that overlap."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from position_feeds import EVERYTHING, SIZE, feed_of, steps_of

from mim3d.config.data import AugmentationConfig
from mim3d.data.batch import BatchNeeds
from mim3d.foundation.errors import ConfigError


def test_two_views_show_one_place_and_share_its_id(store):
    needs = BatchNeeds(views=2)
    feed = feed_of(store, EVERYTHING, needs)
    unchanged = feed_of(store, AugmentationConfig(), needs)

    for (_, (batch,)), (_, (same,)) in zip(
        feed.batches(0, 3), unchanged.batches(0, 3), strict=True
    ):
        assert batch.crop_ids.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
        assert batch.case_ids[:4] == batch.case_ids[4:]
        assert torch.equal(same.voxels[:4], same.voxels[4:])
        for row in range(4):
            assert not torch.equal(batch.voxels[row], batch.voxels[4 + row])


@pytest.mark.parametrize("min_overlap", [1.0, 0.3])
def test_one_view_of_two_is_the_single_view(store, min_overlap):
    needs = BatchNeeds(views=2, min_overlap=min_overlap)
    one = next(feed_of(store, needs=BatchNeeds()).batches(0, 1))[1][0]
    two = next(feed_of(store, needs=needs).batches(0, 1))[1][0]

    assert torch.equal(one.voxels, two.voxels[:4])


@pytest.mark.parametrize("name", ["store", "resident"])
def test_the_voxels_of_two_places_that_overlap_are_the_same_there(store, name):
    needs = BatchNeeds(views=2, labels=True, min_overlap=0.3)
    plain = feed_of(store, AugmentationConfig(), needs, feed=name, overhang=(2, 2, 2))
    shifted = 0

    for _, batches in plain.batches(0, 6, accumulation=2):
        for batch in batches:
            assert batch.crop_ids[:2].tolist() == batch.crop_ids[2:].tolist()
            assert batch.case_ids[:2] == batch.case_ids[2:]
            for row in range(2):
                mine, other = batch.affine[row].numpy(), batch.affine[2 + row].numpy()
                to_other = np.linalg.inv(other) @ mine
                voxels = np.argwhere(np.ones(SIZE, bool))
                there = (voxels @ to_other[:3, :3].T + to_other[:3, 3]).round().astype(int)
                both = ((there >= 0) & (there < SIZE)).all(axis=1)
                assert both.sum() >= 0.3 * np.prod(SIZE)
                ours, theirs = tuple(voxels[both].T), tuple(there[both].T)
                everywhere = slice(None)
                assert torch.equal(
                    batch.voxels[row][(everywhere, *ours)],
                    batch.voxels[2 + row][(everywhere, *theirs)],
                )
                assert torch.equal(batch.labels[row][ours], batch.labels[2 + row][theirs])
                shifted += not both.all()
    assert shifted > 10


def test_an_overlap_without_further_views_asks_nothing_of_the_grid(store):
    needs = BatchNeeds(min_overlap=0.9)

    assert len(steps_of(feed_of(store, needs=needs, origin_grid=16), 1)) == 1
    with pytest.raises(ConfigError, match="wider than the 1 voxels"):
        feed_of(store, needs=replace(needs, views=2), origin_grid=16)
