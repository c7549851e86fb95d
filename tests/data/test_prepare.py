"""From files to a store: what is kept, what is refused, and what a second run does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mim3d.config.read import ReadConfig
from mim3d.config.verbs import PreparationConfig, PrepareConfig
from mim3d.data.cohort import Case, read_cohort
from mim3d.data.files import read_volume
from mim3d.data.intensity import Normalisation
from mim3d.data.phantom import PhantomRule, make_cohort, make_volume
from mim3d.data.prepare import VolumeRule, prepare_store, prepare_volume, rebuild
from mim3d.data.prepare.job import Work, refuse
from mim3d.data.store import Store
from mim3d.data.volume import Origin, Volume
from mim3d.foundation.atomic import temporary_name
from mim3d.foundation.errors import ConfigError, ResourceError, UserError, VolumeError
from mim3d.foundation.reporting import Silent

RULE = PhantomRule(shape=(27, 23, 14), spacing_mm=(1.5, 1.2, 3.0), organs=2, noise=0.03)


def _config(**settings) -> PrepareConfig:
    """In this process unless a test says otherwise: the same code without the start of another."""
    return PrepareConfig(prepare=PreparationConfig(**{"workers": 0, **settings}))


@pytest.fixture
def cohort(tmp_path) -> Path:
    return make_cohort(tmp_path / "cohort", 1, training=3, validation=1, unlabelled=1, rule=RULE)


def _write(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, np.diag([1.5, 1.2, 3, 1]) if affine is None else affine)
    nib.save(image, path)


def _state(store: Path) -> dict[str, bytes]:
    """Content of all voxel files."""
    return {path.name: path.read_bytes() for path in sorted((store / "cases").glob("*.h5"))}


def _quarantine(store: Path) -> dict[str, dict[str, str]]:
    lines = (store / "quarantine.tsv").read_text().splitlines()
    head = lines[0].split("\t")
    rows = [dict(zip(head, line.split("\t"), strict=True)) for line in lines[1:]]
    return {row["case"]: row for row in rows}


class _Recorder(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.warnings: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


# What a store holds


def test_a_store_holds_the_files_voxels_labels_lists_and_classes(cohort, tmp_path):
    result = prepare_store(cohort, tmp_path / "store", _config(crop_to_body=False))

    store = Store(tmp_path / "store")
    assert len(result.prepared) == 5
    assert result.exit_code == 0
    assert store.ids("training") == ("phantom_000", "phantom_001", "phantom_002", "phantom_003")
    assert store.ids("validation") == ("phantom_004",)
    assert store.classes.names == ("background", "organ 1", "organ 2", "tumour")
    assert store.modality == "mr"
    assert store.median_spacing_mm == pytest.approx(RULE.spacing_mm)
    for number, case_id in enumerate(store.cases):
        voxels, labels = make_volume(1, number, RULE)
        with store.open(case_id) as case:
            stored, indices = case.read((0, 0, 0), RULE.shape)
            assert (stored == voxels).all()
            assert (indices is None) == (number == 3)
            assert indices is None or (indices == labels).all()
            image = nib.load(next(cohort.glob(f"images*/{case_id}.nii.gz")))
            assert case.affine == pytest.approx(image.affine)


def test_the_fingerprint_counts_what_is_in_the_store(cohort, tmp_path):
    recorder = _Recorder()

    prepare_store(cohort, tmp_path / "store", _config(), recorder)

    fingerprint = Store(tmp_path / "store").fingerprint
    assert fingerprint["cases"] == 5
    assert fingerprint["labelled"] == 4
    assert fingerprint["thick_axes"] == {"z": 5}
    assert fingerprint["original"]["shape"]["median"] == list(RULE.shape)
    assert fingerprint["channels"][0]["quantisation_error"] == 0
    labels = [make_volume(1, n, RULE)[1] for n in (0, 1, 2, 4)]
    row = fingerprint["classes"][3]
    ml = [(label == 3).sum() * 1.5 * 1.2 * 3 / 1000 for label in labels]
    assert row["name"] == "tumour"
    assert row["ml"]["median"] == pytest.approx(np.median(ml))
    assert any("tumour" in line for line in recorder.lines)
    assert any("4 training (4 subjects), 1 validation" in line for line in recorder.lines)


@pytest.mark.parametrize("margin", [0.0, 5.0])
def test_the_crop_keeps_every_labelled_voxel_and_lies_where_it_did(tmp_path, margin):
    """A label in the corner of the air: the crop grows to hold it."""
    voxels, labels = make_volume(1, 0, RULE)
    voxels = np.pad(voxels, ((0, 0), (9, 10), (11, 9), (8, 10)))
    labels = np.pad(labels, ((9, 10), (11, 9), (8, 10)))
    labels[0, 1, 2] = 2
    affine = np.array([[0, -1.2, 0, 9], [1.5, 0, 0, -4], [0, 0, 3, 2], [0, 0, 0, 1.0]])
    origin = Origin(labels.shape, (0, 1, 2), (False,) * 3, affine, labels.shape)
    volume = Volume(voxels, affine, origin=origin)
    rule = VolumeRule(("mr",), body_margin_mm=margin)

    case = prepare_volume(volume, rule, labels, (0, 1, 2, 3))
    tight = prepare_volume(volume, rule)

    assert np.prod(tight.voxels.shape) < np.prod(case.voxels.shape)
    assert (np.bincount(case.labels.ravel())[1:] == np.bincount(labels.ravel())[1:]).all()
    start = np.linalg.solve(affine, case.affine)[:3, 3].round().astype(int)
    box = tuple(slice(s, s + n) for s, n in zip(start, case.labels.shape, strict=True))
    assert (case.voxels[0] == voxels[(0, *box)]).all()
    assert (case.labels == labels[box]).all()
    # The statistics are those of the whole volume, whatever the crop.
    assert case.normalisation == tight.normalisation
    (note,) = (note for note in case.notes if note.code == "labels-outside-body")
    assert note.text.startswith("1 labelled voxel(s)")


def test_training_and_prediction_see_the_same_numbers_to_the_last_bit(tmp_path):
    """The store's crop against `prepare_volume` of the file, for resampled float voxels."""
    voxels = make_volume(1, 0, RULE)[0][0] * np.float32(0.137)
    _write(tmp_path / "in/a.nii.gz", voxels)
    config = _config(spacing_mm=(1.1, 1.3, 2.0), interpolation="cubic")
    prepare_store(tmp_path / "in", tmp_path / "store", config)
    store = Store(tmp_path / "store")

    again = prepare_volume(
        read_volume(tmp_path / "in/a.nii.gz"), VolumeRule.from_json(store.preparation)
    )

    with store.open("a") as case:
        assert case.shape == again.voxels.shape
        assert (case.read_normalised((0, 0, 0), case.shape[1:]) == again.normalised).all()
        assert (case.affine == again.affine).all()


