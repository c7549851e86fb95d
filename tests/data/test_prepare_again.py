"""What a second preparation of a store does, or one that was interrupted."""

from __future__ import annotations

import json
import os
import resource
import time

import nibabel as nib
import pytest
from preparing import RULE, Recorder, config_with, voxel_files, write_nifti

from mim3d.data.phantom import make_volume
from mim3d.data.prepare import prepare_store, rebuild
from mim3d.data.store import Store
from mim3d.foundation.atomic import temporary_name
from mim3d.foundation.errors import ConfigError, ResourceError, UserError
from mim3d.foundation.reporting import Silent
from tests.reliability.killing import Child, Say, life

# What a second run does


def test_a_second_run_keeps_everything_and_gives_the_same_store(cohort, tmp_path):
    prepare_store(cohort, tmp_path / "store", config_with())
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "store/cases").iterdir()}

    again = prepare_store(cohort, tmp_path / "store", config_with())

    assert again.prepared == ()
    assert len(again.kept) == 5
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "store/cases").iterdir()} == before


def test_a_store_is_renewed_exactly_where_content_or_preparation_changed(cohort, tmp_path):
    store = tmp_path / "store"
    prepare_store(cohort, store, config_with())
    image = cohort / "imagesTr/phantom_001.nii.gz"

    # Another time, the same bytes: kept, and the sidecar renewed.
    sidecar = store / "cases/phantom_001.json"
    before = sidecar.read_bytes()
    os.utime(image, ns=(time.time_ns(), 1))
    assert prepare_store(cohort, store, config_with()).prepared == ()
    assert sidecar.read_bytes() != before

    # Other bytes: that case alone.
    nib.save(nib.Nifti1Image(make_volume(9, 9, RULE)[0][0], nib.load(image).affine), image)
    assert prepare_store(cohort, store, config_with()).prepared == ("phantom_001",)

    # Another label map.
    label = cohort / "labelsTr/phantom_002.nii.gz"
    nib.save(nib.Nifti1Image(make_volume(9, 9, RULE)[1], nib.load(label).affine), label)
    assert prepare_store(cohort, store, config_with()).prepared == ("phantom_002",)

    # A label map taken away.
    content = json.loads((cohort / "dataset.json").read_text())
    del content["training"][2]["label"]
    (cohort / "dataset.json").write_text(json.dumps(content))
    assert prepare_store(cohort, store, config_with()).prepared == ("phantom_002",)

    # Lists in another order, another list: nothing.
    content["validation"].append(content["training"].pop(0))
    content["training"].reverse()
    (cohort / "dataset.json").write_text(json.dumps(content))
    assert prepare_store(cohort, store, config_with()).prepared == ()
    assert Store(store).part("phantom_000") == "validation"


@pytest.mark.parametrize(
    ("settings", "renews"),
    [({"spacing_mm": (2.0, 2.0, 3.0)}, True), ({"clip_percentiles": (1.0, 99.0)}, True),
     ({"crop_to_body": False}, True), ({"filter": "lzf"}, True), ({"modality": "other"}, True),
     ({"workers": 1}, False), ({"validation_fraction": 0.5}, False), ({"verify": True}, False),
     ({"keep_paths": True}, False)],
)  # fmt: skip
def test_settings_renew_the_store_only_if_they_change_a_case(cohort, tmp_path, settings, renews):
    prepare_store(cohort, tmp_path / "store", config_with())

    again = prepare_store(cohort, tmp_path / "store", config_with(**settings))

    assert len(again.prepared) == (5 if renews else 0)


def test_a_damaged_case_is_mended_by_a_run_that_verifies(cohort, tmp_path):
    prepare_store(cohort, tmp_path / "store", config_with())
    before = voxel_files(tmp_path / "store")
    path = tmp_path / "store/cases/phantom_001.h5"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    path.write_bytes(damaged)

    assert prepare_store(cohort, tmp_path / "store", config_with(verify=True)).prepared == (
        "phantom_001",
    )
    assert voxel_files(tmp_path / "store") == before
    path.unlink()
    assert prepare_store(cohort, tmp_path / "store", config_with()).prepared == ("phantom_001",)
    assert voxel_files(tmp_path / "store") == before


