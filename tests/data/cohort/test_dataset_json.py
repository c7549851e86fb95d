"""Cohorts by a `dataset.json`, of MSD and of nnU-Net."""

from __future__ import annotations

import pytest
from cohort_sources import described, rows, touch

from mim3d.data.cohort import read_cohort
from mim3d.foundation.errors import UserError


def test_an_msd_dataset_keeps_its_lists_subjects_and_labels(tmp_path):
    path = described(
        tmp_path,
        name="Hippocampus",
        modality={"0": "MRI"},
        labels={"0": "background", "2": "Posterior", "1": "Anterior"},
        training=[
            {"image": "./imagesTr/h_1.nii.gz", "label": "./labelsTr/h_1.nii.gz", "subject": "1"},
            {"image": "imagesTr/h_2.nii.gz"},
        ],
        validation=[{"image": "imagesTr/h_3.nii.gz", "label": "labelsTr/h_3.nii.gz"}],
        test=["./imagesTs/h_9.nii.gz"],
    )

    for source in (tmp_path, path):
        cohort = read_cohort(source)

        assert rows(cohort) == [
            ("h_1", ["h_1.nii.gz"], "h_1.nii.gz", "training"),
            ("h_2", ["h_2.nii.gz"], None, "training"),
            ("h_3", ["h_3.nii.gz"], "h_3.nii.gz", "validation"),
            ("h_9", ["h_9.nii.gz"], None, "test"),
        ]
        assert [c.subject_id for c in cohort.cases] == ["1", "h_2", "h_3", "h_9"]
        assert cohort.classes.names == ("background", "Anterior", "Posterior")
        assert cohort.has_validation
        assert cohort.modality == "mr"
        assert cohort.name == "Hippocampus"


def test_nnunet_may_list_the_files_of_each_case(tmp_path):
    entries = {"a": {"images": ["x/t1.nii.gz", "x/t2.nii.gz"], "label": "y/a.nii.gz"}}
    described(tmp_path, channel_names={"0": "T1", "1": "T2"}, labels={"background": 0, "cyst": 1},
               numTraining=1, file_ending=".nii.gz", dataset=entries)  # fmt: skip

    cohort = read_cohort(tmp_path)

    assert rows(cohort) == [("a", ["t1.nii.gz", "t2.nii.gz"], "a.nii.gz", "training")]
    assert cohort.channel_names == ("T1", "T2")


@pytest.mark.parametrize(
    "entries", [[1], {"a": 1}, {"a": {"images": []}}, {"a": {"images": ["x"]}},
                {"a": {"images": ["../x"], "label": "y"}}]
)  # fmt: skip
def test_files_of_nnunet_that_cannot_be_used_are_refused(tmp_path, entries):
    described(tmp_path, labels={"background": 0}, dataset=entries)

    with pytest.raises(UserError):
        read_cohort(tmp_path)


def test_an_image_list_becomes_channels(tmp_path):
    described(
        tmp_path,
        modality={"1": "T1w", "0": "FLAIR"},
        training=[{"image": ["a_0000.nii.gz", "a_0001.nii.gz"], "label": "a.nii.gz", "fold": 3}],
    )

    cohort = read_cohort(tmp_path)

    assert rows(cohort) == [("a", ["a_0000.nii.gz", "a_0001.nii.gz"], "a.nii.gz", "training")]
    assert cohort.channel_names == ("FLAIR", "T1w")
    assert not cohort.has_validation


def test_names_of_nnunet_1_find_their_channel_files(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz")
    described(tmp_path, training=[{"image": "./imagesTr/a.nii.gz"}])

    assert rows(read_cohort(tmp_path)) == [
        ("a", ["a_0000.nii.gz", "a_0001.nii.gz"], None, "training")
    ]


@pytest.mark.parametrize("image", ["../secret.nii.gz", "/etc/passwd", "link.nii.gz"])
def test_a_list_that_leads_out_of_the_source_is_refused(tmp_path, image):
    source = tmp_path / "source"
    source.mkdir()
    touch(tmp_path, "secret.nii.gz")
    (source / "link.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    described(source, training=[{"image": image}])

    with pytest.raises(UserError, match="leads out of the source"):
        read_cohort(source)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"training": [1]}', '{"training": [{"label": "a"}]}', "[" * 100_000, "{}"],
)
def test_a_damaged_dataset_json_is_one_sentence(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)

    with pytest.raises(UserError, match=r"`dataset\.json` is not an MSD or nnU-Net"):
        read_cohort(tmp_path)