def test_every_storage_order_of_a_volume_gives_the_same_case(tmp_path):
    voxels, labels = make_volume(1, 0, RULE)
    affine = np.diag([1.5, 1.2, 3.0, 1.0])
    ras = nib.Nifti1Image(voxels[0], affine), nib.Nifti1Image(labels, affine)
    for order in ("RAS", "LPS", "SRA", "AIL", "PLI"):
        turn = nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(order)
        )
        for folder, image in zip(("imagesTr", "labelsTr"), ras, strict=True):
            path = tmp_path / "in" / folder / f"{order}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(image.as_reoriented(turn), path)

    prepare_store(tmp_path / "in", tmp_path / "store", _config(spacing_mm=(1.1, 1.3, 2.0)))

    store = Store(tmp_path / "store")
    cases = []
    for case_id in store.cases:
        with store.open(case_id) as case:
            whole = case.read((0, 0, 0), case.shape[1:])
            cases.append((*whole, case.affine, case.normalisation))
    assert len(cases) == 5
    for case in cases[1:]:
        assert (case[0] == cases[0][0]).all()
        assert (case[1] == cases[0][1]).all()
        assert case[2] == pytest.approx(cases[0][2], abs=1e-5)  # float32 in headers
        assert case[3] == cases[0][3]


def test_ct_is_recognised_by_its_values_and_takes_the_window(tmp_path):
    make_cohort(tmp_path / "ct", 2, training=3, validation=0, rule=replace(RULE, modality="ct"))
    recorder = _Recorder()

    prepare_store(
        tmp_path / "ct/imagesTr", tmp_path / "store", _config(window_hu=(-175, 250)), recorder
    )

    store = Store(tmp_path / "store")
    assert store.modality == "ct"
    assert "modality by the values of 3 case(s): ct" in recorder.lines
    with store.open(store.cases[0]) as case:
        assert case.normalisation == (Normalisation("window", -175, 250, air=-500),)


def test_the_modality_asked_for_wins_over_the_sources_word_and_says_so(cohort, tmp_path):
    recorder = _Recorder()

    prepare_store(cohort, tmp_path / "store", _config(modality="ct"), recorder)

    assert Store(tmp_path / "store").modality == "ct"
    assert any("the source says mr" in warning for warning in recorder.warnings)


def test_without_a_validation_list_a_fifth_is_held_out_by_subject(tmp_path):
    names = [f"s{n // 2}" for n in range(20)]
    rule = PhantomRule(shape=(12, 11, 9), organs=1, tumour=False, spacing_mm=(4, 4, 6))
    make_cohort(tmp_path / "c", training=20, validation=0, rule=rule, subjects=names)

    prepare_store(tmp_path / "c", tmp_path / "store", _config())

    store = Store(tmp_path / "store")
    parts = {store.subject(case): store.part(case) for case in store.cases}
    assert len(store.ids("validation")) == 2 * sum(p == "validation" for p in parts.values()) > 0
    assert all(store.part(case) == parts[store.subject(case)] for case in store.cases)
    # The fraction is no content: another one only writes other lists.
    before = _state(tmp_path / "store")
    again = prepare_store(tmp_path / "c", tmp_path / "store", _config(validation_fraction=0.0))
    assert len(again.kept) == 20
    assert Store(tmp_path / "store").ids("validation") == ()
    assert _state(tmp_path / "store") == before


def test_a_split_file_replaces_the_sources_lists(cohort, tmp_path):
    split = tmp_path / "split.json"
    split.write_text('{"training": "rest", "validation": ["001", "phantom_002"]}')
    recorder = _Recorder()

    prepare_store(cohort, tmp_path / "store", _config(split=str(split)), recorder)

    store = Store(tmp_path / "store")
    assert store.ids("validation") == ("phantom_001", "phantom_002")
    assert store.ids("training") == ("phantom_000", "phantom_004")  # 003 has no labels
    assert any("by the split" in line for line in recorder.lines)


