"""What a folder of scans holds, and a command that works."""

from __future__ import annotations

import json
import shlex

import nibabel as nib
import numpy as np
import pytest

from mim3d.cli.main import main
from mim3d.config.inspect import InspectConfig, InspectionConfig
from mim3d.config.read import ReadConfig
from mim3d.config.verbs import PreparationConfig
from mim3d.data.phantom import make_cohort
from mim3d.data.store import open_store
from mim3d.foundation.errors import ExitCode, UserError
from mim3d.foundation.reporting import Silent
from mim3d.workflows.inspect.inspect import inspect
from tests.data.files.making import dicom_folder, dicom_slice, scan
from tests.preparing import RULE, all_files, write_nifti

ONE = InspectConfig(inspect=InspectionConfig(tried=1), prepare=PreparationConfig(workers=0))
HEADERS = InspectConfig(inspect=InspectionConfig(tried=0))
SIDES = np.diag([1.5, 1.2, 3.0, 1.0])


def _inspect(path, config=ONE):
    return inspect(str(path), config=config, reporter=Silent())


def _voxels(seed=0, shape=(11, 13, 7)):
    return np.random.default_rng(seed).integers(-200, 900, shape).astype(np.int16)


def _run(command, capsys):
    """The printed command as a person would paste it; how it ended."""
    words = shlex.split(command)
    assert words[0] == "mim3d"
    code = main(words[1:])
    capsys.readouterr()
    return code, words[words.index("--out") + 1]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_counts_sizes_spacings_and_orientations_are_those_of_nibabel(here):
    rows = []
    for number, order in enumerate(("LPS", "RAS", "LPS", "PIR")):
        shape = (11 + number, 13, 7 + number)
        affine = np.diag([1.5, 1.2 + 0.1 * number, 3.0, 1.0])
        image = nib.Nifti1Image(_voxels(number, shape), affine)
        ornt = nib.orientations.ornt_transform(nib.io_orientation(affine),
                                               nib.orientations.axcodes2ornt(order))  # fmt: skip
        image = image.as_reoriented(ornt)
        assert "".join(nib.aff2axcodes(image.affine)) == order
        nib.save(image, here / f"case{number}.nii.gz")
        rows.append(nib.as_closest_canonical(image))

    facts = _inspect(here, HEADERS).facts

    (group,) = facts["groups"]
    assert (facts["cases"], group["volumes"]) == (4, 4)
    assert group["orientations"] == {"LPS": 2, "RAS": 1, "PIR": 1}
    shapes = np.array([row.shape for row in rows])
    spacings = np.array([row.header.get_zooms() for row in rows])
    for word, reduced in (("min", np.min), ("median", np.median), ("max", np.max)):
        assert group["shape"][word] == reduced(shapes, axis=0).tolist()
        assert group["spacing_mm"][word] == pytest.approx(reduced(spacings, axis=0).tolist())
    assert group["types"] == {"int16": 4}


def test_the_command_that_is_printed_works_and_the_estimate_is_near(here, capsys):
    make_cohort(here / "my cohort", training=3, validation=1, rule=RULE)
    before = all_files(here)

    result = inspect("my cohort", reporter=Silent())

    assert all_files(here) == before
    assert result.exit_code == ExitCode.DONE
    assert result.text.endswith("next:\n  mim3d prepare 'my cohort' --out stores/phantom_0")
    assert "MR, channel `MRI`: 4 volume(s)" in result.text
    assert "labels: background, organ 1, organ 2, tumour (named by the source)" in result.text
    assert "problems: none found" in result.text
    code, out = _run(result.facts["command"], capsys)
    assert code == ExitCode.DONE
    stored = sum(path.stat().st_size for path in (here / out / "cases").glob("*.h5"))
    assert result.facts["estimate"]["stored"] == pytest.approx(stored, rel=0.5)
    assert inspect("my cohort", reporter=Silent()).facts["command"].endswith("phantom_0_2")


def test_channels_on_two_grids_are_told_and_settled_by_the_command(here, capsys):
    for subject in "12":
        for contrast, shape in (("T1w", (11, 13, 7)), ("FLAIR", (22, 26, 14))):
            affine = SIDES if contrast == "T1w" else SIDES / [2, 2, 2, 1]
            name = f"bids/sub-{subject}/anat/sub-{subject}_{contrast}.nii.gz"
            write_nifti(here / name, _voxels(int(subject), shape), affine)

    result = inspect("bids", reporter=Silent())

    assert {p["code"] for p in result.facts["problems"]} == {"channel-grids"}
    assert "settled by the command below" in result.text
    assert [g["channel"] for g in result.facts["groups"]] == ["FLAIR", "T1w"]
    command = result.facts["command"]
    assert "--prepare.align_channels true" in command
    code, out = _run(command, capsys)
    assert code == ExitCode.DONE
    assert open_store(here / out).channels == 2