def test_a_subject_that_trains_and_judges_is_told(tmp_path):
    described(
        tmp_path,
        training=[{"image": "a.nii", "subject": "s"}],
        validation=[{"image": "b.nii", "subject": "s"}],
    )

    assert "`s`" in read_cohort(tmp_path).remarks[0]


def test_ids_that_occur_twice_are_refused(tmp_path):
    described(tmp_path, training=[{"image": "x/a.nii.gz"}, {"image": "y/a.nii.gz"}])

    with pytest.raises(UserError, match="first `a`") as caught:
        read_cohort(tmp_path)
    assert caught.value.code == "duplicate-case"


def test_an_nnunet_raw_folder_joins_channels_by_suffix(tmp_path):
    touch(tmp_path, *(f"imagesTr/p_{n}_{c:04d}.nii.gz" for n in (1, 2) for c in (0, 1)))
    touch(tmp_path, "labelsTr/p_1.nii.gz", "labelsTr/p_2.nii.gz", "imagesTs/q_0000.nii.gz")
    described(
        tmp_path,
        channel_names={"0": "CT", "1": "PET"},
        labels={"background": 0, "liver": 1, "ignore": 2},
        file_ending=".nii.gz",
        numTraining=2,
    )

    cohort = read_cohort(tmp_path)

    assert rows(cohort) == [
        ("p_1", ["p_1_0000.nii.gz", "p_1_0001.nii.gz"], "p_1.nii.gz", "training"),
        ("p_2", ["p_2_0000.nii.gz", "p_2_0001.nii.gz"], "p_2.nii.gz", "training"),
        # The second channel is missing; it keeps its place and is found missing when read.
        ("q", ["q_0000.nii.gz", "q_0001.nii.gz"], None, "test"),
    ]
    assert cohort.modalities == ("ct", "other")
    assert cohort.modality is None
    assert cohort.classes.values == (0, 1)
    assert cohort.classes.ignore_value == 2


def test_regions_of_nnunet_name_the_values_that_are_written_for_them(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii.gz")
    described(
        tmp_path,
        labels={"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]},
        regions_class_order=[1, 2, 3],
    )

    classes = read_cohort(tmp_path).classes

    assert dict(zip(classes.values, classes.names, strict=True)) == {
        0: "background", 1: "whole", 2: "core", 3: "enhancing"
    }  # fmt: skip


def test_regions_without_an_order_are_refused(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii.gz")
    described(tmp_path, labels={"background": 0, "whole": [1, 2]})

    with pytest.raises(UserError, match="regions_class_order"):
        read_cohort(tmp_path)


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ({"0": "background", "1": "tumour", "4": "tumour"}, "1 and 4 are both called `tumour`"),
        ({"1": "background", "2": "cyst"}, "0 and 1 are both called `background`"),
    ],
)
def test_two_values_of_one_name_are_refused(tmp_path, labels, match):
    """They were prepared, and `evaluate` ended in an IndexError."""
    path = described(tmp_path, labels=labels, training=[{"image": "a.nii.gz"}])

    with pytest.raises(UserError, match=match) as caught:
        read_cohort(tmp_path)

    assert caught.value.where == str(path)
    assert "a name of its own" in caught.value.remedy


def test_the_environment_of_nnunet_finds_a_data_set_and_says_so(tmp_path, monkeypatch):
    touch(tmp_path, "Dataset004_X/imagesTr/a_0000.nii.gz")
    described(tmp_path / "Dataset004_X", labels={"background": 0})
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))

    cohort = read_cohort("Dataset004_X")

    assert len(cohort.cases) == 1
    assert "nnUNet_raw" in cohort.remarks[0]
