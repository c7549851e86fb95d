"""What a feed refuses before the first crop."""

from __future__ import annotations

import pytest
from position_feeds import SHAPES, feed_of
from positions import make_store

from mim3d.config.data import AugmentationConfig, DataConfig
from mim3d.data.batch import BatchNeeds
from mim3d.data.feed import make_feed
from mim3d.foundation.errors import ConfigError, UserError


@pytest.mark.parametrize(
    ("data", "augmentation", "message"),
    [
        ({"crop_size": (0, 4, 4)}, {}, "data.crop_size"),
        ({"overhang": (0, -1, 0)}, {}, "data.overhang"),
        ({"label_share": 1.5}, {}, "data.label_share"),
        ({"workers": -1}, {}, "data.workers"),
        ({"window_hu": (-100.0, 200.0)}, {}, "no CT"),
        ({"ignore_label": 9}, {}, "data.ignore_label.*value 9, the store has 0, 1, 2, 4, 7"),
        ({}, {"swap_on_flip": ((4, 5),)}, "augmentation.swap_on_flip.*value 5"),
        ({}, {"zoom": 2.0}, "augmentation.zoom"),
    ],
)
def test_numbers_that_cannot_be_are_refused_before_the_first_crop(
    store, data, augmentation, message
):
    with pytest.raises(ConfigError, match=message):
        feed_of(store, AugmentationConfig(**augmentation), **data)


def test_a_batch_that_does_not_divide_is_refused(store):
    with pytest.raises(ConfigError, match="4 does not divide by 3 devices x 1"):
        next(feed_of(store).batches(0, 1, world=3))


@pytest.mark.parametrize("accumulation", [0, -1])
def test_accumulation_in_no_steps_is_refused(store, accumulation):
    with pytest.raises(ConfigError, match=f"training.accumulation.*at least 1, not {accumulation}"):
        next(feed_of(store).batches(0, 1, accumulation=accumulation))


def test_a_feed_of_no_case_is_refused(store):
    with pytest.raises(UserError, match="no case"):
        make_feed(
            store,
            [],
            data=DataConfig(),
            augmentation=AugmentationConfig(),
            needs=BatchNeeds(),
            batch_size=4,
            seed=0,
        )


@pytest.mark.parametrize("how", ["needed", "placed"])
def test_labels_that_do_not_exist_are_refused_before_the_first_crop(tmp_path, how):
    store = make_store(tmp_path, SHAPES[:2], labels=False)
    needs = BatchNeeds(labels=how == "needed")
    placement = "label" if how == "placed" else "uniform"

    with pytest.raises(UserError, match="2 of 2 cases have none: `case_0`, `case_1`"):
        feed_of(store, needs=needs, placement=placement)
