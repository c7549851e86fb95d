"""Several stores as one cohort: whose cases they are, how often they come, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from positions import make_store, value_at

from mim3d.config.data import AugmentationConfig, DataConfig
from mim3d.data.batch import BatchNeeds
from mim3d.data.feed import Feed, make_feed
from mim3d.data.sampling import FIXED_STEP
from mim3d.data.sources import Sources
from mim3d.data.splits import pretraining_cases
from mim3d.data.store import JoinedStore, Store, open_stores
from mim3d.data.visits import Queue, order
from mim3d.foundation.errors import ConfigError, UserError

SIZE = (11, 13, 7)
MANY = [(31, 23, 17), (25, 29, 12), (18, 20, 30), (9, 26, 5), (14, 13, 19), (20, 15, 8)]
FEW = [(16, 21, 13), (27, 12, 9)]
PLAIN = AugmentationConfig()


def made(folder: Path, name: str, shapes: list[tuple[int, int, int]], **changes: Any) -> Store:
    """A store of its own name, subjects and images."""
    make_store(folder, shapes)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | {"name": name, **changes}
    for case in manifest["cases"]:
        case["subject_id"] = f"{name} {case['subject_id']}"
        case["image_key"] = f"{name} {case['image_key']}"
    path.write_text(json.dumps(manifest))
    return Store(folder)


def changed(store: Store, number: int, **fields: Any) -> None:
    """Writes other facts of one case into the manifest."""
    path = store.path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["cases"][number] |= fields
    path.write_text(json.dumps(manifest))


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Store, Store]:
    return made(tmp_path / "a", "many", MANY), made(tmp_path / "b", "few", FEW)


@pytest.fixture
def joined(stores: tuple[Store, Store]) -> Store:
    return open_stores([store.path for store in stores])


def feed_of(store: Store, batch_size: int = 4, seed: int = 0, **data: Any) -> Feed:
    return make_feed(
        store,
        store.cases,
        data=DataConfig(**{"crop_size": SIZE, **data}),
        augmentation=PLAIN,
        needs=BatchNeeds(),
        batch_size=batch_size,
        seed=seed,
    )


def drawn(feed: Feed, count: int, first: int = 0) -> list[str]:
    """The cases of so many samples that follow each other."""
    size = feed.batch_size
    return [feed.plan.case_id(*divmod(number, size)) for number in range(first, first + count)]


# Whose they are


def test_a_case_is_known_by_its_store_and_reads_as_it_does_there(stores, joined):
    assert joined.cases == tuple(f"{store.name}/{case}" for store in stores for case in store.cases)
    for store in stores:
        for case_id in store.cases:
            mine, own = joined.open(f"{store.name}/{case_id}"), store.open(case_id)

            assert mine.case_id == f"{store.name}/{case_id}"
            np.testing.assert_array_equal(mine.affine, own.affine)
            for read, expected in zip(
                mine.read((1, 2, 0), (5, 6, 4)), own.read((1, 2, 0), (5, 6, 4)), strict=True
            ):
                np.testing.assert_array_equal(read, expected)
            assert joined.source_hash(mine.case_id) == store.source_hash(case_id)
            assert joined.subject(mine.case_id) == store.subject(case_id)


@pytest.mark.parametrize("feed", ["store", "resident"])
def test_crops_of_all_stores_show_what_their_cases_have_at_that_place(joined, feed):
    names = set()
    for _, (batch,) in feed_of(joined, feed=feed, store_weights="equal").batches(0, 6):
        for row, case_id in enumerate(batch.case_ids):
            names.add(case_id)
            expected = value_at(batch.affine[row].numpy(), SIZE)
            valid = np.ones(SIZE, bool) if batch.valid is None else batch.valid[row].numpy()
            np.testing.assert_allclose(
                batch.voxels[row].numpy()[:, valid], expected[:, valid], atol=0.006
            )

    assert {name.partition("/")[0] for name in names} == {"many", "few"}


def test_two_stores_of_one_name_get_numbers_and_one_store_stays_itself(tmp_path):
    paths = [made(tmp_path / name, "scan", FEW).path for name in "abc"]
    # The same images in three stores: who judges is the same in all of them.
    joined = open_stores(paths)

    assert [name.partition("/")[0] for name in joined.cases[::2]] == ["scan", "scan 2", "scan 3"]
    assert not isinstance(open_stores(paths[:1]), JoinedStore)
    assert open_stores(paths[:1]).cases == ("case_0", "case_1")


def test_a_window_for_ct_changes_the_cases_of_the_store_with_ct_alone(tmp_path):
    made(tmp_path / "a", "ct", FEW, modalities=["ct", "ct"])
    made(tmp_path / "b", "mr", FEW, modalities=["mr", "mr"])
    joined = open_stores([tmp_path / "a", tmp_path / "b"])
    plain = next(feed_of(joined, 8).batches(0, 1))[1][0]
    windowed = next(feed_of(joined, 8, window_hu=(-8.0, 12.0)).batches(0, 1))[1][0]

    assert joined.modalities == ("mixed", "mixed")
    assert windowed.case_ids == plain.case_ids
    for row, case_id in enumerate(plain.case_ids):
        valid = torch.ones(SIZE) > 0 if plain.valid is None else plain.valid[row]
        before, after = plain.voxels[row][:, valid], windowed.voxels[row][:, valid]
        expected = (before.clamp(-8, 12) + 8) / 20 if case_id.startswith("ct/") else before
        torch.testing.assert_close(after, expected)


def test_a_case_that_is_all_body_has_no_voxel_below_its_threshold_of_air(tmp_path, monkeypatch):
    """Beside a store with air it had none at all, and a mixed batch forgot everybody's."""
    store = made(tmp_path, "one", FEW)
    source = Sources(store, DataConfig(crop_size=SIZE), labels=False).open("case_0")
    assert np.isfinite(source.air).all()
    rules = tuple(type(rule)(**{**vars(rule), "air": None}) for rule in source._rules[:1])
    source.__dict__.pop("air")
    source.__dict__["_rules"] = (*rules, source._rules[1])

    assert source.air.tolist()[0] == -np.inf
    assert np.isfinite(source.air[1])


