"""A store as nnU-Net takes it, and back."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from mim3d.config.export import ExportConfig
from mim3d.data.phantom import PhantomRule, make_cohort
from mim3d.data.prepare import prepare_store
from mim3d.data.store import open_store
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.reporting import Silent
from mim3d.workflows.export.export import export
from tests.preparing import RULE, config_with, write_nifti

NNUNET = ExportConfig(format="nnunet")
COLOURS = {"1": [1, 2, 3], "9": [200, 100, 0]}


def _export(store, out, **more):
    return export(str(store), out=str(out), config=NNUNET, reporter=Silent(), **more)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """A store with all kinds of cases: lists, subjects, some without labels."""
    folder = tmp_path_factory.mktemp("phantoms")
    source = make_cohort(folder / "source", training=2, validation=1, test=1, unlabelled=1,
                         rule=RULE, subjects=["a", "a", "b"])  # fmt: skip
    prepare_store(source, folder / "store", config_with())
    _export(folder / "store", folder / "Dataset001_Phantom")
    return folder


def _gapped(folder, scale=1.0):
    """Two channels, label values 0, 1, 9 and 200 to ignore; turned and anisotropic."""
    affine = np.array([[0.0, 1.2, 0, -5], [-1.5, 0, 0, 9], [0, 0, 3, 2], [0, 0, 0, 1]])
    voxels = np.arange(11 * 13 * 7).reshape(11, 13, 7)
    entries = []
    for number in range(3):
        images = []
        for channel in range(2):
            values = ((voxels * (number + 2) + 31 * channel) % 911 - 300) * scale
            kind = {1.0: np.int16, 70.0: np.int32}.get(scale, np.float32)
            images.append(f"imagesTr/c{number}_{channel:04d}.nii.gz")
            write_nifti(folder / images[-1], values.astype(kind), affine)
        labels = np.array([0, 1, 9, 200], np.uint8)[(voxels // 50 + number) % 4]
        write_nifti(folder / f"labelsTr/c{number}.nii.gz", labels, affine)
        entries.append({"image": images, "label": f"labelsTr/c{number}.nii.gz"})
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "name": "gaps",
                "modality": ["T1w", "FLAIR"],
                "labels": {"background": 0, "organ": 1, "cyst": 9, "ignore": 200},
                "colours": COLOURS,
                "training": entries[:2],
                "validation": entries[2:],
            }
        )
    )
    return folder


def _all(store, case_id):
    with store.open(case_id) as case:
        voxels, labels = case.read((0, 0, 0), case.shape[1:])
        own = case.read_intensities((0, 0, 0), case.shape[1:])
        return voxels, labels, own, case.affine, case.scaling(), case.normalisation


def test_prepared_again_the_export_gives_the_same_store(phantoms):
    prepare_store(phantoms / "Dataset001_Phantom", phantoms / "again", config_with())

    one, other = open_store(phantoms / "store"), open_store(phantoms / "again")
    assert other.cases == one.cases
    assert other.classes == one.classes
    assert (other.name, other.channel_names) == (one.name, one.channel_names)
    for case_id in one.cases:
        mine, theirs = _all(one, case_id), _all(other, case_id)
        assert (mine[0] == theirs[0]).all()
        assert (mine[1] is None) == (theirs[1] is None)
        assert mine[1] is None or (mine[1] == theirs[1]).all()
        assert np.array_equal(mine[3], theirs[3])
        assert (other.part(case_id), other.subject(case_id)) == (
            one.part(case_id), one.subject(case_id)
        )  # fmt: skip


@pytest.mark.parametrize("scale", [1.0, 70.0, 0.013])
def test_labels_with_gaps_and_one_to_ignore_are_counted_and_come_back(tmp_path, scale):
    source = _gapped(tmp_path / "source", scale)
    prepare_store(source, tmp_path / "store", config_with(crop_to_body=False))

    result = _export(tmp_path / "store", tmp_path / "Dataset002_Gaps")
    prepare_store(tmp_path / "Dataset002_Gaps", tmp_path / "again", config_with(crop_to_body=False))

    assert "9 is 2" in result.text
    one, other = open_store(tmp_path / "store"), open_store(tmp_path / "again")
    assert other.classes.values == (0, 1, 2)
    assert (other.classes.names, other.classes.colours) == (one.classes.names, one.classes.colours)
    assert one.classes.colours[1:] == ((1, 2, 3), (200, 100, 0))
    assert other.classes.ignore_value == 3
    assert other.channel_names == ("T1w", "FLAIR")
    for case_id in one.cases:
        mine, theirs = _all(one, case_id), _all(other, case_id)
        assert (mine[1] == theirs[1]).all()
        assert 255 in mine[1]
        # float32 of a number of 16 bits gives the number back.
        assert (mine[0] == theirs[0]).all()
        assert np.allclose(mine[2], theirs[2], rtol=1e-6)
        assert np.allclose(mine[3], theirs[3], atol=1e-5)


def test_the_files_are_those_of_nnunet_to_nibabel_and_simpleitk(tmp_path):
    source = _gapped(tmp_path / "source")
    prepare_store(source, tmp_path / "store", config_with(crop_to_body=False))

    _export(tmp_path / "store", tmp_path / "Dataset002_Gaps")

    out = tmp_path / "Dataset002_Gaps"
    said = json.loads((out / "dataset.json").read_text())
    assert said["channel_names"] == {"0": "T1w", "1": "FLAIR"}
    assert said["labels"] == {"background": 0, "organ": 1, "cyst": 2, "ignore": 3}
    assert (said["numTraining"], said["file_ending"]) == (3, ".nii.gz")
    assert json.loads((out / "splits_final.json").read_text()) == [
        {"train": ["c0", "c1"], "val": ["c2"]}
    ]
    for number in range(3):
        for channel in range(2):
            name = f"imagesTr/c{number}_{channel:04d}.nii.gz"
            ours = nib.as_closest_canonical(nib.load(out / name))
            theirs = nib.as_closest_canonical(nib.load(source / name))
            assert np.array_equal(ours.get_fdata(), theirs.get_fdata())
            assert np.allclose(ours.affine, theirs.affine, atol=1e-5)
            assert ours.get_data_dtype() == np.int16
        image = SimpleITK.ReadImage(str(out / f"imagesTr/c{number}_0000.nii.gz"))
        label = SimpleITK.ReadImage(str(out / f"labelsTr/c{number}.nii.gz"))
        assert image.GetOrigin() == label.GetOrigin()
        assert image.GetDirection() == label.GetDirection()
        stored = nib.as_closest_canonical(nib.load(source / f"labelsTr/c{number}.nii.gz"))
        table = np.zeros(256)
        table[[1, 9, 200]] = 1, 2, 3
        found = SimpleITK.GetArrayFromImage(label).transpose()
        assert np.array_equal(found, table[np.asarray(stored.dataobj)])


def test_cases_without_labels_and_those_of_the_test_list_are_no_training_cases(phantoms):
    out = phantoms / "Dataset001_Phantom"
    names = {f.name: sorted(p.name for p in f.iterdir()) for f in out.iterdir() if f.is_dir()}

    trained = ["phantom_000", "phantom_001", "phantom_003"]
    assert names["imagesTr"] == [f"{name}_0000.nii.gz" for name in trained]
    assert names["labelsTr"] == [f"{name}.nii.gz" for name in trained]
    assert names["imagesTs"] == ["phantom_002_0000.nii.gz", "phantom_004_0000.nii.gz"]
    assert "labelsTs" not in names


def test_ct_is_called_ct_as_nnunet_normalises_by_that_word(tmp_path):
    rule = PhantomRule(shape=(27, 23, 14), organs=1, modality="ct")
    make_cohort(tmp_path / "source", training=1, validation=1, rule=rule)
    prepare_store(tmp_path / "source", tmp_path / "store", config_with())

    _export(tmp_path / "store", tmp_path / "Dataset003_CT")

    said = json.loads((tmp_path / "Dataset003_CT" / "dataset.json").read_text())
    assert said["channel_names"] == {"0": "CT"}


def test_a_dry_run_writes_nothing_and_a_name_nnunet_does_not_find_is_said(phantoms, tmp_path):
    result = _export(phantoms / "store", tmp_path / "mine", dry_run=True)

    assert "Dataset123_Name" in result.text
    assert not (tmp_path / "mine").exists()


def test_what_stands_there_stays_unless_it_is_an_export_that_may_go(phantoms, tmp_path):
    out = tmp_path / "Dataset001_X"
    _export(phantoms / "store", out)

    with pytest.raises(ConfigError, match="there already"):
        _export(phantoms / "store", out)
    _export(phantoms / "store", out, overwrite=True)
    for name in ("thesis.txt", "imagesTs/patient_0000.nii.gz"):
        (out / name).write_text("mine")
        with pytest.raises(ConfigError, match="is no export of `mim3d`"):
            _export(phantoms / "store", out, overwrite=True)
        assert (out / name).read_text() == "mine"
        (out / name).unlink()
    _export(phantoms / "store", out, overwrite=True)


def test_a_raw_data_set_that_was_not_exported_is_never_replaced(phantoms, tmp_path):
    """Tried with folders taken for ours by their names: the originals were removed."""
    out = tmp_path / "Dataset001_X"
    (out / "imagesTr").mkdir(parents=True)
    (out / "imagesTr" / "a_0000.nii.gz").write_text("original")
    for description in (None, '{"channel_names": {"0": "CT"}}'):
        if description is not None:
            (out / "dataset.json").write_text(description)
        for overwrite in (False, True):
            with pytest.raises(ConfigError, match="is no export of `mim3d`") as caught:
                _export(phantoms / "store", out, overwrite=overwrite)
            assert caught.value.remedy == "choose another --out"

    assert (out / "imagesTr" / "a_0000.nii.gz").read_text() == "original"


def test_an_export_that_fails_leaves_the_earlier_one(phantoms, tmp_path, monkeypatch):
    out = tmp_path / "Dataset001_X"
    _export(phantoms / "store", out)
    before = sorted(path.name for path in out.rglob("*"))
    monkeypatch.setattr("mim3d.workflows.export.store._split", lambda *_: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        _export(phantoms / "store", out, overwrite=True)

    assert sorted(path.name for path in out.rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_store_without_labels_is_refused(tmp_path):
    write_nifti(tmp_path / "scans" / "a.nii.gz", np.arange(11 * 13 * 7.0).reshape(11, 13, 7))
    prepare_store(tmp_path / "scans", tmp_path / "store", config_with())

    with pytest.raises(UserError, match="labels"):
        _export(tmp_path / "store", tmp_path / "out")


@pytest.mark.parametrize("broken", [[], {"cases": 3}, {"cases": {"phantom_000": {"list": "x"}}}])
def test_our_part_of_the_description_is_refused_where_it_is_damaged(phantoms, tmp_path, broken):
    _export(phantoms / "store", tmp_path / "Dataset001_X")
    path = tmp_path / "Dataset001_X" / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "mim3d": broken}))

    with pytest.raises(UserError, match="mim3d"):
        prepare_store(path, tmp_path / "again", config_with())
