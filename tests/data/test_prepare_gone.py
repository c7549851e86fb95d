"""A source that is gone, damaged or changed when a store is prepared again."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from preparing import PLANTED, RULE, all_files, config_with, quarantine, voxel_files, write_nifti

from mim3d.data.files.reading import read_volume
from mim3d.data.phantom import make_volume
from mim3d.data.prepare import prepare_store
from mim3d.data.prepare.volume import prepare_volume
from mim3d.data.store import Store
from mim3d.foundation.errors import UserError
from mim3d.workflows.run_record import rule_of

# A source that is gone for a moment


@pytest.mark.parametrize("gone", ["images", "labels", "one"])
@pytest.mark.parametrize("modality", ["auto", "mr"])
def test_a_source_that_vanished_and_came_back_costs_nothing(cohort, tmp_path, gone, modality):
    """Nothing is lost, and nothing is prepared twice."""
    store = tmp_path / "store"
    prepare_store(cohort, store, config_with(modality=modality))
    before, voxels = all_files(store), voxel_files(store)
    victims = {
        "images": list(cohort.glob("images*")),
        "labels": [cohort / "labelsTr"],
        "one": [cohort / "imagesTr/phantom_001.nii.gz"],
    }[gone]
    for item in victims:
        item.rename(tmp_path / item.name)

    if gone == "images":
        with pytest.raises(UserError, match="the store stays as it is") as caught:
            prepare_store(cohort, store, config_with(modality=modality))
        assert caught.value.exit_code == 3
        assert all_files(store) == before
    else:
        away = prepare_store(cohort, store, config_with(modality=modality))
        assert away.exit_code == 4
        assert away.prepared == ()
        rows = quarantine(store)
        assert {row["code"] for row in rows.values()} == {"missing-file"}
        assert {r.case_id for r in away.refused} == set(rows)
        assert len(rows) + len(away.kept) == 5
        assert "stays" in rows["phantom_001"]["reason"]
    assert voxel_files(store) == voxels
    assert len(Store(store).cases) == 5

    for item in victims:
        (tmp_path / item.name).rename(item)
    back = prepare_store(cohort, store, config_with(modality=modality))
    assert (len(back.kept), back.prepared, back.refused) == (5, (), ())
    assert voxel_files(store) == voxels
    assert quarantine(store) == {}
    if gone != "one":  # a file that was moved has another time of change
        assert all_files(store) == before


def test_a_reader_that_died_over_a_changed_source_leaves_the_older_case(
    cohort, tmp_path, monkeypatch
):
    store = tmp_path / "store"
    prepare_store(cohort, store, config_with())
    voxels = voxel_files(store)
    for path in cohort.glob("imagesTr/*.nii.gz"):
        image = nib.load(path)
        array = np.asarray(image.dataobj).copy()
        array[5, 5, 5] += 1
        write_nifti(path, array, image.affine)
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted/sitecustomize.py").write_text(PLANTED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "planted"))

    result = prepare_store(cohort, store, config_with(workers=2))

    rows = {row.case_id: row.code for row in result.refused}
    assert rows == {
        "phantom_000": "reader-died", "phantom_001": "reader-died", "phantom_002": "memory",
        "phantom_003": "bug",
    }  # fmt: skip
    assert result.exit_code == 4
    assert set(Store(store).cases) == {f"phantom_00{n}" for n in (0, 1, 2, 4)}
    assert all(
        voxel_files(store)[f"phantom_00{n}.h5"] == voxels[f"phantom_00{n}.h5"] for n in range(3)
    )

    monkeypatch.delenv("PYTHONPATH")
    mended = prepare_store(cohort, store, config_with())
    assert mended.refused == ()
    assert {"phantom_000", "phantom_001", "phantom_002"} <= set(mended.prepared)


def test_what_was_prepared_with_other_settings_does_not_stay(cohort, tmp_path):
    """A store is never a mixture of two preparations."""
    prepare_store(cohort, tmp_path / "store", config_with(modality="mr"))
    (cohort / "imagesTr/phantom_001.nii.gz").unlink()

    result = prepare_store(
        cohort, tmp_path / "store", config_with(modality="mr", spacing_mm=(2, 2, 3))
    )

    assert [row.case_id for row in result.refused] == ["phantom_001"]
    assert "phantom_001" not in Store(tmp_path / "store").cases


@pytest.mark.parametrize("damage", ["cut", "flipped", "later format", "later records", "gone"])
def test_a_manifest_that_cannot_be_used_is_mended_by_preparing_again(cohort, tmp_path, damage):
    store = tmp_path / "store"
    prepare_store(cohort, store, config_with())
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

    again = prepare_store(cohort, store, config_with())

    assert (len(again.kept), again.prepared, again.refused) == (5, (), ())
    assert path.read_bytes() == whole


@pytest.fixture
def of_both_modalities(tmp_path):
    """A folder `in` with a CT and two that are none, and the `store` of it."""
    hounsfield = np.random.default_rng(1).integers(-1000, 900, (24, 22, 20)).astype(np.int16)
    write_nifti(tmp_path / "in/ct.nii.gz", hounsfield)
    for name in ("mr_1", "mr_2"):
        write_nifti(tmp_path / f"in/{name}.nii.gz", make_volume(1, 0, RULE)[0][0])
    prepare_store(tmp_path / "in", tmp_path / "store", config_with())


def test_a_cohort_of_both_modalities_is_kept_by_a_second_run(of_both_modalities, tmp_path):
    """What was decided case by case is not decided anew by what most cases are."""
    voxels = voxel_files(tmp_path / "store")

    again = prepare_store(tmp_path / "in", tmp_path / "store", config_with())

    assert (len(again.kept), again.prepared) == (3, ())
    assert voxel_files(tmp_path / "store") == voxels


def test_a_volume_is_taken_as_the_cases_of_a_cohort_of_both_modalities_were(
    of_both_modalities, tmp_path
):
    """Most are MR here: a CT must not be normalised as one by whoever goes by the store."""
    store = Store(tmp_path / "store")
    record = {"preparation": store.preparation, "modalities": list(store.modalities)}

    rule = rule_of(None, json.loads(json.dumps(record)), "run")

    kinds = {name: store.modalities_of(name) for name in ("ct", "mr_1", "mr_2")}
    assert kinds == {"ct": ("ct",), "mr_1": ("other",), "mr_2": ("other",)}
    assert store.modalities == ("other",)
    for name, kind in kinds.items():
        found = prepare_volume(read_volume(tmp_path / f"in/{name}.nii.gz"), rule, case_id=name)
        sidecar = json.loads((tmp_path / f"store/cases/{name}.json").read_text())
        assert found.facts["modalities"] == list(kind)
        assert found.facts == sidecar["facts"]


def test_records_of_the_first_version_are_renewed_by_preparing_again(cohort, tmp_path):
    store = tmp_path / "store"
    prepare_store(cohort, store, config_with())
    for path in (*store.glob("*.json"), *store.glob("cases/*.json")):
        content = json.loads(path.read_text())
        del content["records"], content["checksum"]
        first = "subject_id" if "subject_id" in content else "format"
        content = {first: content.pop(first, 1), **content}
        path.write_text(json.dumps(content))

    again = prepare_store(cohort, store, config_with())

    assert len(again.kept) == 5
    for path in (*store.glob("*.json"), *store.glob("cases/*.json")):
        assert json.loads(path.read_text())["records"] == 2
