"""BIDS: contrasts as channels, derivatives as labels."""

from __future__ import annotations

import pytest

from mim3d.data.cohort import read_cohort
from mim3d.foundation.errors import UserError


def _touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def _raw(folder, subjects="123", contrasts=("T1w", "FLAIR")):
    for subject in subjects:
        for contrast in contrasts:
            _touch(folder, f"sub-0{subject}/ses-1/anat/sub-0{subject}_ses-1_{contrast}.nii.gz")


def _files(cohort):
    return {case.case_id: [path.name for path in case.images] for case in cohort.cases}


def test_contrasts_that_every_session_has_become_channels_in_the_order_of_their_names(tmp_path):
    _raw(tmp_path)
    _touch(tmp_path, "sub-02/ses-1/anat/sub-02_ses-1_T2w.nii.gz", "sub-01/ses-1/func/"
           "sub-01_ses-1_task-rest_bold.nii.gz", "dataset_description.json")  # fmt: skip

    cohort = read_cohort(tmp_path)

    assert cohort.kind == "BIDS"
    assert cohort.channel_names == ("FLAIR", "T1w")
    assert cohort.modality == "mr"
    assert _files(cohort)["sub-02_ses-1"] == ["sub-02_ses-1_FLAIR.nii.gz",
                                              "sub-02_ses-1_T1w.nii.gz"]  # fmt: skip
    assert [case.subject_id for case in cohort.cases] == ["sub-01", "sub-02", "sub-03"]
    told = " ".join(cohort.found)
    assert "`T2w` in 1" in told
    assert "not taken: `T2w`" in told


def test_contrasts_asked_for_come_in_their_order_and_leave_sessions_out(tmp_path):
    _raw(tmp_path)
    _touch(tmp_path, "sub-04/anat/sub-04_T1w.nii.gz")

    cohort = read_cohort(tmp_path, contrasts=("T1w", "FLAIR"))

    assert cohort.channel_names == ("T1w", "FLAIR")
    assert list(_files(cohort)) == ["sub-01_ses-1", "sub-02_ses-1", "sub-03_ses-1"]
    assert "1 session(s) lack one of them" in cohort.found


def test_without_a_contrast_that_all_have_the_most_frequent_one_is_taken(tmp_path):
    _raw(tmp_path, contrasts=("T1w",))
    _touch(tmp_path, "sub-04/anat/sub-04_T2w.nii.gz")

    cohort = read_cohort(tmp_path)

    assert cohort.channel_names == ("T1w",)
    assert list(_files(cohort)) == [f"sub-0{k}_ses-1_T1w" for k in (1, 2, 3)]


def test_of_one_contrast_every_run_is_a_case_of_its_subject(tmp_path):
    _touch(tmp_path, *(f"sub-A/anat/sub-A_run-{run}_T1w.nii.gz" for run in (1, 2)))

    cohort = read_cohort(tmp_path)

    assert list(_files(cohort)) == ["sub-A_run-1_T1w", "sub-A_run-2_T1w"]
    assert {case.subject_id for case in cohort.cases} == {"sub-A"}


def test_two_acquisitions_of_a_session_are_two_contrasts(tmp_path):
    for subject in "12":
        for enhanced in ("", "_ce-gd"):
            _touch(tmp_path, f"sub-{subject}/anat/sub-{subject}{enhanced}_T1w.nii.gz")

    assert read_cohort(tmp_path).channel_names == ("T1w", "ce-gd_T1w")


def test_derivatives_of_most_sessions_become_labels(tmp_path):
    _raw(tmp_path)
    manual = "derivatives/manual/sub-0{0}/ses-1/anat/sub-0{0}_ses-1_{1}.nii.gz"
    _touch(tmp_path, *(manual.format(k, "dseg") for k in (1, 2)))
    _touch(tmp_path, *(manual.format(k, "desc-brain_mask") for k in (1, 2, 3)))
    _touch(tmp_path, *(manual.format(k, "space-MNI152_dseg") for k in (1, 2, 3)))

    cohort = read_cohort(tmp_path)

    assert [case.label and case.label.name for case in cohort.cases] == [
        "sub-01_ses-1_dseg.nii.gz",
        "sub-02_ses-1_dseg.nii.gz",
        None,
    ]
    told = " ".join(cohort.found)
    assert "labels: `derivatives/manual/anat/*_dseg` of 2 of 3 case(s)" in told
    assert "desc-brain_mask" in told


def test_a_glob_chooses_the_labels_and_a_tsv_names_them(tmp_path):
    _raw(tmp_path, contrasts=("T1w",))
    name = "derivatives/fs/sub-0{0}/anat/sub-0{0}_ses-1_desc-{1}_dseg.nii.gz"
    _touch(tmp_path, *(name.format(k, d) for k in (1, 2, 3) for d in ("aparc", "aseg")))
    (tmp_path / "derivatives/fs/desc-aseg_dseg.tsv").write_text(
        "index\tname\tcolor\n17\tHippocampus\t#DCD814\n"
    )

    cohort = read_cohort(tmp_path, labels="derivatives/fs/**/*_desc-aseg_dseg.nii.gz")

    assert cohort.cases[2].label.name == "sub-03_ses-1_desc-aseg_dseg.nii.gz"
    assert cohort.classes.names == ("background", "Hippocampus")
    assert cohort.classes.colours[1] == (220, 216, 20)


def _labels(cohort):
    return {case.case_id: case.label and case.label.name for case in cohort.cases}


def _maps(folder, *names):
    """Label maps of subjects 1 and 2 by the rest of their names."""
    _touch(folder, *(f"derivatives/m/sub-0{k}/anat/sub-0{k}_{name}.nii.gz"
                     for k in (1, 2) for name in names))  # fmt: skip


