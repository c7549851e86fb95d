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


def test_labels_of_one_name_are_paired_by_their_folders(tmp_path):
    touch(tmp_path, *(f"imagesTr/{p}/scan.nii.gz" for p in ("p1", "p2", "p3")))
    touch(tmp_path, "labelsTr/p1/scan.nii.gz", "labelsTr/p2/scan.nii.gz")

    for cohort in (
        read_cohort(tmp_path),
        read_cohort(tmp_path, "imagesTr/*/*.nii.gz", labels="labelsTr/*/*.nii.gz"),
    ):
        labels = {c.images[0].parent.name: c.label and c.label.parent.name for c in cohort.cases}
        assert labels == {"p1": "p1", "p2": "p2", "p3": None}


@pytest.mark.parametrize(
    "images",
    [("images/p1/a.nii.gz", "images/p2/a.nii.gz"), ("images/a.nii", "images/a.nii.gz")],
)
def test_a_label_map_that_fits_several_images_is_refused(tmp_path, images):
    touch(tmp_path, *images, "labels/a.nii.gz")

    with pytest.raises(UserError, match=r"not one alone: `a\.nii\.gz`") as caught:
        read_cohort(tmp_path)
    assert caught.value.code == "unpaired-label"


@pytest.mark.parametrize("folders", [("images", "images"), ("img0", "img1")])
def test_label_maps_in_folders_of_images_are_no_images(tmp_path, folders):
    touch(tmp_path, *(f"{folder}/c{n}.nii.gz" for n, folder in enumerate(folders)))
    touch(tmp_path, *(f"{folder}/c{n}_seg.nii.gz" for n, folder in enumerate(folders)))

    assert rows(read_cohort(tmp_path)) == [
        ("c0", ["c0.nii.gz"], "c0_seg.nii.gz", "training"),
        ("c1", ["c1.nii.gz"], "c1_seg.nii.gz", "training"),
    ]


def test_label_maps_among_images_are_no_images_where_others_have_a_folder_of_their_own(tmp_path):
    touch(tmp_path, "images/a.nii.gz", "images/b.nii.gz", "images/b_seg.nii.gz", "labels/a.nii.gz")

    cohort = read_cohort(tmp_path)

    assert rows(cohort) == [
        ("a", ["a.nii.gz"], "a.nii.gz", "training"),
        ("b", ["b.nii.gz"], "b_seg.nii.gz", "training"),
    ]
    assert cohort.found == ("1 label map(s) lie among the images, told by their names",)


def test_an_image_with_a_label_map_in_either_place_is_refused(tmp_path):
    touch(tmp_path, "images/a.nii.gz", "images/a_seg.nii.gz", "labels/a.nii.gz")

    with pytest.raises(UserError, match=r"has another label map.*`a_seg\.nii\.gz`"):
        read_cohort(tmp_path)


def test_an_image_called_like_a_label_map_is_one_where_its_label_map_bears_the_name(tmp_path):
    for folder in ("images", "labels"):
        touch(tmp_path / folder, "mask_1.nii.gz", "mask_2.nii.gz")

    assert [(images, label) for _, images, label, _ in rows(read_cohort(tmp_path))] == [
        ([f"mask_{n}.nii.gz"], f"mask_{n}.nii.gz") for n in (1, 2)
    ]


def test_what_the_pattern_of_label_maps_finds_is_no_image(tmp_path):
    touch(tmp_path, "p1/a.nii.gz", "p1/a_seg.nii.gz", "p2/b.nii.gz")

    cohort = read_cohort(tmp_path, "*/*.nii.gz", labels="*/*_seg.nii.gz")

    assert [(images, label) for _, images, label, _ in rows(cohort)] == [
        (["a.nii.gz"], "a_seg.nii.gz"), (["b.nii.gz"], None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("folder", "endings", "is_told"),
    [
        ("p{}", ("a.nii.gz", "b.nii.gz"), True),
        ("images/p{}", ("a.nii.gz", "b.nii.gz"), True),
        ("p{}", ("a.nii.gz", "a_seg.nii.gz"), False),
        ("sub-{}", ("a.nii.gz", "b.nii.gz"), False),
        ("images", ("a.nii.gz", "b.nii.gz"), False),
        (".", ("a.nii.gz", "b.nii.gz"), False),
    ],
)
def test_folders_of_several_images_may_be_patients_and_that_is_told(
    tmp_path, folder, endings, is_told
):
    """`p0/0a` was held out while `p0/0b` trained, without a word."""
    touch(tmp_path, *(f"{folder.format(n)}/{n}{ending}" for n in (0, 1) for ending in endings))

    cohort = read_cohort(tmp_path)

    assert ["`subject`" in remark for remark in cohort.remarks] == [True] * is_told
    if is_told:
        assert "2 folder(s)" in cohort.remarks[0]
        assert [case.subject_id for case in cohort.cases] == ["0a", "0b", "1a", "1b"]


def test_a_folder_of_images_of_nnunet_joins_channels_by_suffix(tmp_path):
    touch(tmp_path, *(f"two/c{n}_000{c}.nii.gz" for n in (1, 2) for c in (0, 1)))
    touch(tmp_path, "one/c1_0000.nii.gz", "one/c2_0000.nii.gz")

    two, one = read_cohort(tmp_path / "two"), read_cohort(tmp_path / "one")

    assert rows(two) == [
        ("c1", ["c1_0000.nii.gz", "c1_0001.nii.gz"], None, "training"),
        ("c2", ["c2_0000.nii.gz", "c2_0001.nii.gz"], None, "training"),
    ]
    assert rows(one) == [
        ("c1", ["c1_0000.nii.gz"], None, "training"),
        ("c2", ["c2_0000.nii.gz"], None, "training"),
    ]
    assert two.found == ("2 channel(s) a case, by `_0000` at the end of the names",)


@pytest.mark.parametrize(
    "names",
    [
        ("a_0000", "a_0001", "b_0000"),
        ("a_0001", "b_0001"),
        ("a_0000", "b_0000", "c"),
        ("scan_0000", "scan_0001", "scan_0002"),
        ("a/x_0000", "a/y_0000", "b/z_0000"),
    ],
)
def test_numbers_that_are_no_channels_stay_in_the_names(tmp_path, names):
    touch(tmp_path, *(f"{name}.nii.gz" for name in names))

    assert [case.case_id for case in read_cohort(tmp_path).cases] == [
        name.split("/")[-1] for name in names
    ]


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
    with pytest.raises(UserError, match="neither a file nor a folder"):
        read_cohort("/dev/null")
    (tmp_path / "imagesTr").mkdir()
    with pytest.raises(UserError, match="holds no case"):
        read_cohort(tmp_path)
