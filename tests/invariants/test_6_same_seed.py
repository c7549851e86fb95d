"""Invariant 6, samples: a crop, its augmentation and its mask keys follow from (seed, step, index,
purpose) alone; not from workers, feed, device count, accumulation or where a run was resumed.

Breaks that were tried and seen to fail here: augmentation drawn from a generator that is shared by
the crops of a step; noise from torch's own generator; the step counted from the start of the range;
the index counted from the start of a rank's share; cases in the order in which they were given.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from positions import make_store

from mim3d.config.data import AugmentationConfig, DataConfig
from mim3d.data.augment import draw, gaussian
from mim3d.data.batch import BatchNeeds, CropBatch
from mim3d.data.feed import Feed, make_feed
from mim3d.data.store import Store
from mim3d.foundation.randomness import RandomStream
from mim3d.objectives.base import Moment

SIZE = (9, 12, 9)
STEPS = 4
AUGMENTATION = AugmentationConfig(
    flip_axes=("x", "y", "z"),
    swap_on_flip=((1, 2),),
    turn_plane=("x", "z"),
    turn_probability=0.5,
    affine_probability=0.5,
    rotation_degrees=(10, 10, 10),
    zoom=0.1,
    stretch=0.1,
    scale_intensity=0.2,
    shift_intensity=0.1,
    gamma=0.3,
    noise=0.1,
    noise_probability=0.7,
)
Sample = tuple[object, ...]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    shapes = [(25, 21, 16), (19, 24, 7), (14, 18, 22), (8, 30, 13), (21, 17, 19)]
    return make_store(tmp_path_factory.mktemp("store"), shapes)


def feed_of(store: Store, *, seed: int = 0, cases=None, batch_size: int = 8, **data) -> Feed:
    config = DataConfig(crop_size=SIZE, placement="label", overhang=(3, 2, 1), **data)
    needs = BatchNeeds(views=2, labels=True)
    cases = store.cases if cases is None else cases
    return make_feed(
        store,
        cases,
        data=config,
        augmentation=AUGMENTATION,
        needs=needs,
        batch_size=batch_size,
        seed=seed,
    )


def samples(
    batches: Iterator[tuple[int, list[CropBatch]]], seed: int = 0
) -> dict[tuple[int, int, int], Sample]:
    """All that is said of a sample, byte by byte, under (step, index, view)."""
    found: dict[tuple[int, int, int], Sample] = {}
    for step, micro_batches in batches:
        moment = Moment(step, 100, RandomStream(seed, step))
        for batch in micro_batches:
            masks = moment.keys(batch, "mask").tolist()
            for row, index in enumerate(batch.crop_ids.tolist()):
                view = int((step, index, 0) in found)
                valid = torch.ones(SIZE) > 0 if batch.valid is None else batch.valid[row]
                tensors = (batch.voxels[row], batch.affine[row], batch.labels[row], batch.air[row])
                found[step, index, view] = (
                    batch.case_ids[row],
                    masks[row],
                    *(tensor.numpy().tobytes() for tensor in (*tensors, valid)),
                )
    return found


@pytest.fixture(scope="module")
def expected(store) -> dict[tuple[int, int, int], Sample]:
    found = samples(feed_of(store).batches(0, STEPS))
    assert len(found) == STEPS * 8 * 2
    assert len({sample[2] for sample in found.values()}) == len(found)  # no two alike
    return found


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("where", ["store", "resident"])
def test_workers_and_feed_change_nothing(store, expected, workers, where):
    feed = feed_of(store, workers=workers, feed=where)

    assert samples(feed.batches(0, STEPS)) == expected


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_ranks_and_accumulation_share_the_same_samples(store, expected, world, accumulation):
    found: dict[tuple[int, int, int], Sample] = {}
    for rank in range(world):
        feed = feed_of(store)  # each rank is a process of its own
        split = {"rank": rank, "world": world, "accumulation": accumulation}
        part = samples(feed.batches(0, STEPS, **split))
        assert not part.keys() & found.keys()
        found |= part

    assert found == expected


def test_a_resumed_run_goes_on_with_the_samples_of_an_uninterrupted_one(store, expected):
    found = samples(feed_of(store).batches(0, 1))
    found |= samples(feed_of(store, workers=1).batches(1, 3))
    found |= samples(feed_of(store, feed="resident").batches(3, STEPS))

    assert found == expected


def test_global_generators_neither_matter_nor_move(store, expected):
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    found = samples(feed_of(store).batches(0, STEPS))

    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert found == expected
    assert before == after


def test_order_of_the_cohort_does_not_matter(store, expected):
    assert samples(feed_of(store, cases=store.cases[::-1]).batches(0, STEPS)) == expected


def test_another_seed_gives_other_samples_and_masks(store, expected):
    found = samples(feed_of(store, seed=1).batches(0, STEPS), seed=1)

    assert all(found[key][1] != expected[key][1] for key in expected)
    assert all(found[key][2] != expected[key][2] for key in expected)


def test_what_step_and_index_draw_is_pinned(store):
    """Worked out once and written down: another number here is another run for every user."""
    feed = feed_of(store)

    plans = [feed.plan.draw(step, index) for step, index in ((0, 0), (0, 7), (3, 2), (1000, 5))]
    change = draw(AUGMENTATION, RandomStream(0, 3).generator(2, "augment/1"))
    noise = gaussian(12345678901234, 7)

    assert [(plan.case_id, plan.start, plan.centre_class) for plan in plans] == [
        ("case_1", (12, 2, -1), None),
        ("case_3", (1, 5, 3), 1),
        ("case_2", (8, -1, 13), None),
        ("case_4", (4, -1, 3), 3),
    ]
    assert (change.flips, change.turns) == ((False, False, True), 1)
    assert change.scale == pytest.approx(1.112750434248521)
    assert change.warp[0] == pytest.approx((1.099213026781887, -0.143191283933, 0.117233957322))
    assert change.noise_key == 2519436552538914616
    pinned = [-0.1361, -0.1674, -2.2950, 0.5741, -0.0899, 2.0760, -0.1283]
    torch.testing.assert_close(noise, torch.tensor(pinned), atol=1e-4, rtol=0)
