"""What the crops of a feed show, and how it reads the files behind them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from position_feeds import GEOMETRY, SHAPES, SIZE, crops_of, feed_of, steps_of
from positions import make_store, value_at

from mim3d.config.data import AugmentationConfig
from mim3d.data import sources
from mim3d.data.batch import BatchNeeds
from mim3d.data.classes import IGNORE_INDEX
from mim3d.foundation.errors import ResourceError


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


def test_a_store_without_labels_feeds_pretraining(tmp_path):
    store = make_store(tmp_path, SHAPES[:2], labels=False)

    for placement in ("uniform", "body"):
        feed = feed_of(store, needs=BatchNeeds(), placement=placement)
        assert len(steps_of(feed, 2)) == 2


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
