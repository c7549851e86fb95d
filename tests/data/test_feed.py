from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from positions import make_store, value_at

from mim3d.config.data import AugmentationConfig, DataConfig
from mim3d.data import feed as feed_module
from mim3d.data import sources, workers
from mim3d.data.batch import BatchNeeds, CropBatch
from mim3d.data.classes import IGNORE_INDEX
from mim3d.data.feed import Feed, make_feed
from mim3d.foundation.errors import ConfigError, ResourceError, UserError

SIZE = (11, 13, 7)
# the last is smaller than a crop along x and z
SHAPES = [(31, 23, 17), (25, 29, 12), (18, 20, 30), (9, 26, 5)]
GEOMETRY = AugmentationConfig(
    flip_axes=("x", "y", "z"),
    affine_probability=0.5,
    rotation_degrees=(8, 8, 15),
    zoom=0.1,
    stretch=0.05,
)
EVERYTHING = replace(
    GEOMETRY, scale_intensity=0.2, shift_intensity=0.1, gamma=0.3, noise=0.1, noise_probability=0.5
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"), SHAPES)


def feed_of(store, augmentation=EVERYTHING, needs=None, batch_size=4, seed=0, **data) -> Feed:
    config = DataConfig(**{"crop_size": SIZE, **data})
    needs = needs or BatchNeeds(labels=True)
    return make_feed(
        store,
        store.cases,
        data=config,
        augmentation=augmentation,
        needs=needs,
        batch_size=batch_size,
        seed=seed,
    )


def steps_of(feed: Feed, stop: int, **split) -> list[tuple[int, list[CropBatch]]]:
    return list(feed.batches(0, stop, **split))


def crops_of(batches: list[CropBatch]) -> dict[tuple[int, int], list[object]]:
    """Everything a batch says of each crop, by its id and view."""
    found: dict[tuple[int, int], list[object]] = {}
    for batch in batches:
        for row, crop_id in enumerate(batch.crop_ids.tolist()):
            view = sum(key[0] == crop_id for key in found)
            valid = torch.ones(SIZE, dtype=torch.bool) if batch.valid is None else batch.valid[row]
            content = (batch.voxels, batch.affine, batch.labels, batch.air)
            tensors = [None if t is None else t[row].numpy().tobytes() for t in content]
            found[crop_id, view] = [batch.case_ids[row], valid.numpy().tobytes(), *tensors]
    return found


# Content


@pytest.mark.parametrize("name", ["store", "resident"])
def test_every_valid_voxel_shows_what_its_case_has_at_that_point(store, name):
    feed = feed_of(store, GEOMETRY, feed=name, placement="body", overhang=(4, 4, 2))
    seen_padding = False

    for _, (batch,) in feed.batches(0, 12):
        assert batch.voxels.shape == (4, 2, *SIZE)
        assert batch.affine.dtype == torch.float64
        for row in range(4):
            inside = batch.valid[row] if batch.valid is not None else torch.ones(SIZE) > 0
            expected = value_at(batch.affine[row].numpy(), SIZE)
            # Beyond the centre of the outermost voxel its own value goes on for half a voxel,
            # at most 0.9 a mm on 1.5 mm; elsewhere only the rounding to hundredths is seen.
            error = np.abs(batch.voxels[row].numpy() - expected)[:, inside.numpy()]
            assert np.quantile(error, 0.5) < 0.0055
            assert error.max() < 2.5
            assert (batch.voxels[row][:, ~inside] == 0).all()
            assert (batch.labels[row][~inside] == IGNORE_INDEX).all()
            assert (batch.labels[row][inside] < 5).all()
            seen_padding |= not bool(inside.all())
    assert seen_padding


def test_spacing_of_a_batch_is_that_of_its_crops_after_zoom(store):
    zoomed = AugmentationConfig(affine_probability=1.0, rotation_degrees=(20, 20, 20), zoom=0.2)
    plain = next(feed_of(store, AugmentationConfig()).batches(0, 1))[1][0]
    batch = next(feed_of(store, zoomed).batches(0, 1))[1][0]

    torch.testing.assert_close(plain.spacing_mm, torch.tensor([[1.0, 1.5, 3.0]]).expand(4, 3))
    ratio = batch.spacing_mm / torch.tensor([1.0, 1.5, 3.0])
    torch.testing.assert_close(ratio, ratio[:, :1].expand(4, 3))
    assert ratio.min() >= 1 / 1.2 - 1e-6
    assert ratio.max() <= 1 / 0.8 + 1e-6
    assert len(ratio[:, 0].unique()) == 4


def test_labels_are_absent_when_nobody_needs_them(store):
    batch = next(feed_of(store, needs=BatchNeeds()).batches(0, 1))[1][0]

    assert batch.labels is None
    assert batch.targets is None
    assert batch.present is None


def test_air_is_the_normalised_threshold_of_each_channel(store):
    batch = next(feed_of(store, AugmentationConfig()).batches(0, 1))[1][0]

    # -3, and what Normalisation adds so that "below" holds the threshold itself
    torch.testing.assert_close(batch.air, torch.full((4, 2), -3 + 1e-4 * 800))


def test_a_window_in_the_config_replaces_the_stored_one_for_ct_channels_alone(tmp_path):
    store = make_store(tmp_path, SHAPES)
    store.manifest["modalities"] = ["ct", "other"]

    noted = next(feed_of(store, AugmentationConfig()).batches(0, 1))[1][0]
    windowed = next(feed_of(store, AugmentationConfig(), window_hu=(-8.0, 12.0)).batches(0, 1))[1][
        0
    ]

    valid = torch.ones(4, *SIZE) > 0 if noted.valid is None else noted.valid
    expected = ((noted.voxels[:, 0].clamp(-8, 12) + 8) / 20)[valid]
    torch.testing.assert_close(windowed.voxels[:, 0][valid], expected)
    assert torch.equal(windowed.voxels[:, 1], noted.voxels[:, 1])
    torch.testing.assert_close(windowed.air[:, 0], torch.full((4,), (-3 + 8) / 20 + 1e-4))


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


def test_sided_values_are_swapped_by_index_and_ignored_values_are_left_out(store):
    plain = feed_of(store, AugmentationConfig(), ignore_label=2)
    mirrored = feed_of(
        store,
        AugmentationConfig(flip_axes=("x",), flip_probability=1.0, swap_on_flip=((4, 7),)),
    )

    _, (batch,) = next(plain.batches(0, 1))
    _, (other,) = next(mirrored.batches(0, 1))

    # values 0, 1, 2, 4, 7 have the indices 0 to 4
    assert set(batch.labels.unique().tolist()) == {0, 1, 3, 4, IGNORE_INDEX}
    table = torch.tensor([0, 1, IGNORE_INDEX, 4, 3] + [IGNORE_INDEX] * 251, dtype=torch.uint8)
    expected = table[other.labels.flip(1).long()]
    assert torch.equal(batch.labels, expected)


def test_fixed_crops_are_the_same_each_time_never_augmented_and_from_all_cases(store):
    feed = feed_of(store)

    first, again = feed.fixed(6), feed_of(store, workers=2).fixed(6)

    assert [len(batch.case_ids) for batch in first] == [4, 2]
    assert torch.cat([batch.crop_ids for batch in first]).tolist() == list(range(6))
    assert crops_of(first) == crops_of(again)
    assert {name for batch in first for name in batch.case_ids[:4]} == set(store.cases)
    for batch in first:
        torch.testing.assert_close(
            batch.spacing_mm, torch.tensor([[1.0, 1.5, 3.0]]).expand(len(batch.case_ids), 3)
        )


# Workers


def test_workers_give_the_same_steps_in_the_same_order(store):
    expected = steps_of(feed_of(store), 7, accumulation=2)

    for count in (1, 2, 3):
        found = steps_of(feed_of(store, workers=count), 7, accumulation=2)
        assert [step for step, _ in found] == list(range(7))
        for (_, a), (_, b) in zip(expected, found, strict=True):
            assert len(a) == len(b) == 2
            assert list(map(lambda x: crops_of([x]), a)) == list(map(lambda x: crops_of([x]), b))


def test_workers_can_be_spawned_where_fork_is_not_safe(store, monkeypatch):
    expected = steps_of(feed_of(store), 3)
    monkeypatch.setattr(
        feed_module,
        "made_ahead",
        lambda *args, **kwargs: workers.made_ahead(*args, **kwargs, start_method="spawn"),
    )

    found = steps_of(feed_of(store, workers=1), 3)

    for (_, a), (_, b) in zip(expected, found, strict=True):
        assert crops_of(a) == crops_of(b)


def children() -> set[int]:
    """Processes of this one that have not ended."""
    alive = set()
    for path in sorted(os.listdir("/proc")):
        try:
            with open(f"/proc/{path}/stat", encoding="ascii") as file:
                fields = file.read().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        if path.isdigit() and int(fields[1]) == os.getpid() and fields[0] != "Z":
            alive.add(int(path))
    return alive


linux_only = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")


def started(store, **data) -> tuple[Iterator[tuple[int, list[CropBatch]]], set[int]]:
    before = children()
    batches = feed_of(store, workers=2, **data).batches(0, 1000)
    next(batches)
    return batches, children() - before


@linux_only
def test_leaving_the_loop_ends_the_workers(store):
    batches, crew = started(store)
    assert len(crew) == 2

    batches.close()

    assert not crew & children()


@linux_only
def test_an_error_in_the_loop_ends_the_workers(store):
    crew: set[int] = set()

    def loop() -> None:
        before = children()
        for _ in feed_of(store, workers=2).batches(0, 1000):
            crew.update(children() - before)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop()

    assert len(crew) == 2
    assert not crew & children()


@linux_only
def test_workers_leave_interruptions_to_their_parent(store):
    batches, crew = started(store)

    for pid in crew:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    steps = [next(batches)[0] for _ in range(12)]

    assert steps == list(range(1, 13))
    batches.close()


@linux_only
def test_a_worker_that_dies_is_reported_with_the_cases_it_worked_on(store):
    batches, crew = started(store)

    for pid in crew:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(ResourceError, match=r"signal 9 while it made the crops of step .*`case_"):
        for _ in batches:
            pass

    assert not crew & children()


def test_an_error_in_a_worker_arrives_as_it_was_raised(tmp_path):
    store = make_store(tmp_path, SHAPES)
    path = tmp_path / "cases" / "case_2.h5"
    path.write_bytes(path.read_bytes()[:-1])

    for count in (0, 1):
        with pytest.raises(UserError, match=r"`case_2.h5` of the store cannot be used"):
            steps_of(feed_of(store, workers=count), 3)


def test_a_bug_in_a_worker_names_the_case_and_shows_its_traceback(store, monkeypatch):
    def broken(*args: object) -> None:
        raise ZeroDivisionError("broken on purpose")

    monkeypatch.setattr(feed_module.augment, "apply", broken)
    with pytest.raises(RuntimeError, match=r"cutting a crop at \(.*\) of case `case_") as caught:
        steps_of(feed_of(store, workers=1), 1)

    assert "in broken" in str(caught.value.__cause__)
    assert "broken on purpose" in str(caught.value.__cause__)


# Residency


def test_a_resident_feed_reads_each_file_once_and_keeps_what_is_stored(store, monkeypatch):
    opened: list[str] = []
    real = sources.CaseSource.load
    monkeypatch.setattr(
        sources.CaseSource,
        "load",
        lambda self, **kw: (opened.append(self.case_id), real(self, **kw))[1],
    )
    feed = feed_of(store, feed="resident")

    steps_of(feed, 5)
    steps_of(feed, 5)

    assert sorted(opened) == sorted(store.cases)
    assert all(source._voxels.dtype == np.int16 for source in feed._sources._resident.values())


def test_residency_beyond_the_memory_is_refused_with_both_numbers(store, monkeypatch):
    monkeypatch.setattr(sources, "available_bytes", lambda: 1000)

    with pytest.raises(ResourceError, match=r"for 4 volumes and 0\.0 GiB of memory are free"):
        steps_of(feed_of(store, feed="resident"), 1)


def test_files_are_opened_again_when_more_cases_than_handles_are_in_use(store, monkeypatch):
    expected = steps_of(feed_of(store), 4)
    monkeypatch.setattr(sources, "OPEN_CASES", 1)

    found = steps_of(feed_of(store), 4)

    for (_, a), (_, b) in zip(expected, found, strict=True):
        assert crops_of(a) == crops_of(b)


# What is refused


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


def test_a_store_without_labels_feeds_pretraining(tmp_path):
    store = make_store(tmp_path, SHAPES[:2], labels=False)

    for placement in ("uniform", "body"):
        feed = feed_of(store, needs=BatchNeeds(), placement=placement)
        assert len(steps_of(feed, 2)) == 2
