"""Numbers of cases travel with their crops, whichever feed cuts them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from archives import write_archive
from preparing import config_with

from mim3d.config.data import AugmentationConfig, DataConfig
from mim3d.data.batch import BatchNeeds, CropBatches, Target
from mim3d.data.feed import Feed, make_feed
from mim3d.data.prepare import prepare_store
from mim3d.data.store import Store
from mim3d.foundation.errors import UserError

AGES = {"train_00000": 61.5, "train_00001": 7.0, "train_00002": 33.0, "train_00003": 80.25,
        "train_00004": 12.0}  # fmt: skip
CLASSES = {"train_00000": 3, "train_00001": 7, "train_00002": 3, "train_00003": 5,
           "train_00004": 7}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """Five training cases with an age and a grade of 3, 5 or 7; the others have a label alone."""
    folder = tmp_path_factory.mktemp("targets")
    prepare_store(write_archive(folder / "a.npz"), folder / "store", config_with())
    store = Store(folder / "store")
    store.entries = {
        case_id: replace(entry, targets={"age": AGES[case_id], "grade": CLASSES[case_id]})
        if case_id in AGES
        else entry
        for case_id, entry in store.entries.items()
    }
    return store


def _feed(store: Store, needs: BatchNeeds, **data) -> Feed:
    return make_feed(
        store,
        store.ids("training"),
        data=DataConfig(**{"crop_size": (7, 5, 6), **data}),
        augmentation=AugmentationConfig(flip_axes=("x",)),
        needs=needs,
        batch_size=4,
        seed=1,
    )


BOTH = (Target("grade", (3, 5, 7)), Target("age"))


@pytest.mark.parametrize(
    "data",
    [{}, {"workers": 2}, {"feed": "resident"}, {"feed": "resident", "resident_on": "device"},
     {"feed": "resident", "window_cases": 3, "max_crops_per_visit": 2}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("views", [1, 2])
def test_every_crop_comes_with_the_numbers_of_its_case(store, data, views):
    feed = _feed(store, BatchNeeds(views=views, targets=BOTH), **data)

    seen = set()
    for _, batches in feed.batches(0, 4, accumulation=2):
        for batch in batches:
            # Place of the class in (3, 5, 7), then the number itself.
            rows = [[(CLASSES[case] - 3) / 2, AGES[case]] for case in batch.case_ids]
            assert batch.targets.dtype == torch.float32
            assert batch.targets.tolist() == rows
            seen.update(batch.case_ids)
    assert seen == set(AGES)


def test_crops_of_several_sizes_and_fixed_ones_come_with_them_too(store):
    needs = BatchNeeds(several_sizes=True, targets=BOTH[1:])
    feed = _feed(store, needs, crop_sizes=((7, 5, 6), (4, 8, 5)))

    (_, (batch,)) = next(iter(feed.batches(0, 1)))
    fixed = feed.fixed(6)

    assert isinstance(batch, CropBatches)
    for part in (*batch.parts, *fixed):
        assert part.targets[:, 0].tolist() == [AGES[case] for case in part.case_ids]
    assert sum(len(part.targets) for part in fixed) == 6


def test_a_task_that_asks_for_none_gets_none_and_the_same_crops(store):
    without = _feed(store, BatchNeeds())
    asked = _feed(store, BatchNeeds(targets=BOTH))

    for (_, (one,)), (_, (other,)) in zip(without.batches(0, 3), asked.batches(0, 3), strict=True):
        assert one.targets is None
        assert one.voxels.numpy().tobytes() == other.voxels.numpy().tobytes()
        assert one.case_ids == other.case_ids


def test_what_the_targets_of_a_store_are_is_told(store):
    assert set(store.target_names) == {"age", "grade", "label"}
    assert store.target_classes("grade") == (3, 5, 7)
    assert store.target_classes("label") == (0, 1, 2)
    assert store.target_classes("age") == ()  # 61.5 is no class
    with pytest.raises(UserError, match="no target `sex`"):
        store.target_classes("sex")


@pytest.mark.parametrize(
    ("target", "cases", "why"),
    [(Target("age"), None, "5 of 10 cases have no such number, first `test_00000`"),
     (Target("sex"), "training", "`sex` is needed, and 5 of 5"),
     (Target("grade", (3, 7)), "training", "`grade` is 5 in 1 case.s., and its classes are 3, 7")],
)  # fmt: skip
def test_a_target_that_is_not_there_or_no_class_is_an_error(store, target, cases, why):
    with pytest.raises(UserError, match=why):
        make_feed(
            store,
            store.ids(cases),
            data=DataConfig(crop_size=(4, 4, 4)),
            augmentation=AugmentationConfig(),
            needs=BatchNeeds(targets=(target,)),
            batch_size=2,
            seed=0,
        )


def test_targets_of_a_table_reach_the_batch(tmp_path):
    """From the cell of a CSV: `target_<name>`."""
    rows = ["image,list,target_age,target_grade"]
    for number in range(3):
        np.savez_compressed(tmp_path / f"{number}.npz", train_images=_volume(number))
        rows.append(f"{number}.npz/train_00000,training,{30 + number}.5,{number % 2}")
    (tmp_path / "c.csv").write_text("case," + rows[0] + "\n" + "".join(
        f"c{number},{row}\n" for number, row in enumerate(rows[1:])))  # fmt: skip
    prepare_store(tmp_path / "c.csv", tmp_path / "store", config_with(validation_fraction=0))
    store = Store(tmp_path / "store")

    needs = BatchNeeds(targets=(Target("age"), Target("grade", store.target_classes("grade"))))
    (_, (batch,)) = next(iter(_feed(store, needs).batches(0, 1)))

    expected = {"c0": [30.5, 0], "c1": [31.5, 1], "c2": [32.5, 0]}
    assert batch.targets.tolist() == [expected[case] for case in batch.case_ids]


def _volume(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(1, 900, (1, 11, 13, 7)).astype(np.int16)


def test_cases_that_lack_an_optional_target_have_none_and_count_among_the_rest(store):
    cases = store.ids()  # of all parts: those that do not train have neither age nor grade
    assert set(cases) > set(AGES)
    optional = tuple(replace(target, is_optional=True) for target in BOTH)
    feed = make_feed(
        store,
        cases,
        data=DataConfig(crop_size=(7, 5, 6)),
        augmentation=AugmentationConfig(),
        needs=BatchNeeds(targets=optional),
        batch_size=len(cases),
        seed=1,
    )

    _, (batch,) = next(iter(feed.batches(0, 1)))

    for case_id, row in zip(batch.case_ids, batch.targets.tolist(), strict=True):
        if case_id in AGES:
            assert row == [(CLASSES[case_id] - 3) / 2, AGES[case_id]]
        else:
            assert np.isnan(row).all()


def test_an_optional_target_that_no_case_has_is_refused(store):
    with pytest.raises(UserError, match="the target `weight` is needed"):
        _feed(store, BatchNeeds(targets=(Target("weight", is_optional=True),)))