def test_several_contrasts_of_a_table_become_channels(tmp_path):
    voxels, labels = make_volume(1, 0, replace(RULE, channels=2))
    _write(tmp_path / "t1.nii.gz", voxels[0])
    _write(tmp_path / "flair.nii.gz", voxels[1])
    _write(tmp_path / "seg.nii.gz", (labels * 2).astype(np.uint8))
    table = tmp_path / "c.csv"
    table.write_text(
        "case,image_t1,image_flair,label,target_age\nx,t1.nii.gz,flair.nii.gz,seg.nii.gz,7\n"
    )

    prepare_store(table, tmp_path / "store", _config(crop_to_body=False))

    store = Store(tmp_path / "store")
    assert store.channel_names == ("t1", "flair")
    assert store.classes.values == (0, 2, 4, 6)
    assert store.entry("x").targets == {"age": 7.0}
    with store.open("x") as case:
        stored, indices = case.read((0, 0, 0), RULE.shape)
    assert (stored == voxels).all()
    assert (indices == labels).all()


def test_channels_on_another_grid_are_refused_or_aligned_as_asked(tmp_path):
    voxels, _ = make_volume(1, 0, RULE)
    _write(tmp_path / "a.nii.gz", voxels[0])
    shifted = np.diag([1.5, 1.2, 3, 1])
    shifted[0, 3] = 1.5  # by one voxel
    _write(tmp_path / "b.nii.gz", voxels[0], shifted)
    table = tmp_path / "c.csv"
    table.write_text("image_a,image_b\na.nii.gz,b.nii.gz\n")

    refused = prepare_store(table, tmp_path / "store", _config())
    assert "align_channels" in refused.refused[0].remedy
    assert refused.exit_code == 3
    prepare_store(table, tmp_path / "store", _config(align_channels=True, crop_to_body=False))

    with Store(tmp_path / "store").open("a") as case:
        first, second = case.read((0, 0, 0), RULE.shape)[0]
    assert np.abs(second[1:] - voxels[0][:-1].astype(int)).max() <= 1
    assert (first == voxels[0]).all()


def test_classes_found_in_files_are_the_union_over_cases(tmp_path):
    voxels, _ = make_volume(1, 0, RULE)
    for name, values in (("a", (0, 7)), ("b", (0, 3, 200))):
        labels = np.array(values, np.uint8)[np.arange(voxels[0].size) % len(values)]
        _write(tmp_path / f"in/imagesTr/{name}.nii.gz", voxels[0])
        _write(tmp_path / f"in/labelsTr/{name}.nii.gz", labels.reshape(voxels[0].shape))

    prepare_store(tmp_path / "in", tmp_path / "store", _config())

    store = Store(tmp_path / "store")
    assert store.classes.values == (0, 3, 7, 200)
    with store.open("a") as a, store.open("b") as b:
        assert a.classes_present() == (0, 2)
        assert b.classes_present() == (0, 1, 3)


def test_a_spike_in_float_voxels_costs_the_tissue_no_precision(tmp_path):
    voxels = make_volume(1, 0, RULE)[0][0] * np.float32(0.137)
    voxels[5, 5, 5] = 1e8
    _write(tmp_path / "a.nii.gz", voxels)

    prepare_store(tmp_path / "a.nii.gz", tmp_path / "store", _config(crop_to_body=False))

    store = Store(tmp_path / "store")
    with store.open("a") as case:
        own = case.read_intensities((0, 0, 0), RULE.shape)[0]
    kept = voxels < 1e6
    assert np.abs(own - voxels)[kept].max() < 1e-3 * voxels[kept].std()
    assert store.fingerprint["notes"]["spikes"] == 1


def test_unusable_voxels_take_no_part_in_the_normalisation_of_any_channel(tmp_path):
    voxels = make_volume(1, 0, replace(RULE, channels=2))[0] + np.float32(1000)
    missing = np.random.default_rng(0).random(voxels.shape[1:]) < 0.3
    holes = np.where(missing, np.float32(np.inf), voxels[1])
    _write(tmp_path / "t1.nii.gz", voxels[0])
    _write(tmp_path / "flair.nii.gz", holes)
    (tmp_path / "c.csv").write_text("case,image_t1,image_flair\nx,t1.nii.gz,flair.nii.gz\n")

    prepare_store(tmp_path / "c.csv", tmp_path / "store", _config(crop_to_body=False))

    with Store(tmp_path / "store").open("x") as case:
        found = case.normalisation[1]
    rest = voxels[1][~missing]
    low, high = np.percentile(rest, (0.5, 99.5))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.mean == pytest.approx(rest.clip(low, high).mean())
    assert found.deviation == pytest.approx(rest.clip(low, high).std())


# What is refused