# How often they come


def test_without_weights_every_case_comes_equally_often(joined):
    count = len(joined.cases)

    assert set(Counter(drawn(feed_of(joined), 5 * count)).values()) == {5}


def test_one_stratum_is_the_queue_of_shuffled_passes_it_always_was():
    queue = Queue([range(7)], seed=3)

    for number in range(-15, 40):
        passed, place = divmod(number, 7)
        assert queue.case(number) == order(3, passed, 7)[place]


@pytest.mark.parametrize("first", [0, 3, 17])
def test_equal_weights_draw_from_each_store_as_often_and_from_its_cases_too(joined, first):
    feed = feed_of(joined, 5, store_weights="equal")
    names = drawn(feed, 240, first)

    running = np.cumsum([1 if name.startswith("few/") else -1 for name in names])
    assert np.abs(running).max() <= 2  # at all times, wherever one begins
    counts = Counter(names)
    many = [counts[name] for name in joined.cases if name.startswith("many/")]
    few = [counts[name] for name in joined.cases if name.startswith("few/")]
    assert sum(many) == pytest.approx(120, abs=1)
    assert max(many) - min(many) <= 2
    assert max(few) - min(few) <= 2
    # The turns are shuffled: no store keeps an even or an odd place.
    assert {name.partition("/")[0] for name in names[::2]} == {"many", "few"}


def test_equal_weights_hold_for_fixed_crops_and_other_seeds_draw_otherwise(joined):
    feed = feed_of(joined, store_weights="equal")
    fixed = [feed.plan.case_id(FIXED_STEP, index) for index in range(10)]

    assert Counter(name.partition("/")[0] for name in fixed) == {"many": 5, "few": 5}
    assert drawn(feed, 40) != drawn(feed_of(joined, seed=1, store_weights="equal"), 40)


@pytest.mark.parametrize("window", [{}, {"window_cases": 4, "max_crops_per_visit": 3}])
def test_a_run_that_goes_on_draws_the_same_crops_whatever_reads_them(joined, window):
    settings = {"store_weights": "equal", **window}
    whole = list(feed_of(joined, feed="resident", **settings).batches(0, 8))
    again = list(feed_of(joined, feed="store", **settings).batches(5, 8))

    for (step, (one,)), (other_step, (other,)) in zip(whole[5:], again, strict=True):
        assert step == other_step
        assert one.case_ids == other.case_ids
        assert torch.equal(one.voxels, other.voxels)
        assert torch.equal(one.affine, other.affine)