def test_an_interrupted_preparation_goes_on_and_ends_as_an_undisturbed_one(cohort, tmp_path):
    prepare_store(cohort, tmp_path / "whole", config_with())

    class Interrupting(Silent):
        def progress(self, done: int, total: int, text: str) -> None:
            if done == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_store(cohort, tmp_path / "store", config_with(), Interrupting())
    with pytest.raises(UserError, match="has not finished"):
        Store(tmp_path / "store")
    again = prepare_store(cohort, tmp_path / "store", config_with(workers=2))

    assert len(again.kept) == 2
    assert len(again.prepared) == 3
    assert voxel_files(tmp_path / "store") == voxel_files(tmp_path / "whole")
    assert Store(tmp_path / "store").entries == Store(tmp_path / "whole").entries


def test_the_manifest_can_be_rebuilt_from_the_sidecars(cohort, tmp_path):
    prepare_store(cohort, tmp_path / "store", config_with())
    names = ("manifest.json", "fingerprint.json", "quarantine.tsv")
    before = {name: (tmp_path / "store" / name).read_bytes() for name in names}
    for name in names:
        (tmp_path / "store" / name).unlink()

    rebuild(tmp_path / "store")

    assert {name: (tmp_path / "store" / name).read_bytes() for name in names} == before


def test_cases_that_left_the_source_leave_the_store_and_another_cohort_is_refused(cohort, tmp_path):
    prepare_store(cohort, tmp_path / "store", config_with())
    content = json.loads((cohort / "dataset.json").read_text())
    content["training"] = content["training"][1:]
    (cohort / "dataset.json").write_text(json.dumps(content))
    recorder = Recorder()

    prepare_store(cohort, tmp_path / "store", config_with(), recorder)

    assert "phantom_000" not in Store(tmp_path / "store").cases
    assert not list((tmp_path / "store/cases").glob("phantom_000*"))
    assert any("no longer in the source" in warning for warning in recorder.warnings)
    write_nifti(tmp_path / "other/x.nii.gz", make_volume(1, 0, RULE)[0][0])
    with pytest.raises(ConfigError, match="the store of another cohort"):
        prepare_store(tmp_path / "other", tmp_path / "store", config_with())
    with pytest.raises(ConfigError, match="something else than a store"):
        prepare_store(tmp_path / "other", cohort, config_with())


def test_two_preparations_of_one_store_at_once_make_one_whole_store(cohort, tmp_path):
    prepare_store(cohort, tmp_path / "alone", config_with())

    both = [
        Child(lambda say: prepare_store(cohort, tmp_path / "store", config_with()))
        for _ in range(2)
    ]
    lives = [child.wait() for child in both]

    assert [(one.fault, one.signal) for one in lives] == [(None, None)] * 2
    assert voxel_files(tmp_path / "store") == voxel_files(tmp_path / "alone")
    assert Store(tmp_path / "store").verify() == {}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_ends_with_one_sentence_and_leaves_older_files(cohort, tmp_path, workers):
    """A limit on the size of files stands for a full disk."""
    prepare_store(cohort, tmp_path / "store", config_with())
    before = voxel_files(tmp_path / "store")

    def work(say: Say) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
        try:
            prepare_store(
                cohort, tmp_path / "store", config_with(workers=workers, crop_to_body=False)
            )
        except ResourceError as error:
            say(error.what)

    found = life(work)

    assert found.fault is None
    assert found.said[-1].startswith("no room to write `phantom_000.h5`")
    assert voxel_files(tmp_path / "store") == before
    assert issubclass(ResourceError, UserError)


def test_what_another_process_is_just_writing_is_left_alone(cohort, tmp_path):
    prepare_store(cohort, tmp_path / "store", config_with())
    writing = temporary_name(tmp_path / "store/cases/phantom_000.json")
    writing.write_text("{")

    prepare_store(cohort, tmp_path / "store", config_with())

    assert writing.exists()
    assert len(Store(tmp_path / "store").cases) == len(
        list((tmp_path / "store/cases").glob("*.h5"))
    )
