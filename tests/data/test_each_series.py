"""Folders of several DICOM series: each a case, or one by a rule."""

from __future__ import annotations

import numpy as np
import pytest

from mim3d.config.read import ReadConfig
from mim3d.config.verbs import PreparationConfig, PrepareConfig
from mim3d.data.cohort import read_cohort
from mim3d.data.files import content_key, is_there, read_volume
from mim3d.data.files.dicom_paths import series_of, series_path
from mim3d.data.prepare import prepare_store
from mim3d.data.store import open_store
from mim3d.foundation.errors import VolumeError
from tests.data.files.making import dicom_slice
from tests.preparing import all_files

UID = "1.2.826.0.1.{}"


def _series(folder, number, count, *, seed):
    """Slices of one series among others of the folder; voxels `x y z` in the order of the file."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    voxels = random.integers(-900, 900, (9, 8, count)).astype(np.int16)
    for k in range(count):
        raw = dicom_slice(voxels[:, :, k].T, (0, 0, 2.5 * k), series=UID.format(number))
        (folder / f"{number}-{k:03d}.dcm").write_bytes(raw)
    return voxels


@pytest.fixture
def tree(tmp_path):
    """Two folders: one of two series, the second larger; one of a single series."""
    voxels = [_series(tmp_path / "scans/first", n, n + 2, seed=n) for n in (1, 2)]
    _series(tmp_path / "scans/second", 3, 4, seed=3)
    return tmp_path / "scans", voxels


def test_each_series_of_a_tree_is_a_case_of_its_folders_subject(tree):
    source, _ = tree

    cohort = read_cohort(source)

    rows = [(case.case_id, case.subject_id, case.images[0].name) for case in cohort.cases]
    assert rows == [
        ("first-series1", "first", "dicom_series_001"),
        ("first-series2", "first", "dicom_series_002"),
        ("second", "second", "second"),
    ]
    told = "\n".join(cohort.found)
    assert "first-series2: CT, 4 slice(s) of 9 x 8" in told
    assert UID.format(1) not in told


def test_a_series_is_read_and_known_by_its_own_slices_alone(tree):
    source, voxels = tree
    alone = source.parent / "alone"
    _series(alone, 2, 4, seed=2)
    path = series_path(source / "first", 2)

    assert series_of(path) == (source / "first", 2)
    assert is_there(path)
    assert (read_volume(path).voxels[0] == voxels[1][::-1, ::-1]).all()
    assert content_key(path) == content_key(alone)
    assert content_key(series_path(source / "first", 1)) != content_key(path)


def test_a_number_that_the_folder_does_not_have_is_refused(tree):
    with pytest.raises(VolumeError, match="does not hold the series"):
        read_volume(series_path(tree[0] / "first", 3))


@pytest.mark.parametrize(("rule", "slices"), [("largest", 4), ("CT", 4), ("1", 3), ("2", 4)])
def test_a_rule_takes_one_series_of_each_folder(tree, rule, slices):
    source, _ = tree

    cohort = read_cohort(source, series=rule)

    assert [case.case_id for case in cohort.cases] == ["first", "second"]
    read = ReadConfig(series=rule)
    assert read_volume(cohort.cases[0].images[0], read).shape[2] == slices


def test_a_table_that_names_the_folder_keeps_its_case_and_may_name_a_series(tree):
    source, _ = tree
    table = source / "cases.csv"
    table.write_text("case,image\none,first\ntwo,first/dicom_series_002\n")

    one, two = read_cohort(table).cases

    assert (one.case_id, two.case_id) == ("one", "two")
    assert read_volume(two.images[0]).shape[2] == 4
    with pytest.raises(VolumeError, match="holds 2 series"):
        read_volume(one.images[0])


def test_a_modality_that_is_not_there_is_refused(tree):
    with pytest.raises(VolumeError, match="does not hold the series"):
        read_volume(tree[0] / "first", ReadConfig(series="MR"))


def test_a_store_of_many_series_holds_their_voxels_and_no_uid(tree, tmp_path):
    source, voxels = tree
    config = PrepareConfig(prepare=PreparationConfig(workers=0, crop_to_body=False))

    done = prepare_store(source, tmp_path / "store", config)
    again = prepare_store(source, tmp_path / "store", config)

    assert len(done.prepared) == 3
    assert len(again.kept) == 3
    with open_store(tmp_path / "store").open("first-series2") as case:
        stored, _ = case.read((0, 0, 0), case.shape[1:])
        assert (stored[0] == voxels[1][::-1, ::-1]).all()
    assert not any(b"1.2.826" in content or b"PLANTED" in content
                   for content in all_files(tmp_path / "store").values())  # fmt: skip


def test_another_slice_in_the_folder_makes_only_its_own_series_anew(tree, tmp_path):
    source, _ = tree
    config = PrepareConfig(prepare=PreparationConfig(workers=0, crop_to_body=False))
    prepare_store(source, tmp_path / "store", config)
    _series(source / "first", 2, 5, seed=2)

    again = prepare_store(source, tmp_path / "store", config)

    assert again.prepared == ("first-series2",)
    assert again.kept == ("first-series1", "second")