def test_a_window_takes_its_cases_from_the_same_queue(joined):
    feed = feed_of(
        joined, store_weights="equal", window_cases=4, max_crops_per_visit=3, feed="resident"
    )
    visits = feed.plan.visits
    queue = [feed.plan.visits.case(type(feed.plan.visit(0, 0))(n % 4, n // 4)) for n in range(60)]
    few = {number for number, name in enumerate(feed.plan.cases) if name.startswith("few/")}

    assert visits is not None
    running = np.cumsum([1 if number in few else -1 for number in queue])
    assert np.abs(running).max() <= 1


# Who judges, and what is refused


def test_a_subject_that_judges_in_one_store_is_left_out_of_the_others(tmp_path):
    first, second = made(tmp_path / "a", "ct", MANY), made(tmp_path / "b", "mr", FEW)
    changed(first, 0, subject_id="patient 7", part="validation")
    changed(second, 1, subject_id="patient 7")
    joined = open_stores([first.path, second.path])

    cases = pretraining_cases(joined, DataConfig(), seed=0)

    assert "ct/case_0" not in cases
    assert "mr/case_1" not in cases
    assert joined.strata(cases) == {
        "ct": tuple(f"ct/case_{number}" for number in range(1, 6)),
        "mr": ("mr/case_0",),
    }


def test_an_image_that_judges_as_another_subject_elsewhere_is_refused(tmp_path):
    first, second = made(tmp_path / "a", "one", MANY), made(tmp_path / "b", "two", FEW)
    changed(first, 2, image_key="same", part="validation")
    changed(second, 0, image_key="same")

    with pytest.raises(ConfigError, match="`two/case_0` would be trained on .* `one/case_2`"):
        open_stores([first.path, second.path])


def test_stores_of_other_channels_are_refused_with_both_their_names(tmp_path):
    first = made(tmp_path / "a", "one", FEW)
    made(tmp_path / "b", "two", FEW, channel_names=["T1"], modalities=["mr"])

    with pytest.raises(ConfigError) as caught:
        open_stores([first.path, tmp_path / "b"])

    assert f"`{first.path}` has 2 (one, two)" in caught.value.what
    assert f"`{tmp_path / 'b'}` has 1 (T1)" in caught.value.what


def test_a_store_named_twice_and_one_that_is_none_are_refused(tmp_path, stores):
    with pytest.raises(ConfigError, match="twice"):
        open_stores([stores[0].path, stores[1].path, tmp_path / "b" / ".." / "a"])
    with pytest.raises(UserError, match="is not a store"):
        open_stores([stores[0].path, tmp_path / "none"])


def test_checksums_name_the_store_of_the_case_that_is_wrong(joined, tmp_path):
    assert joined.verify() == {}
    damaged = tmp_path / "b" / "cases" / "case_1.h5"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x00\x01")

    assert joined.verify() == {"few/case_1": "its checksum is wrong"}


# What is known of all together


def test_medians_and_names_are_those_of_all_cases(stores, joined, tmp_path):
    changed(stores[1], 0, spacing_mm=[0.5, 0.5, 0.5])
    joined = open_stores([store.path for store in stores])
    shapes, spacings = [*MANY, *FEW], [*[(1.0, 1.5, 3.0)] * 6, (0.5, 0.5, 0.5), (1.0, 1.5, 3.0)]

    assert joined.median_shape == tuple(np.median(shapes, axis=0).round().astype(int))
    assert joined.median_spacing_mm == pytest.approx(np.median(spacings, axis=0))
    assert joined.channel_names == ("one", "two")
    assert joined.name == "many, few"


def test_probes_look_at_the_labels_of_stores_with_the_same_classes(tmp_path):
    first = made(tmp_path / "a", "one", FEW)
    made(tmp_path / "b", "two", FEW)
    path = tmp_path / "b" / "manifest.json"
    alike = open_stores([first.path, path.parent])
    assert alike.labelled(alike.cases) == alike.cases
    manifest = json.loads(path.read_text())
    manifest["classes"]["classes"][1]["name"] = "another structure"
    path.write_text(json.dumps(manifest))

    other = open_stores([first.path, path.parent])

    assert other.classes == first.classes
    assert other.labelled(other.cases) == ("one/case_0", "one/case_1")