def _bad_cases(folder: Path) -> dict[str, str]:
    """A cohort of one good case and one of each bad kind; case id to the code expected."""
    voxels, labels = make_volume(1, 0, RULE)
    entries = []

    def add(name: str, image: np.ndarray, label: np.ndarray = labels, affine=None) -> None:
        _write(folder / f"imagesTr/{name}.nii.gz", image)
        _write(folder / f"labelsTr/{name}.nii.gz", label, affine)
        entries.append({"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"})

    shifted = np.diag([1.5, 1.2, 3, 1])
    shifted[2, 3] = 40
    foreign = labels.copy()
    foreign[0, 0, 0] = 77
    one = np.zeros_like(voxels[0])
    one[3, 3, 3] = 9
    add("good", voxels[0])
    add("constant", np.full_like(voxels[0], 5))
    add("one_voxel", one)
    add("other_grid", voxels[0], affine=shifted)
    add("foreign_label", voxels[0], foreign)
    add("two_channels", np.stack([voxels[0]] * 2, axis=3))
    add("cut", voxels[0])
    add("gone", voxels[0])
    (folder / "imagesTr/gone.nii.gz").unlink()
    path = folder / "imagesTr/cut.nii.gz"
    path.write_bytes(path.read_bytes()[:-500])
    content = {
        "modality": {"0": "MRI"},
        "labels": {str(v): f"l{v}" for v in range(4)},
        "training": entries,
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return {
        "constant": "constant", "one_voxel": "empty-body", "two_channels": "channels",
        "gone": "missing-file",
    }  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_cases_become_rows_of_the_quarantine_and_the_rest_goes_on(tmp_path, workers):
    codes = _bad_cases(tmp_path / "in")

    result = prepare_store(tmp_path / "in", tmp_path / "store", _config(workers=workers))

    rows = _quarantine(tmp_path / "store")
    assert result.prepared == ("good",)
    assert result.exit_code == 4
    assert set(rows) == {*codes, "other_grid", "foreign_label", "cut"}
    for case_id, code in codes.items():
        assert rows[case_id]["code"] == code
    for row in rows.values():
        assert row["reason"]
        assert row["code"] != "bug"
        assert str(tmp_path) not in "".join(row.values())
    assert "mm" in rows["other_grid"]["reason"]
    assert rows["other_grid"]["file"] == "other_grid.nii.gz"
    assert "77" in rows["foreign_label"]["reason"]
    assert Store(tmp_path / "store").cases == ("good",)
    assert {r.case_id for r in result.refused} == set(rows)
    # A refused case leaves its sidecar and nothing else.
    assert {p.name for p in (tmp_path / "store/cases").glob("*.h5")} == {"good.h5"}


def test_a_case_that_was_mended_is_prepared_and_one_that_broke_is_refused(cohort, tmp_path):
    image = cohort / "imagesTr/phantom_001.nii.gz"
    whole = image.read_bytes()
    image.write_bytes(whole[:-300])
    first = prepare_store(cohort, tmp_path / "store", _config())
    assert [r.case_id for r in first.refused] == ["phantom_001"]

    image.write_bytes(whole)
    second = prepare_store(cohort, tmp_path / "store", _config())
    assert second.prepared == ("phantom_001",)
    assert second.refused == ()

    image.write_bytes(whole[:-300])
    third = prepare_store(cohort, tmp_path / "store", _config())
    assert [r.case_id for r in third.refused] == ["phantom_001"]
    assert "phantom_001" not in Store(tmp_path / "store").cases


def test_a_cohort_of_which_nothing_can_be_used_ends_with_code_3(tmp_path):
    _write(tmp_path / "in/a.nii.gz", np.full((9, 8, 7), 3, np.int16))

    result = prepare_store(tmp_path / "in", tmp_path / "store", _config())

    assert result.exit_code == 3
    with pytest.raises(UserError, match="not a store"):
        Store(tmp_path / "store")


PLANTED = """
import os, signal, time
import mim3d.data.prepare.case as case
whole = case._read
def broken(item, *rest):
    name = item.case_id
    if name == "phantom_000":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "phantom_001":
        os._exit(3)
    if name == "phantom_002":
        raise MemoryError
    if name == "phantom_003":
        raise ZeroDivisionError("planted")
    return whole(item, *rest)
case._read = broken
"""


def test_a_reader_that_dies_costs_one_case_and_no_other(cohort, tmp_path, monkeypatch):
    """Planted readers that segfault, exit, eat memory, and have a bug."""
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted/sitecustomize.py").write_text(PLANTED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "planted"))
    recorder = _Recorder()

    result = prepare_store(cohort, tmp_path / "store", _config(workers=2), recorder)

    assert result.prepared == ("phantom_004",)
    rows = {row.case_id: row for row in result.refused}
    assert rows["phantom_000"].reason == "the process that read it was ended by SIGSEGV"
    assert rows["phantom_001"].reason == "the process that read it ended with code 3"
    assert rows["phantom_002"].code == "memory"
    assert rows["phantom_003"].code == "bug"
    assert any("planted" in warning for warning in recorder.warnings)


@pytest.mark.slow
def test_a_reader_that_hangs_is_ended(cohort, tmp_path, monkeypatch):
    (tmp_path / "planted").mkdir()
    hang = PLANTED.replace("os.kill(os.getpid(), signal.SIGSEGV)", "time.sleep(60)")
    (tmp_path / "planted/sitecustomize.py").write_text(hang)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "planted"))
    monkeypatch.setattr("mim3d.data.prepare.pool.LEAST_SECONDS", 1.0)
    monkeypatch.setattr("mim3d.data.prepare.pool.START_SECONDS", 12.0)

    result = prepare_store(cohort, tmp_path / "store", _config(workers=1))

    assert "did not end within" in {r.case_id: r.reason for r in result.refused}["phantom_000"]
    assert result.prepared == ("phantom_004",)


# A source that is gone for a moment


