"""Cohorts by the names of files in folders."""

from __future__ import annotations

import pytest
from cohort_sources import dicom, rows, touch

from mim3d.data.cohort import read_cohort
from mim3d.foundation.errors import UserError


def test_a_folder_of_images_is_a_cohort_without_labels(tmp_path):
    touch(tmp_path, "b.nii.gz", "a.mha", "deep/c.nrrd", "d.hdr", "d.img", ".hidden.nii", "x.txt")

    assert rows(read_cohort(tmp_path)) == [
        ("a", ["a.mha"], None, "training"),
        ("b", ["b.nii.gz"], None, "training"),
        ("d", ["d.hdr"], None, "training"),
        ("c", ["c.nrrd"], None, "training"),
    ]


def test_folders_of_images_and_labels_are_paired(tmp_path):
    """BTCV as it is downloaded (img, label), and LiTS's volume and segmentation."""
    touch(tmp_path, "imagesTr/img0001.nii.gz", "imagesTr/img0002.nii.gz")
    touch(tmp_path, "imagesTs/img0061.nii.gz")
    touch(tmp_path, "labelsTr/label0001.nii.gz", "labelsTr/label0002.nii.gz")

    cohort = read_cohort(tmp_path)

    assert rows(cohort) == [
        ("img0001", ["img0001.nii.gz"], "label0001.nii.gz", "training"),
        ("img0002", ["img0002.nii.gz"], "label0002.nii.gz", "training"),
        ("img0061", ["img0061.nii.gz"], None, "test"),
    ]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("case1.nii.gz", "case1_seg.nii.gz"),
        ("case1.nii.gz", "case1-label.nrrd"),
        ("case1_img.nii.gz", "case1_mask.nii.gz"),
        ("volume-1.nii", "segmentation-1.nii"),
        ("breast1_image.nrrd", "breast1_label.nrrd"),
    ],
)
def test_a_label_map_beside_its_image_is_told_by_its_name(tmp_path, image, label):
    touch(tmp_path, image, label, "other.nii.gz")

    labels = {tuple(images): label for _, images, label, _ in rows(read_cohort(tmp_path))}

    assert labels == {(image,): label, ("other.nii.gz",): None}


def test_a_label_map_without_image_is_refused(tmp_path):
    touch(tmp_path, "case_t1.nii.gz", "case_t2.nii.gz", "case_seg.nii.gz")

    with pytest.raises(UserError, match=r"`case_seg\.nii\.gz`") as caught:
        read_cohort(tmp_path)
    assert "CSV" in caught.value.remedy


def test_words_within_names_are_no_label_words(tmp_path):
    touch(tmp_path, "segal_01.nii.gz", "masked.nii.gz", "Labelle.nii.gz", "03_unmask.nii.gz")

    assert all(case.label is None for case in read_cohort(tmp_path).cases)


def test_bids_subjects_are_taken_from_the_names_a_pattern_finds(tmp_path):
    touch(
        tmp_path,
        "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
        "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz",
        "sub-02/anat/sub-02_T1w.nii.gz",
        "sub-02/anat/sub-02_T2w.nii.gz",
    )

    cohort = read_cohort(tmp_path, "sub-*/**/*_T1w.nii.gz")

    assert [(c.case_id, c.subject_id) for c in cohort.cases] == [
        ("sub-01_ses-1_T1w", "sub-01"),
        ("sub-01_ses-2_T1w", "sub-01"),
        ("sub-02_T1w", "sub-02"),
    ]
    with pytest.raises(UserError, match="no file matches"):
        read_cohort(tmp_path, "*.nope")
    with pytest.raises(UserError, match="is not a pattern"):
        read_cohort(tmp_path, "/abs/*")


def test_files_of_one_name_get_a_hash_and_no_name_of_their_folders(tmp_path):
    touch(tmp_path, "PLANTED^NAME/ct.nii.gz", "OTHER^NAME/ct.nii.gz", "x/mr.nii.gz")

    cohort = read_cohort(tmp_path)

    ids = [case.case_id for case in cohort.cases]
    assert len(set(ids)) == 3
    assert sorted(i.split("-")[0] for i in ids) == ["ct", "ct", "mr"]
    assert "NAME" not in repr([(c.case_id, c.subject_id) for c in cohort.cases])
    assert "a hash of their folder" in cohort.remarks[0]


def test_dicom_folders_are_cases(tmp_path):
    dicom(tmp_path / "scan", "1", "2", "3")
    dicom(tmp_path / "tree/s1/a", "IM0", "IM1")
    dicom(tmp_path / "tree/s2/b", "IM0")

    one = read_cohort(tmp_path / "scan")
    tree = read_cohort(tmp_path / "tree")

    assert rows(one) == [("scan", ["scan"], None, "training")]
    assert rows(tree) == [("a", ["a"], None, "training"), ("b", ["b"], None, "training")]
    assert tree.kind == "a tree of DICOM series"


def test_a_single_file_is_a_cohort(tmp_path):
    touch(tmp_path, "scan.nii.gz")

    assert rows(read_cohort(tmp_path / "scan.nii.gz")) == [
        ("scan", ["scan.nii.gz"], None, "training")
    ]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_links_out_of_a_folder_are_refused_and_within_it_followed(tmp_path, kind):
    source, outside = tmp_path / "source", tmp_path / "outside"
    touch(source, "store/a.nii.gz")
    touch(outside, "secret.nii.gz")
    (source / "b.nii.gz").symlink_to("store/a.nii.gz")
    assert {c.case_id for c in read_cohort(source).cases} == {"a", "b"}

    target = outside / "secret.nii.gz" if kind == "file" else outside
    (source / "link.nii.gz").symlink_to(target)

    with pytest.raises(UserError, match="leads out of the source"):
        read_cohort(source)


def test_nothing_there_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_cohort(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no volume lies in this folder"):
        read_cohort(tmp_path)
    (tmp_path / "imagesTr").mkdir()
    with pytest.raises(UserError, match="holds no case"):
        read_cohort(tmp_path)