def test_label_maps_without_orientation_are_settled_by_the_command(here, capsys):
    affine = np.array([[-1.5, 0, 0, 9], [0, -1.2, 0, 3], [0, 0, 3, -2], [0, 0, 0, 1]])
    for number in range(2):
        write_nifti(here / f"s/images/c{number}.nii.gz", _voxels(number), affine)
        labels = (_voxels(number) % 2).astype(np.uint8)
        image = nib.Nifti1Image(labels, None)
        image.header.set_zooms((1.5, 1.2, 3))
        (here / "s/labels").mkdir(exist_ok=True)
        nib.save(image, here / f"s/labels/c{number}.nii.gz")

    result = inspect("s", reporter=Silent())

    assert {p["code"] for p in result.facts["problems"]} == {"label-no-orientation"}
    code, out = _run(result.facts["command"], capsys)
    assert code == ExitCode.DONE
    assert open_store(here / out).entry("c0").has_label


def test_what_is_wrong_with_single_cases_is_listed_by_kind(here):
    for number in range(4):
        write_nifti(here / f"s/images/c{number}.nii.gz", _voxels(number), SIDES)
        labels = (_voxels(number) % 3).astype(np.uint8)
        write_nifti(here / f"s/labels/c{number}.nii.gz", labels, SIDES)
    write_nifti(here / "s/labels/c0.nii.gz", np.zeros((11, 13, 8), np.uint8), SIDES)
    (here / "s/images/c1.nii.gz").write_bytes(b"<html>not found</html>")
    write_nifti(here / "s/images/c4.nii.gz", _voxels(7), np.diag([1.5, 1.2, 30.0, 1]))
    copied = (here / "s/images/c2.nii.gz").read_bytes()
    (here / "s/images/c5.nii.gz").write_bytes(copied)

    result = _inspect("s")

    found = {(p["case_id"], p["code"]) for p in result.facts["problems"]}
    assert found == {("c0", "grids-differ"), ("c1", "format"), ("c4", "odd-spacing"),
                     ("c5", "duplicate")}  # fmt: skip
    assert "11 x 13 x 7 voxels of 1.5 x 1.2 x 3 mm and 11 x 13 x 8 voxels" in result.text
    assert "bytes of an image of `c2`" in result.text
    assert result.exit_code == ExitCode.DONE


def test_what_only_voxels_show_is_found_by_the_cases_that_are_tried(here):
    for number in range(3):
        write_nifti(here / f"s/c{number}.nii.gz", np.full((11, 13, 7), 5, np.int16), SIDES)

    result = _inspect("s")

    assert result.exit_code == ExitCode.INPUT
    assert result.facts["command"] == ""
    assert {p["code"] for p in result.facts["problems"]} & {"constant", "empty-body"}
    assert "no case can be prepared" in result.text


def test_dicom_series_are_a_table_by_modality(here):
    dicom_folder(here / "scans/a", series="1.2.3")
    for k in range(3):
        raw = dicom_slice(scan((9, 8)).T, (0, 0, 2.5 * k), series="1.2.4")
        (here / f"scans/a/z{k}.dcm").write_bytes(raw)

    every = _inspect("scans")
    largest = _inspect("scans", InspectConfig(read=ReadConfig(series="largest")))

    assert every.facts["groups"][0]["modality"] == "ct"
    assert every.facts["cases"] == 2
    assert "a-series1: CT, 5 slice(s) of 9 x 8" in every.text
    assert largest.facts["cases"] == 1
    assert largest.facts["command"].endswith("--read.series largest")


def test_the_modality_of_files_that_do_not_say_it_comes_from_the_values_of_those_tried(here):
    for number in range(2):
        voxels = _voxels(number)
        voxels[:3] = -1000
        write_nifti(here / f"s/c{number}.nii.gz", voxels, SIDES)

    assert _inspect("s").facts["groups"][0]["modality"] == "ct"
    assert _inspect("s", HEADERS).facts["groups"][0]["modality"] == "unknown"


def test_a_folder_whose_labels_fit_no_image_is_described_all_the_same(here):
    write_nifti(here / "s/c0.nii.gz", _voxels(), SIDES)
    write_nifti(here / "s/other_seg.nii.gz", _voxels() % 2, SIDES)

    result = _inspect("s")

    assert result.exit_code == ExitCode.INPUT
    assert result.facts["groups"][0]["volumes"] == 1
    assert "problem `unpaired-label`, the source" in result.text
    assert result.facts["command"] == ""


def test_stores_and_runs_are_for_info(here):
    (here / "store/cases").mkdir(parents=True)
    (here / "store/manifest.json").write_text("{}")

    with pytest.raises(UserError, match="is a store") as caught:
        _inspect("store")

    assert "mim3d info" in caught.value.remedy


def test_the_facts_are_json_and_the_command_line_prints_the_text(here, capsys):
    make_cohort(here / "c", training=2, validation=0, rule=RULE)

    assert main(["inspect", "c", "--inspect.tried", "0", "--quiet"]) == ExitCode.DONE
    text = capsys.readouterr().out
    assert main(["inspect", "c", "--inspect.tried", "0", "--json", "--quiet"]) == ExitCode.DONE
    facts = json.loads(capsys.readouterr().out)["facts"]

    assert facts["command"] in text
    assert facts["cases"] == 2