def _all_files(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("gone", ["images", "labels", "one"])
@pytest.mark.parametrize("modality", ["auto", "mr"])
def test_a_source_that_vanished_and_came_back_costs_nothing(cohort, tmp_path, gone, modality):
    """Nothing is lost, and nothing is prepared twice."""
    store = tmp_path / "store"
    prepare_store(cohort, store, _config(modality=modality))
    before, voxels = _all_files(store), _state(store)
    victims = {
        "images": list(cohort.glob("images*")),
        "labels": [cohort / "labelsTr"],
        "one": [cohort / "imagesTr/phantom_001.nii.gz"],
    }[gone]
    for item in victims:
        item.rename(tmp_path / item.name)

    if gone == "images":
        with pytest.raises(UserError, match="the store stays as it is") as caught:
            prepare_store(cohort, store, _config(modality=modality))
        assert caught.value.exit_code == 3
        assert _all_files(store) == before
    else:
        away = prepare_store(cohort, store, _config(modality=modality))
        assert away.exit_code == 4
        assert away.prepared == ()
        rows = _quarantine(store)
        assert {row["code"] for row in rows.values()} == {"missing-file"}
        assert {r.case_id for r in away.refused} == set(rows)
        assert len(rows) + len(away.kept) == 5
        assert "stays" in rows["phantom_001"]["reason"]
    assert _state(store) == voxels
    assert len(Store(store).cases) == 5

    for item in victims:
        (tmp_path / item.name).rename(item)
    back = prepare_store(cohort, store, _config(modality=modality))
    assert (len(back.kept), back.prepared, back.refused) == (5, (), ())
    assert _state(store) == voxels
    assert _quarantine(store) == {}
    if gone != "one":  # a file that was moved has another time of change
        assert _all_files(store) == before


def test_a_reader_that_died_over_a_changed_source_leaves_the_older_case(
    cohort, tmp_path, monkeypatch
):
    store = tmp_path / "store"
    prepare_store(cohort, store, _config())
    voxels = _state(store)
    for path in cohort.glob("imagesTr/*.nii.gz"):
        image = nib.load(path)
        array = np.asarray(image.dataobj).copy()
        array[5, 5, 5] += 1
        _write(path, array, image.affine)
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted/sitecustomize.py").write_text(PLANTED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "planted"))

    result = prepare_store(cohort, store, _config(workers=2))

    rows = {row.case_id: row.code for row in result.refused}
    assert rows == {
        "phantom_000": "reader-died", "phantom_001": "reader-died", "phantom_002": "memory",
        "phantom_003": "bug",
    }  # fmt: skip
    assert result.exit_code == 4
    assert set(Store(store).cases) == {f"phantom_00{n}" for n in (0, 1, 2, 4)}
    assert all(_state(store)[f"phantom_00{n}.h5"] == voxels[f"phantom_00{n}.h5"] for n in range(3))

    monkeypatch.delenv("PYTHONPATH")
    mended = prepare_store(cohort, store, _config())
    assert mended.refused == ()
    assert {"phantom_000", "phantom_001", "phantom_002"} <= set(mended.prepared)


def test_what_was_prepared_with_other_settings_does_not_stay(cohort, tmp_path):
    """A store is never a mixture of two preparations."""
    prepare_store(cohort, tmp_path / "store", _config(modality="mr"))
    (cohort / "imagesTr/phantom_001.nii.gz").unlink()

    result = prepare_store(cohort, tmp_path / "store", _config(modality="mr", spacing_mm=(2, 2, 3)))

    assert [row.case_id for row in result.refused] == ["phantom_001"]
    assert "phantom_001" not in Store(tmp_path / "store").cases


@pytest.mark.parametrize("damage", ["cut", "flipped", "later format", "later records", "gone"])
def test_a_manifest_that_cannot_be_used_is_mended_by_preparing_again(cohort, tmp_path, damage):
    store = tmp_path / "store"
    prepare_store(cohort, store, _config())
    path = store / "manifest.json"
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped":
        path.write_bytes(whole.replace(b"phantom_001", b"phantom_009", 1))
    else:
        key, number = {"later format": (b"format", b"1"), "later records": (b"records", b"2")}[
            damage
        ]
        path.write_bytes(whole.replace(b'"%s": %s' % (key, number), b'"%s": 7' % key, 1))

    again = prepare_store(cohort, store, _config())

    assert (len(again.kept), again.prepared, again.refused) == (5, (), ())
    assert path.read_bytes() == whole


def test_a_cohort_of_both_modalities_is_kept_by_a_second_run(tmp_path):
    """What was decided case by case is not decided anew by what most cases are."""
    hounsfield = np.random.default_rng(1).integers(-1000, 900, (24, 22, 20)).astype(np.int16)
    _write(tmp_path / "in/ct.nii.gz", hounsfield)
    for name in ("mr_1", "mr_2"):
        _write(tmp_path / f"in/{name}.nii.gz", make_volume(1, 0, RULE)[0][0])
    prepare_store(tmp_path / "in", tmp_path / "store", _config())
    voxels = _state(tmp_path / "store")

    again = prepare_store(tmp_path / "in", tmp_path / "store", _config())

    assert (len(again.kept), again.prepared) == (3, ())
    assert _state(tmp_path / "store") == voxels


def test_records_of_the_first_version_are_renewed_by_preparing_again(cohort, tmp_path):
    store = tmp_path / "store"
    prepare_store(cohort, store, _config())
    for path in (*store.glob("*.json"), *store.glob("cases/*.json")):
        content = json.loads(path.read_text())
        del content["records"], content["checksum"]
        first = "subject_id" if "subject_id" in content else "format"
        content = {first: content.pop(first, 1), **content}
        path.write_text(json.dumps(content))

    again = prepare_store(cohort, store, _config())

    assert len(again.kept) == 5
    for path in (*store.glob("*.json"), *store.glob("cases/*.json")):
        assert json.loads(path.read_text())["records"] == 2


def test_a_class_that_resampling_loses_is_an_error_and_a_large_change_a_note(tmp_path):
    voxels, labels = make_volume(1, 0, RULE)
    lonely = np.where(labels == 3, 1, labels)
    lonely[13, 11, 7] = 3
    for name, label in (("lost", lonely), ("kept", labels)):
        _write(tmp_path / f"in/imagesTr/{name}.nii.gz", voxels[0])
        _write(tmp_path / f"in/labelsTr/{name}.nii.gz", label)

    result = prepare_store(tmp_path / "in", tmp_path / "store", _config(spacing_mm=(4, 4, 6)))

    rows = {row.case_id: row for row in result.refused}
    assert rows["lost"].code == "lost-class"
    assert "label 3, 1 voxel(s)" in rows["lost"].reason
    assert "kept" not in rows or rows["kept"].code == "lost-class"


def test_a_large_change_of_a_class_is_noted():
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[4:13:2, 4:12, 4:12] = 1  # thin sheets
    labels[8:12, 4:12, 4:12] = 1
    random = np.random.default_rng(0)
    voxels = random.integers(100, 900, (1, 16, 16, 16)).astype(np.int16)
    origin = Origin((16, 16, 16), (0, 1, 2), (False,) * 3, np.eye(4), (16, 16, 16))
    volume = Volume(voxels, np.eye(4), origin=origin)

    case = prepare_volume(volume, VolumeRule(spacing_mm=(2.0, 1.0, 1.0)), labels, (0, 1))

    share = (case.labels == 1).sum() * 2 / (labels == 1).sum() - 1
    noted = [note.text for note in case.notes if note.code == "class-change"]
    assert bool(noted) == (abs(share) > 0.2)
    assert abs(share) > 0.2


@pytest.mark.parametrize("count", [1, 2])
def test_an_empty_volume_is_refused_by_name(count):
    origin = Origin((9, 8, 7), (0, 1, 2), (False,) * 3, np.eye(4), (9, 8, 7))
    volume = Volume(np.full((count, 9, 8, 7), -1000), np.eye(4), origin=origin)

    with pytest.raises(VolumeError, match="the body fills"):
        prepare_volume(volume, VolumeRule(("ct",) * count))


@pytest.mark.parametrize(
    "settings",
    [{"spacing_mm": (0, 1, 1)}, {"spacing_mm": (1, 1, float("nan"))}, {"window_hu": (5, 5)},
     {"clip_percentiles": (50, 10)}, {"body_margin_mm": -1.0}, {"validation_fraction": 1.0},
     {"workers": -1}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused_before_anything_is_read(tmp_path, settings):
    with pytest.raises(ConfigError, match=f"prepare.{next(iter(settings))}"):
        prepare_store(tmp_path, tmp_path / "store", _config(**settings))
    assert not (tmp_path / "store").exists()


# What a second run does


def test_a_second_run_keeps_everything_and_gives_the_same_store(cohort, tmp_path):
    prepare_store(cohort, tmp_path / "store", _config())
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "store/cases").iterdir()}

    again = prepare_store(cohort, tmp_path / "store", _config())

    assert again.prepared == ()
    assert len(again.kept) == 5
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "store/cases").iterdir()} == before


