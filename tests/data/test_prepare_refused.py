"""What is refused on the way into a store, and what of names and paths is written down."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from preparing import PLANTED, RULE, Recorder, config_with, quarantine, write_nifti

from mim3d.config.read import ReadConfig
from mim3d.config.verbs import PreparationConfig
from mim3d.data.cohort import Case
from mim3d.data.phantom import make_volume
from mim3d.data.prepare import VolumeRule, prepare_store, prepare_volume
from mim3d.data.prepare.job import Work, refuse
from mim3d.data.store import Store
from mim3d.data.volume import Origin, Volume
from mim3d.foundation.errors import ConfigError, UserError, VolumeError

# What is refused


def _bad_cases(folder: Path) -> dict[str, str]:
    """A cohort of one good case and one of each bad kind; case id to the code expected."""
    voxels, labels = make_volume(1, 0, RULE)
    entries = []

    def add(name: str, image: np.ndarray, label: np.ndarray = labels, affine=None) -> None:
        write_nifti(folder / f"imagesTr/{name}.nii.gz", image)
        write_nifti(folder / f"labelsTr/{name}.nii.gz", label, affine)
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

    result = prepare_store(tmp_path / "in", tmp_path / "store", config_with(workers=workers))

    rows = quarantine(tmp_path / "store")
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
    first = prepare_store(cohort, tmp_path / "store", config_with())
    assert [r.case_id for r in first.refused] == ["phantom_001"]

    image.write_bytes(whole)
    second = prepare_store(cohort, tmp_path / "store", config_with())
    assert second.prepared == ("phantom_001",)
    assert second.refused == ()

    image.write_bytes(whole[:-300])
    third = prepare_store(cohort, tmp_path / "store", config_with())
    assert [r.case_id for r in third.refused] == ["phantom_001"]
    assert "phantom_001" not in Store(tmp_path / "store").cases


def test_a_cohort_of_which_nothing_can_be_used_ends_with_code_3(tmp_path):
    write_nifti(tmp_path / "in/a.nii.gz", np.full((9, 8, 7), 3, np.int16))

    result = prepare_store(tmp_path / "in", tmp_path / "store", config_with())

    assert result.exit_code == 3
    with pytest.raises(UserError, match="not a store"):
        Store(tmp_path / "store")


def test_a_reader_that_dies_costs_one_case_and_no_other(cohort, tmp_path, monkeypatch):
    """Planted readers that segfault, exit, eat memory, and have a bug."""
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted/sitecustomize.py").write_text(PLANTED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "planted"))
    recorder = Recorder()

    result = prepare_store(cohort, tmp_path / "store", config_with(workers=2), recorder)

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

    result = prepare_store(cohort, tmp_path / "store", config_with(workers=1))

    assert "did not end within" in {r.case_id: r.reason for r in result.refused}["phantom_000"]
    assert result.prepared == ("phantom_004",)


def test_a_class_that_resampling_loses_is_an_error_and_a_large_change_a_note(tmp_path):
    voxels, labels = make_volume(1, 0, RULE)
    lonely = np.where(labels == 3, 1, labels)
    lonely[13, 11, 7] = 3
    for name, label in (("lost", lonely), ("kept", labels)):
        write_nifti(tmp_path / f"in/imagesTr/{name}.nii.gz", voxels[0])
        write_nifti(tmp_path / f"in/labelsTr/{name}.nii.gz", label)

    result = prepare_store(tmp_path / "in", tmp_path / "store", config_with(spacing_mm=(4, 4, 6)))

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
     {"workers": -1}, {"window_hu": (float("nan"), 5.0)}, {"distance_mm": float("inf")}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused_before_anything_is_read(tmp_path, settings):
    with pytest.raises(ConfigError, match=f"prepare.{next(iter(settings))}"):
        prepare_store(tmp_path, tmp_path / "store", config_with(**settings))
    assert not (tmp_path / "store").exists()


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
        write_nifti(tmp_path / f"PLANTED^NAME/labelsTr/{name}.nii.gz", labels)
    (tmp_path / "PLANTED^NAME/imagesTr/b.nii.gz").write_bytes(b"nothing")

    result = prepare_store(tmp_path / "PLANTED^NAME", tmp_path / "store", config_with())

    assert len(result.refused) == 1
    content = _bytes_below(tmp_path / "store")
    assert b"PLANTED" not in content
    assert str(tmp_path).encode() not in content
    kept = prepare_store(
        tmp_path / "PLANTED^NAME", tmp_path / "store", config_with(keep_paths=True)
    )
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
        write_nifti(tmp_path / f"in/{name}.nii.gz", voxels[0])
    (tmp_path / "in/Doe_Jane.nii.gz").write_bytes(b"nothing")

    result = prepare_store(tmp_path / "in", tmp_path / "store", config_with(case_ids="hashed"))

    content = _bytes_below(tmp_path / "store")
    names = "".join(path.name for path in (tmp_path / "store").rglob("*"))
    assert (len(result.prepared), len(result.refused)) == (1, 1)
    for word in ("Smith", "John", "Doe", "Jane"):
        assert word.encode() not in content
        assert word not in names
    assert result.refused[0].file == "image"
