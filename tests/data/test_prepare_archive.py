"""A MedMNIST archive into a store: its rows, lists, labels and scale, against `numpy.load`."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from archives import SHAPE, shapes, write_archive
from preparing import Recorder, config_with, voxel_files

from mim3d.data.cohort import apply_split, read_cohort
from mim3d.data.files import read_volume
from mim3d.data.intensity import Normalisation
from mim3d.data.prepare import VolumeRule, prepare_store, prepare_volume
from mim3d.data.store import Store
from mim3d.foundation.errors import UserError, VolumeError

# The cohort


def test_rows_are_cases_of_their_lists_with_their_labels_as_target(tmp_path):
    cohort = read_cohort(write_archive(tmp_path / "mine.npz"))

    found = [(case.case_id, case.part, case.targets) for case in cohort.cases]
    assert found == [
        *((f"train_0000{n}", "training", {"label": t}) for n, t in enumerate((0, 1, 0, 1, 2))),
        *((f"val_0000{n}", "validation", {"label": t}) for n, t in enumerate((1, 0))),
        *((f"test_0000{n}", "test", {"label": t}) for n, t in enumerate((2, 0, 1))),
    ]
    assert cohort.has_validation
    assert cohort.name == "mine"
    assert all(case.label is None and case.subject_id == case.case_id for case in cohort.cases)


def test_several_numbers_a_row_are_several_targets_and_other_arrays_are_told(tmp_path):
    labels = np.array([[0, 1, 1], [1, 0, 0]])
    path = write_archive(tmp_path / "a.npz", train_images=shapes(2), train_labels=labels,
                         notes=np.zeros(3), val_images=shapes(1))  # fmt: skip

    cohort = read_cohort(path)

    assert cohort.cases[1].targets == {"label_0": 1, "label_1": 0, "label_2": 0}
    assert cohort.cases[2].targets == {}
    assert cohort.remarks == ("arrays not used: `notes`",)


@pytest.mark.parametrize(
    ("labels", "why"),
    [(np.zeros(3), "`train_images` has 2 rows and `train_labels` has 3"),
     (np.array([1.0, np.nan]), "row 1 of `train_labels` is no number"),
     (np.zeros((2, 3, 3)), "does not hold a few numbers a row: 2 x 3 x 3"),
     (np.zeros((2, 2000)), "a few numbers")],
)  # fmt: skip
def test_labels_that_do_not_fit_are_refused(tmp_path, labels, why):
    path = write_archive(tmp_path / "a.npz", train_images=shapes(2), train_labels=labels)

    with pytest.raises(VolumeError, match=why):
        read_cohort(path)


@pytest.mark.parametrize("images", [np.zeros((2, 5)), np.zeros((2, 5, 4, 3, 2))])
def test_rows_that_are_no_volumes_are_refused(tmp_path, images):
    path = write_archive(tmp_path / "a.npz", train_images=images)

    with pytest.raises(VolumeError, match="volumes have three"):
        read_cohort(path)


def test_an_archive_of_nothing_is_an_empty_cohort(tmp_path):
    path = write_archive(tmp_path / "a.npz", train_images=shapes(0))

    with pytest.raises(UserError, match="holds no case"):
        read_cohort(path)


def test_the_rest_of_a_split_are_the_rows_with_a_target(tmp_path):
    (tmp_path / "split.json").write_text('{"training": "rest", "validation": ["val_00001"]}')
    cohort = read_cohort(write_archive(tmp_path / "a.npz"))

    parts = {c.case_id: c.part for c in apply_split(cohort, tmp_path / "split.json").cases}

    assert [name for name, part in parts.items() if part == "validation"] == ["val_00001"]
    assert len(parts) == len(cohort.cases)


# The store


@pytest.mark.parametrize("workers", [0, 2])
def test_a_store_holds_whole_rows_that_keep_their_scale(tmp_path, workers):
    path = write_archive(tmp_path / "mine.npz")
    oracle = np.load(path)

    result = prepare_store(path, tmp_path / "store", config_with(workers=workers))

    store = Store(tmp_path / "store")
    assert result.refused == ()
    assert [len(store.ids(part)) for part in ("training", "validation", "test")] == [5, 2, 3]
    assert store.classes is None
    assert store.median_spacing_mm == (1, 1, 1)
    for case_id in store.cases:
        part, number = case_id.split("_")
        with store.open(case_id) as case:
            stored, labels = case.read((0, 0, 0), SHAPE)
            normalised = case.read_normalised((0, 0, 0), SHAPE)
            assert case.normalisation == (Normalisation("window", 0, 255, air=0),)
        assert labels is None
        assert (stored[0] == oracle[f"{part}_images"][int(number)]).all()
        assert (normalised == stored / 255).all()
        assert store.entry(case_id).targets == {"label": oracle[f"{part}_labels"][int(number), 0]}


def test_grey_values_of_eight_bits_have_one_scale_in_all_volumes(tmp_path):
    """A dark volume stays darker than a bright one; each by its own mean and deviation, it would
    not."""
    random = np.random.default_rng(0)
    images = random.integers(1, 60, (4, *SHAPE)).astype(np.uint8)
    images[2:] *= 4
    path = write_archive(tmp_path / "a.npz", train_images=images)

    prepare_store(path, tmp_path / "store", config_with())

    store = Store(tmp_path / "store")
    for number, case_id in enumerate(store.cases):
        with store.open(case_id) as case:
            found = case.read_normalised((0, 0, 0), SHAPE)[0]
        assert found == pytest.approx(images[number] / 255, abs=1e-6)


@pytest.mark.parametrize(
    ("images", "settings", "expected"),
    [(shapes(3) // 255, {}, ("window", 0, 1)),
     (shapes(3) > 0, {}, ("window", 0, 1)),
     (shapes(3), {"intensity_range": (0, 510)}, ("window", 0, 510)),
     (shapes(3).astype(np.uint16) + np.arange(7, dtype=np.uint16), {}, ("zscore", 0, 261)),
     (shapes(3).astype(np.float32), {"intensity_range": (-1, 300)}, ("window", -1, 300))],
)  # fmt: skip
def test_the_scale_follows_the_type_and_what_is_asked_for(tmp_path, images, settings, expected):
    path = write_archive(tmp_path / "a.npz", train_images=images)

    result = prepare_store(path, tmp_path / "store", config_with(**settings))

    assert result.refused == ()
    with Store(tmp_path / "store").open("train_00000") as case:
        (found,) = case.normalisation
    if expected[0] == "window":
        assert (found.kind, found.low, found.high) == expected
    else:
        assert found.kind == "zscore"


def test_a_volume_of_one_value_is_refused_and_one_of_a_thin_shape_is_not(tmp_path):
    images = np.zeros((3, 16, 16, 16), np.uint8)
    images[1, 5, 6, 7] = 255  # one voxel of 4,096, less than one in a thousand
    images[2] = 9
    path = write_archive(tmp_path / "a.npz", train_images=images)

    result = prepare_store(path, tmp_path / "store", config_with())

    assert {row.case_id: row.code for row in result.refused} == {
        "train_00000": "constant", "train_00002": "constant"
    }  # fmt: skip
    assert result.prepared == ("train_00001",)


def test_the_frame_is_kept_unless_cropping_is_asked_for(tmp_path):
    images = np.zeros((2, *SHAPE), np.uint8)
    images[:, 2:5, 6:12, 1:3] = 255
    path = write_archive(tmp_path / "a.npz", train_images=images)

    prepare_store(path, tmp_path / "whole", config_with())
    prepare_store(path, tmp_path / "cut", config_with(crop_to_body=True, body_margin_mm=0))

    assert Store(tmp_path / "whole").entry("train_00001").shape == (1, *SHAPE)
    assert Store(tmp_path / "cut").entry("train_00001").shape == (1, 3, 6, 2)


def test_prediction_of_a_row_sees_what_training_saw(tmp_path):
    path = write_archive(tmp_path / "a.npz")
    prepare_store(path, tmp_path / "store", config_with(spacing_mm=(1.5, 1.0, 0.8)))
    store = Store(tmp_path / "store")

    with pytest.warns(UserWarning, match="1 mm"):
        volume = read_volume(path / "val_00001")
    again = prepare_volume(volume, VolumeRule.from_json(store.preparation))

    with store.open("val_00001") as case:
        assert (case.read_normalised((0, 0, 0), case.shape[1:]) == again.normalised).all()


def test_a_second_run_keeps_rows_and_another_label_renews_no_voxel(tmp_path):
    path = write_archive(tmp_path / "a.npz")
    store = tmp_path / "store"
    prepare_store(path, store, config_with())
    before = voxel_files(store)

    assert len(prepare_store(path, store, config_with()).kept) == 10
    arrays = dict(np.load(path))
    arrays["train_labels"] = 1 - arrays["train_labels"] // 2
    arrays["train_images"][3, 0, 0, 0] ^= 255
    write_archive(path, **arrays)
    again = prepare_store(path, store, config_with())

    assert again.prepared == ("train_00003",)
    assert len(again.kept) == 9
    now = voxel_files(store)
    assert [name for name in now if now[name] != before[name]] == ["train_00003.h5"]
    targets = [Store(store).entry(f"train_0000{n}").targets["label"] for n in range(5)]
    assert targets == [1, 1, 1, 1, 0]


def test_an_archive_that_is_gone_leaves_the_store_as_it_is(tmp_path):
    path = write_archive(tmp_path / "a.npz")
    cohort = read_cohort(path)
    prepare_store(cohort, tmp_path / "store", config_with())
    path.unlink()

    with pytest.raises(UserError, match="the store stays as it is"):
        prepare_store(cohort, tmp_path / "store", config_with())
    assert len(Store(tmp_path / "store").cases) == 10


def test_what_is_printed_tells_scale_and_targets(tmp_path):
    recorder = Recorder()

    prepare_store(write_archive(tmp_path / "a.npz"), tmp_path / "store", config_with(), recorder)

    assert "channel 0: other, 0 to 255 become 0 to 1; stored exactly" in recorder.lines
    assert "target label: known of 10 case(s), 0 (4), 1 (4), 2 (2)" in recorder.lines
    size = (tmp_path / "a.npz").stat().st_size / 2**20
    assert any(f"{size:,.0f} MiB of images (a NumPy archive" in line for line in recorder.lines)


def test_without_labels_maps_a_fifth_of_the_cases_with_targets_is_held_out(tmp_path):
    rows = ["case,image,target_age"]
    random = np.random.default_rng(0)
    for number in range(12):
        voxels = random.integers(1, 900, SHAPE).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / f"c{number}.nii.gz")
        rows.append(f"c{number},c{number}.nii.gz,{20 + number if number < 10 else ''}")
    (tmp_path / "c.csv").write_text("\n".join(rows) + "\n")

    prepare_store(tmp_path / "c.csv", tmp_path / "store", config_with())

    store = Store(tmp_path / "store")
    judging = store.ids("validation")
    assert 0 < len(judging) < 6
    assert all(store.entry(case_id).targets for case_id in judging)


@pytest.mark.parametrize("settings", [{"intensity_range": (5, 5)}, {"intensity_range": (9, -1)}])
def test_a_range_that_is_none_is_refused(tmp_path, settings):
    path = write_archive(tmp_path / "a.npz")

    with pytest.raises(UserError, match="a lower and a higher value"):
        prepare_store(path, tmp_path / "store", config_with(**settings))


@pytest.mark.real_data
def test_adrenal_shapes_are_prepared_as_they_are(shared, tmp_path):
    path = shared / "data/adrenalmnist3d_64.npz"
    cohort = read_cohort(path)
    some = replace(cohort, cases=(*cohort.cases[:4], *cohort.cases[-4:]))
    oracle = np.load(path)

    result = prepare_store(some, tmp_path / "store", config_with())

    store = Store(tmp_path / "store")
    assert len(cohort.cases) == 1188 + 98
    assert result.refused == ()
    labels = np.concatenate((oracle["train_labels"][:4], oracle["val_labels"][-4:]))[:, 0]
    assert [store.entry(case).targets["label"] for case in store.cases] == labels.tolist()
    with store.open("val_00097") as case:
        found = case.read_normalised((0, 0, 0), (64, 64, 64))[0]
    assert (found == oracle["val_images"][97] / 255).all()