def test_a_store_is_renewed_exactly_where_content_or_preparation_changed(cohort, tmp_path):
    store = tmp_path / "store"
    prepare_store(cohort, store, _config())
    image = cohort / "imagesTr/phantom_001.nii.gz"

    # Another time, the same bytes: kept, and the sidecar renewed.
    sidecar = store / "cases/phantom_001.json"
    before = sidecar.read_bytes()
    os.utime(image, ns=(time.time_ns(), 1))
    assert prepare_store(cohort, store, _config()).prepared == ()
    assert sidecar.read_bytes() != before

    # Other bytes: that case alone.
    nib.save(nib.Nifti1Image(make_volume(9, 9, RULE)[0][0], nib.load(image).affine), image)
    assert prepare_store(cohort, store, _config()).prepared == ("phantom_001",)

    # Another label map.
    label = cohort / "labelsTr/phantom_002.nii.gz"
    nib.save(nib.Nifti1Image(make_volume(9, 9, RULE)[1], nib.load(label).affine), label)
    assert prepare_store(cohort, store, _config()).prepared == ("phantom_002",)

    # A label map taken away.
    content = json.loads((cohort / "dataset.json").read_text())
    del content["training"][2]["label"]
    (cohort / "dataset.json").write_text(json.dumps(content))
    assert prepare_store(cohort, store, _config()).prepared == ("phantom_002",)

    # Lists in another order, another list: nothing.
    content["validation"].append(content["training"].pop(0))
    content["training"].reverse()
    (cohort / "dataset.json").write_text(json.dumps(content))
    assert prepare_store(cohort, store, _config()).prepared == ()
    assert Store(store).part("phantom_000") == "validation"


@pytest.mark.parametrize(
    ("settings", "renews"),
    [({"spacing_mm": (2.0, 2.0, 3.0)}, True), ({"clip_percentiles": (1.0, 99.0)}, True),
     ({"crop_to_body": False}, True), ({"filter": "lzf"}, True), ({"modality": "other"}, True),
     ({"workers": 1}, False), ({"validation_fraction": 0.5}, False), ({"verify": True}, False),
     ({"keep_paths": True}, False)],
)  # fmt: skip
def test_settings_renew_the_store_only_if_they_change_a_case(cohort, tmp_path, settings, renews):
    prepare_store(cohort, tmp_path / "store", _config())

    again = prepare_store(cohort, tmp_path / "store", _config(**settings))

    assert len(again.prepared) == (5 if renews else 0)