def _images(folder, *names):
    _touch(folder, *(f"sub-0{k}/anat/sub-0{k}_{name}.nii.gz" for k in (1, 2) for name in names))


@pytest.mark.parametrize("number", ["{}", "0{}"])
def test_each_run_has_the_label_map_of_its_own_run(number, tmp_path):
    """Tried with labels by session alone: the second run had the first one's."""
    _images(tmp_path, "run-1_T1w", "run-2_T1w")
    _maps(tmp_path, f"run-{number.format(2)}_dseg", f"run-{number.format(1)}_dseg")

    for labels in (None, "derivatives/**/*_dseg.nii.gz"):
        cohort = read_cohort(tmp_path, labels=labels)

        for case_id, label in _labels(cohort).items():
            run = case_id.removesuffix("_T1w")[-1]
            assert label == f"{case_id[:6]}_run-{number.format(run)}_dseg.nii.gz"


def test_a_run_without_a_label_map_of_its_own_has_none(tmp_path):
    _images(tmp_path, "run-1_T1w", "run-2_T1w")
    _maps(tmp_path, "run-2_dseg")

    labels = _labels(read_cohort(tmp_path))

    assert labels["sub-01_run-1_T1w"] is None
    assert labels["sub-01_run-2_T1w"] == "sub-01_run-2_dseg.nii.gz"


def test_a_label_map_that_does_not_say_which_of_several_runs_it_is_of_is_not_taken(tmp_path):
    _images(tmp_path, "run-1_T1w", "run-2_T1w")
    _maps(tmp_path, "dseg")

    cohort = read_cohort(tmp_path)

    assert set(_labels(cohort).values()) == {None}
    assert "2 label map(s) fit several images, and are not taken" in " ".join(cohort.found)


@pytest.mark.parametrize("acquisition", ["fast", "slow"])
def test_an_acquisition_has_the_label_map_that_was_drawn_on_it(acquisition, tmp_path):
    _images(tmp_path, "acq-fast_T1w", "acq-slow_T1w")
    _maps(tmp_path, "acq-fast_dseg", "acq-slow_dseg")

    cohort = read_cohort(tmp_path, contrasts=(f"acq-{acquisition}_T1w",))

    assert _labels(cohort) == {
        f"sub-0{k}_acq-{acquisition}_T1w": f"sub-0{k}_acq-{acquisition}_dseg.nii.gz" for k in (1, 2)
    }


@pytest.mark.parametrize("contrasts", [("T1w",), ("FLAIR",), ("T1w", "FLAIR"), ("FLAIR", "T1w")])
def test_of_label_maps_in_several_spaces_that_of_the_first_channel_is_taken(contrasts, tmp_path):
    _images(tmp_path, "T1w", "FLAIR")
    _maps(tmp_path, "space-T1w_dseg", "space-FLAIR_dseg")

    cohort = read_cohort(tmp_path, contrasts=contrasts)

    expected = [f"sub-0{k}_space-{contrasts[0]}_dseg.nii.gz" for k in (1, 2)]
    assert [case.label.name for case in cohort.cases] == expected


def test_the_contrast_without_contrast_agent_does_not_take_the_other_ones_label_map(tmp_path):
    _images(tmp_path, "T1w", "ce-gd_T1w")
    _maps(tmp_path, "ce-gd_dseg", "desc-tumour_mask")

    for contrast, label in (("T1w", "desc-tumour_mask"), ("ce-gd_T1w", "ce-gd_dseg")):
        cohort = read_cohort(tmp_path, contrasts=(contrast,))
        assert [case.label.name for case in cohort.cases] == [
            f"sub-0{k}_{label}.nii.gz" for k in (1, 2)
        ]


def test_a_pattern_pairs_runs_and_refuses_two_label_maps_of_one_image(tmp_path):
    _images(tmp_path, "run-1_T1w", "run-2_T1w")
    _maps(tmp_path, "run-1_dseg", "run-2_dseg", "run-2_desc-brain_mask")

    cohort = read_cohort(tmp_path, "sub-*/**/*_T1w.nii.gz", labels="derivatives/**/*_dseg.nii.gz")
    assert _labels(cohort)["sub-02_run-2_T1w"] == "sub-02_run-2_dseg.nii.gz"

    with pytest.raises(UserError, match="several label maps fit `sub-01_run-2_T1w"):
        read_cohort(tmp_path, "sub-*/**/*_T1w.nii.gz", labels="derivatives/**/sub-*.nii.gz")


def test_a_pattern_takes_labels_of_the_same_session_by_a_glob(tmp_path):
    _raw(tmp_path)
    _touch(tmp_path, "derivatives/m/sub-02/sub-02_ses-1_label-lesion_mask.nii.gz")

    cohort = read_cohort(tmp_path, "sub-*/**/*_FLAIR.nii.gz", labels="derivatives/**/*_mask.nii.gz")

    assert [case.label is not None for case in cohort.cases] == [False, True, False]


def test_contrasts_that_are_nowhere_are_an_error_that_lists_those_that_are(tmp_path):
    _raw(tmp_path)

    with pytest.raises(UserError, match="`PDw`") as caught:
        read_cohort(tmp_path, contrasts=("T1w", "PDw"))

    assert "FLAIR, T1w" in caught.value.remedy


def test_a_link_out_of_the_data_set_is_refused(tmp_path):
    _raw(tmp_path / "bids")
    _touch(tmp_path, "elsewhere.nii.gz")
    link = tmp_path / "bids/sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz"
    link.symlink_to(tmp_path / "elsewhere.nii.gz")

    with pytest.raises(UserError, match="leads out"):
        read_cohort(tmp_path / "bids")
