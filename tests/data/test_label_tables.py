"""Names and colours of labels, out of the files of other programs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mim3d.data.classes import ClassTable
from mim3d.data.cohort import read_cohort, without_class
from mim3d.data.files import read_volume
from mim3d.data.files.segments import write_segmentation
from mim3d.data.label_tables import read_label_table
from mim3d.foundation.errors import UserError
from mim3d.inference.label_files import write_label_files
from tests.preparing import write_nifti

CLASSES = ClassTable.from_values(
    [0, 3, 7], {3: "left lung", 7: "cyst"}, colours={3: (10, 20, 30), 7: (200, 0, 255)}
)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_predict_writes_beside_predictions_is_read_again(tmp_path, place):
    path = write_label_files(tmp_path, CLASSES)[place]

    assert read_label_table(path).as_classes() == CLASSES


def test_the_value_to_ignore_is_read_from_labels_json(tmp_path):
    table = ClassTable.from_values([0, 1], {1: "organ"}, ignore_value=9)

    path = write_label_files(tmp_path, table)[0]

    assert read_label_table(path).as_classes() == table


def test_a_table_of_freesurfer_and_one_of_bids_are_read(tmp_path):
    (tmp_path / "lut.txt").write_text(
        "#No. Label Name:   R G B A\n0 Unknown 0 0 0 0\n17 Left-Hippocampus 220 216 20 0\n"
    )
    (tmp_path / "x_dseg.tsv").write_text(
        "index\tname\tcolor\n17\tLeft hippocampus\t#DCD814\n53\tRight\tn/a\n"
    )

    freesurfer = read_label_table(tmp_path / "lut.txt")
    bids = read_label_table(tmp_path / "x_dseg.tsv")

    assert freesurfer.names == {0: "background", 17: "Left-Hippocampus"}
    assert freesurfer.colours == {17: (220, 216, 20)}
    assert bids.names == {17: "Left hippocampus", 53: "Right"}
    assert bids.colours == {17: (220, 216, 20)}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.ctbl", "1 organ 1 2\n"),
        ("labels.ctbl", "1 a 1 2 3 255\n1 b 1 2 3 255\n"),
        ("labels.ctbl", "99999999 a 1 2 3 255\n"),
        ("labels.ctbl", ""),
        ("labels.json", "{"),
        ("labels.json", '{"classes": [{"value": "x", "name": "a"}]}'),
        ("labels.json", '{"classes": [{"value": 1, "name": "a"}, {"value": 2}]}'),
        ("dseg.tsv", "number\tname\n1\ta\n"),
        ("dseg.tsv", "index\tname\none\ta\n"),
    ],
)
def test_a_file_that_is_no_table_is_refused_by_name(tmp_path, name, text):
    (tmp_path / name).write_text(text)

    with pytest.raises(UserError, match=name) as caught:
        read_label_table(tmp_path / name)

    assert caught.value.code == "label-table"


# In a cohort


def _pair(folder, name="a", values=(0, 3, 7)):
    voxels = np.arange(11 * 13 * 7).reshape(11, 13, 7)
    write_nifti(folder / "images" / f"{name}.nii.gz", voxels.astype(np.int16))
    labels = np.array(values, np.uint8)[voxels % len(values)]
    write_nifti(folder / "labels" / f"{name}.nii.gz", labels)
    return labels


@pytest.mark.parametrize("where", ["labels", "."])
def test_a_table_beside_label_maps_names_the_classes_of_a_plain_folder(tmp_path, where):
    _pair(tmp_path)
    write_label_files(tmp_path / where, CLASSES)

    cohort = read_cohort(tmp_path)

    assert cohort.classes == CLASSES
    assert "labels.json" in cohort.found[-1]


@pytest.mark.parametrize(
    "theirs",
    [
        {"version": "5.4.1", "shapes": [{"label": "liver"}], "imagePath": "a.png"},
        {"classes": ["liver", "cyst"]},
        {"classes": [{"id": 1, "name": "liver"}]},
        [{"label": "liver"}],
    ],
)
def test_a_file_of_another_program_that_bears_the_name_is_left_aside_and_told(tmp_path, theirs):
    _pair(tmp_path)
    (tmp_path / "labels" / "labels.json").write_text(json.dumps(theirs))

    alone = read_cohort(tmp_path)
    write_label_files(tmp_path / "labels", CLASSES)
    (tmp_path / "labels" / "labels.json").write_text(json.dumps(theirs))
    beside = read_cohort(tmp_path)

    assert alone.classes is None
    assert beside.classes == CLASSES
    for cohort in (alone, beside):
        (told,) = cohort.remarks
        assert "`labels.json` beside the label maps is another program's" in told


def test_a_dataset_json_may_have_colours_by_value_or_name(tmp_path):
    _pair(tmp_path)
    content = {
        "labels": {"background": 0, "left lung": 3, "cyst": 7},
        "colours": {"3": [10, 20, 30], "cyst": "#c800ff", "no class": [1, 2, 3]},
        "training": [{"image": "images/a.nii.gz", "label": "labels/a.nii.gz"}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))

    assert read_cohort(tmp_path).classes == CLASSES


def test_a_table_adds_colours_to_a_dataset_json_and_changes_no_name(tmp_path):
    _pair(tmp_path)
    content = {
        "labels": {"0": "background", "3": "lung", "7": "cyst"},
        "training": [{"image": "images/a.nii.gz", "label": "labels/a.nii.gz"}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    write_label_files(tmp_path / "labels", CLASSES)

    classes = read_cohort(tmp_path).classes

    assert classes.names == ("background", "lung", "cyst")
    assert classes.colours == CLASSES.colours


def test_segments_name_the_classes_and_pair_with_their_images(tmp_path):
    labels = _pair(tmp_path)
    image = read_volume(tmp_path / "images" / "a.nii.gz")
    write_segmentation(tmp_path / "images" / "a.seg.nrrd", labels, image, CLASSES)

    cohort = read_cohort(tmp_path / "images")

    (case,) = cohort.cases
    assert (case.case_id, case.label.name) == ("a", "a.seg.nrrd")
    assert cohort.classes == CLASSES


def test_segments_of_one_value_with_two_names_are_refused(tmp_path):
    for name, called in (("a", "left lung"), ("b", "right lung")):
        labels = _pair(tmp_path, name)
        image = read_volume(tmp_path / "images" / f"{name}.nii.gz")
        table = ClassTable.from_values([0, 3, 7], {3: called, 7: "cyst"})
        write_segmentation(tmp_path / "images" / f"{name}.seg.nrrd", labels, image, table)

    with pytest.raises(UserError, match=r"3 is called `left lung` in `a.seg.nrrd`"):
        read_cohort(tmp_path / "images")


def test_two_values_of_one_name_in_a_table_are_refused(tmp_path):
    _pair(tmp_path)
    path = tmp_path / "labels" / "labels.ctbl"
    path.write_text("3 cyst 1 2 3 255\n7 cyst 4 5 6 255\n")

    with pytest.raises(UserError, match="3 and 7 are both called `cyst`") as caught:
        read_cohort(tmp_path)
    assert caught.value.where == str(path)


def test_a_value_that_is_left_out_takes_no_colour_from_the_others(tmp_path):
    _pair(tmp_path)
    write_label_files(tmp_path, CLASSES)

    classes = without_class(read_cohort(tmp_path), 3).classes

    assert (classes.values, classes.ignore_value) == ((0, 7), 3)
    assert classes.colours[1] == (200, 0, 255)