def test_a_damaged_case_is_mended_by_a_run_that_verifies(cohort, tmp_path):
    prepare_store(cohort, tmp_path / "store", _config())
    before = _state(tmp_path / "store")
    path = tmp_path / "store/cases/phantom_001.h5"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    path.write_bytes(damaged)

    assert prepare_store(cohort, tmp_path / "store", _config(verify=True)).prepared == (
        "phantom_001",
    )
    assert _state(tmp_path / "store") == before
    path.unlink()
    assert prepare_store(cohort, tmp_path / "store", _config()).prepared == ("phantom_001",)
    assert _state(tmp_path / "store") == before


def test_an_interrupted_preparation_goes_on_and_ends_as_an_undisturbed_one(cohort, tmp_path):
    prepare_store(cohort, tmp_path / "whole", _config())

    class Interrupting(Silent):
        def progress(self, done: int, total: int, text: str) -> None:
            if done == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_store(cohort, tmp_path / "store", _config(), Interrupting())
    with pytest.raises(UserError, match="has not finished"):
        Store(tmp_path / "store")
    again = prepare_store(cohort, tmp_path / "store", _config(workers=2))

    assert len(again.kept) == 2
    assert len(again.prepared) == 3
    assert _state(tmp_path / "store") == _state(tmp_path / "whole")
    assert Store(tmp_path / "store").entries == Store(tmp_path / "whole").entries


def test_the_manifest_can_be_rebuilt_from_the_sidecars(cohort, tmp_path):
    prepare_store(cohort, tmp_path / "store", _config())
    names = ("manifest.json", "fingerprint.json", "quarantine.tsv")
    before = {name: (tmp_path / "store" / name).read_bytes() for name in names}
    for name in names:
        (tmp_path / "store" / name).unlink()

    rebuild(tmp_path / "store")

    assert {name: (tmp_path / "store" / name).read_bytes() for name in names} == before


def test_cases_that_left_the_source_leave_the_store_and_another_cohort_is_refused(cohort, tmp_path):
    prepare_store(cohort, tmp_path / "store", _config())
    content = json.loads((cohort / "dataset.json").read_text())
    content["training"] = content["training"][1:]
    (cohort / "dataset.json").write_text(json.dumps(content))
    recorder = _Recorder()

    prepare_store(cohort, tmp_path / "store", _config(), recorder)

    assert "phantom_000" not in Store(tmp_path / "store").cases
    assert not list((tmp_path / "store/cases").glob("phantom_000*"))
    assert any("no longer in the source" in warning for warning in recorder.warnings)
    _write(tmp_path / "other/x.nii.gz", make_volume(1, 0, RULE)[0][0])
    with pytest.raises(ConfigError, match="the store of another cohort"):
        prepare_store(tmp_path / "other", tmp_path / "store", _config())
    with pytest.raises(ConfigError, match="something else than a store"):
        prepare_store(tmp_path / "other", cohort, _config())


def test_two_preparations_of_one_store_at_once_make_one_whole_store(cohort, tmp_path):
    prepare_store(cohort, tmp_path / "alone", _config())
    script = textwrap.dedent(f"""
        from mim3d.config.verbs import PreparationConfig, PrepareConfig
        from mim3d.data.prepare import prepare_store
        prepare_store({str(cohort)!r}, {str(tmp_path / "store")!r},
                      PrepareConfig(prepare=PreparationConfig(workers=0)))
    """)
    root = Path(__file__).parents[2]

    both = [subprocess.Popen([sys.executable, "-c", script], cwd=root) for _ in range(2)]

    assert [process.wait(120) for process in both] == [0, 0]
    assert _state(tmp_path / "store") == _state(tmp_path / "alone")
    assert Store(tmp_path / "store").verify() == {}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_ends_with_one_sentence_and_leaves_older_files(cohort, tmp_path, workers):
    """A limit on the size of files stands for a full disk."""
    prepare_store(cohort, tmp_path / "store", _config())
    before = _state(tmp_path / "store")
    script = textwrap.dedent(f"""
        import resource
        from mim3d.config.verbs import PreparationConfig, PrepareConfig
        from mim3d.data.prepare import prepare_store
        from mim3d.foundation.errors import ResourceError
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        config = PrepareConfig(prepare=PreparationConfig(workers={workers}, crop_to_body=False))
        try:
            prepare_store({str(cohort)!r}, {str(tmp_path / "store")!r}, config)
        except ResourceError as error:
            print(error.what)
    """)

    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2],
                          capture_output=True, text=True, check=True)  # fmt: skip

    assert done.stdout.startswith("no room to write `phantom_000.h5`")
    assert _state(tmp_path / "store") == before
    assert issubclass(ResourceError, UserError)


# Privacy


def _bytes_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_no_name_of_a_folder_or_header_reaches_the_store(tmp_path):
    voxels, labels = make_volume(1, 0, RULE)
    for name in ("a", "b"):
        image = nib.Nifti1Image(voxels[0], np.diag([1.5, 1.2, 3, 1]))
        image.header["descrip"] = b"PLANTED^NAME"
        image.header["db_name"] = b"PLANTED"
        path = tmp_path / "PLANTED^NAME/imagesTr" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, path)
        _write(tmp_path / f"PLANTED^NAME/labelsTr/{name}.nii.gz", labels)
    (tmp_path / "PLANTED^NAME/imagesTr/b.nii.gz").write_bytes(b"nothing")

    result = prepare_store(tmp_path / "PLANTED^NAME", tmp_path / "store", _config())

    assert len(result.refused) == 1
    content = _bytes_below(tmp_path / "store")
    assert b"PLANTED" not in content
    assert str(tmp_path).encode() not in content
    kept = prepare_store(tmp_path / "PLANTED^NAME", tmp_path / "store", _config(keep_paths=True))
    assert kept.prepared == ()
    assert b"PLANTED" in _bytes_below(tmp_path / "store")


@pytest.mark.parametrize("case_ids", ["stem", "hashed"])
def test_a_reason_that_quotes_a_path_is_written_without_it(tmp_path, case_ids):
    path = tmp_path / "PLANTED/Smith.nii.gz"
    case = Case("id", "id", (path,), path.with_name("Doe.nii.gz"))
    config = PreparationConfig(case_ids=case_ids)
    work = Work(tmp_path / "store", config, ReadConfig(), None, None, {})

    row = refuse(case, work, "Doe.nii.gz", "c", f"`{path}` and {case.label} differ", f"mend {path}")

    written = _bytes_below(tmp_path / "store").decode()
    assert "PLANTED" not in written
    if case_ids == "hashed":
        assert row["file"] == "label"
        assert row["reason"] == "`image` and label differ"
        assert "Smith" not in written
    else:
        assert row["file"] == "Doe.nii.gz"
        assert row["reason"] == "`Smith.nii.gz` and Doe.nii.gz differ"


def test_hashed_ids_leave_no_stem_in_the_store(tmp_path):
    voxels, _ = make_volume(1, 0, RULE)
    for name in ("Smith_John", "Doe_Jane"):
        _write(tmp_path / f"in/{name}.nii.gz", voxels[0])
    (tmp_path / "in/Doe_Jane.nii.gz").write_bytes(b"nothing")

    result = prepare_store(tmp_path / "in", tmp_path / "store", _config(case_ids="hashed"))

    content = _bytes_below(tmp_path / "store")
    names = "".join(path.name for path in (tmp_path / "store").rglob("*"))
    assert (len(result.prepared), len(result.refused)) == (1, 1)
    for word in ("Smith", "John", "Doe", "Jane"):
        assert word.encode() not in content
        assert word not in names
    assert result.refused[0].file == "image"


# Real data


@pytest.mark.real_data
def test_both_kinds_of_hippocampus_files_give_comparable_volumes(shared, tmp_path):
    """uint8 to 255 and float32 to a million: after normalisation the tissue agrees."""
    cohort = read_cohort(shared / "data" / "hippocampus_msd")
    cohort = replace(cohort, cases=(*cohort.cases[:8], *cohort.cases[-4:]))

    result = prepare_store(cohort, tmp_path / "store", _config())

    store = Store(tmp_path / "store")
    assert result.exit_code == 0
    assert len(store.ids("validation")) == 4
    medians = []
    for case_id in store.cases:
        with store.open(case_id) as case:
            size = case.shape[1:]
            volume = case.read_normalised((0, 0, 0), size)
            labels = case.read((0, 0, 0), size)[1]
        assert set(np.unique(labels)) == {0, 1, 2}
        medians.append(np.median(volume[0][labels > 0]))
    assert np.ptp(medians) < 1.0


@pytest.mark.real_data
def test_four_contrasts_of_a_glioma_share_one_crop(shared, tmp_path):
    folder = shared / "data/samples/brain_tumour"
    names = ("t1", "t1ce", "t2", "flair")
    cells = ",".join(str(folder / f"case_{name}.nii.gz") for name in names)
    table = tmp_path / "c.csv"
    table.write_text(f"case,{','.join(f'image_{n}' for n in names)},label\n"
                     f"glioma,{cells},{folder / 'case_seg.nii.gz'}\n")  # fmt: skip

    prepare_store(table, tmp_path / "store", _config())

    store = Store(tmp_path / "store")
    assert store.classes.values == (0, 1, 2, 4)
    assert store.modality == "mr"
    with store.open("glioma") as case:
        # Skull-stripped, 120 x 120 x 77: the crop is the brain and a margin.
        assert np.prod(case.shape[1:]) < 0.5 * 120 * 120 * 77
        digest = hashlib.sha256(case.read((0, 0, 0), case.shape[1:])[1].tobytes()).hexdigest()
        total = sum(len(case.label_voxels(index)) > 0 for index in range(4))
    whole = np.asarray(nib.load(folder / "case_seg.nii.gz").dataobj)
    assert total == 4
    assert digest
    assert store.fingerprint["classes"][3]["ml"]["median"] == pytest.approx(
        (whole == 4).sum() * 8e-3
    )


def test_what_another_process_is_just_writing_is_left_alone(cohort, tmp_path):
    prepare_store(cohort, tmp_path / "store", _config())
    writing = temporary_name(tmp_path / "store/cases/phantom_000.json")
    writing.write_text("{")

    prepare_store(cohort, tmp_path / "store", _config())

    assert writing.exists()
    assert len(Store(tmp_path / "store").cases) == len(
        list((tmp_path / "store/cases").glob("*.h5"))
    )
