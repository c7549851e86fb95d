from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from mim3d.cli.main import main
from mim3d.foundation.errors import UserError
from mim3d.workflows.view.pairing import pairing_key
from mim3d.workflows.view.view import opened, view


def save(path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([1, 2, 3, 1.0])), path)
    return path


def scan():
    x, y, z = np.indices((11, 13, 7))
    return (x * 91 + y * 7 + z * 1000).astype(np.int16)


def labels():
    values = np.zeros((11, 13, 7), np.uint8)
    values[2:5, 3:9, 1:4] = 2
    return values


def seen(*paths):
    """Roles and names of the layers of every case."""
    with opened([str(path) for path in paths]) as (_, catalogue):
        return {
            case.name: [(catalogue.layers[n].role, catalogue.layers[n].name) for n in case.layers]
            for case in catalogue.cases.values()
        }


def test_a_study_is_sorted_by_what_its_folders_are(study):
    with opened(str(study)) as (_, catalogue):
        layers = [catalogue.layers[n] for n in catalogue.cases["case_b"].layers]
        scores = catalogue.cases["case_b"].scores
        panels = [(panel.run, panel.kind, panel.title) for panel in catalogue.panels]

    assert {(layer.role, layer.name) for layer in layers} == {
        ("image", "images"), ("label", "labels"), ("prediction", "predictions/mae"),
    }  # fmt: skip
    assert [score.structure for score in scores["study"]] == ["liver", "left kidney"]
    assert panels == [
        ("runs/pretrain", "curves", "curves"),
        ("runs/pretrain", "reconstruction", "step 0"),
        ("runs/pretrain", "reconstruction", "step 100"),
    ]


def test_predictions_beside_their_scans_are_paired_across_paths(study):
    found = seen(study / "predictions/mae", study / "images")

    assert found["case_a"] == [("prediction", "predictions/mae"), ("image", "images")]


@pytest.mark.parametrize(
    ("first", "second"),
    [("case_1_0000.nii.gz", "case_1.nii.gz"), ("case_1.mha", "Case_1_seg.nii.gz"),
     ("case_1.nrrd", "label_case_1.nii"), ("sub-01_ses-2_T1w.nii", "sub-01_ses-2_desc-x_dseg.nii")],
)  # fmt: skip
def test_names_of_one_case_have_one_key(first, second):
    assert pairing_key(first) == pairing_key(second)


@pytest.mark.parametrize(
    ("first", "second"),
    [("case_1", "case_10"), ("scan_2019", "scan_2020"), ("sub-01_T1w", "sub-02_T1w"), ("a", "b")],
)
def test_names_of_two_cases_have_two_keys(first, second):
    assert pairing_key(first) != pairing_key(second)


def test_persons_whose_files_are_called_alike_are_cases_of_their_own(tmp_path):
    for person in ("s01", "s02"):
        save(tmp_path / f"{person}/ct.nii.gz", scan())
        save(tmp_path / f"{person}/label.nii.gz", labels())

    assert seen(tmp_path) == {
        person: [("image", "ct"), ("label", "label")] for person in ("s01", "s02")
    }


def test_sites_that_number_their_cases_alike_are_kept_apart_with_their_predictions(tmp_path):
    for site in ("north", "south"):
        save(tmp_path / site / "images/case_01.nii.gz", scan())
        save(tmp_path / site / "labels/case_01.nii.gz", labels())
        save(tmp_path / site / "predictions/mae/case_01.nii.gz", labels())
    save(tmp_path / "north/images/case_02.nii.gz", scan())

    roles = {name: [role for role, _ in layers] for name, layers in seen(tmp_path).items()}

    assert roles == {
        "case_01 (north)": ["image", "label", "prediction"],
        "case_01 (south)": ["image", "label", "prediction"],
        "case_02": ["image"],
    }
    assert seen(tmp_path / "north", tmp_path / "south") == seen(tmp_path)


def test_label_maps_of_two_sites_are_not_compared_without_images_either(tmp_path):
    for site in ("north", "south"):
        save(tmp_path / site / "labels/case_01.nii.gz", labels())
        save(tmp_path / site / "predictions/case_01.nii.gz", labels())

    found = seen(tmp_path)

    assert [len(layers) for layers in found.values()] == [2, 2]


def test_several_raters_and_runs_are_layers_of_one_case(tmp_path):
    save(tmp_path / "scans/a.nii.gz", scan())
    for folder in ("rater_1", "rater_2", "predictions/mae", "predictions/simmim"):
        save(tmp_path / folder / "a.nii.gz", labels())

    (layers,) = seen(tmp_path).values()

    assert len(layers) == 5


def test_contrasts_in_folders_of_their_own_are_images_of_one_case(tmp_path):
    for contrast in ("T1", "FLAIR"):
        save(tmp_path / contrast / "case_01.nii.gz", scan())

    assert seen(tmp_path) == {"case_01": [("image", "FLAIR"), ("image", "T1")]}


def test_names_that_differ_in_capital_letters_alone_are_two_cases(tmp_path):
    for name in ("P1", "p1"):
        save(tmp_path / f"images/{name}.nii.gz", scan())

    assert len(seen(tmp_path)) == 2


def test_results_of_one_file_name_stay_apart(study):
    (study / "mae").mkdir()
    (study / "mae/results.json").write_bytes((study / "results.json").read_bytes())

    with opened(str(study)) as (_, catalogue):
        scores = catalogue.cases["case_b"].scores

    assert {source: len(rows) for source, rows in scores.items()} == {"study": 2, "mae": 2}


def test_a_scan_beside_label_maps_without_a_word_is_still_an_image(tmp_path):
    save(tmp_path / "study/liver.nii.gz", labels())
    save(tmp_path / "study/thorax.nii.gz", scan())

    assert [role for ((role, _),) in seen(tmp_path).values()] == ["label", "image"]


def test_files_alone_are_layers_of_one_case(tmp_path):
    image = save(tmp_path / "ct.nii.gz", scan())
    organs = save(tmp_path / "organs.nii.gz", labels())
    (tmp_path / "organs.json").write_text(json.dumps({"labels": {"0": "nothing", "2": "spleen"}}))

    with opened([str(image), str(organs), str(tmp_path / "organs.json")]) as (_, catalogue):
        (case,) = catalogue.cases.values()
        layers = [catalogue.layers[n] for n in case.layers]

    assert [(layer.role, layer.name) for layer in layers] == [("image", "ct"), ("label", "organs")]
    assert layers[1].classes.names == ("nothing", "spleen")


def test_a_folder_of_few_whole_numbers_is_shown_as_label_maps_and_said_so(tmp_path):
    save(tmp_path / "scans/a.nii.gz", scan())
    save(tmp_path / "nnunet_pred/a.nii.gz", labels())
    save(tmp_path / "rater_2/a.nii.gz", labels())

    with opened(str(tmp_path)) as (_, catalogue):
        roles = {layer.name: layer.role for layer in catalogue.layers}

    assert roles == {"scans": "image", "nnunet_pred": "prediction", "rater_2": "label"}
    assert sum("shown as label maps" in note for note in catalogue.notes) == 2


def test_channels_of_nnunet_images_are_images_of_one_case(tmp_path):
    for case in ("p_01", "p_02"):
        for channel in ("0000", "0001"):
            save(tmp_path / f"imagesTs/{case}_{channel}.nii.gz", scan())

    assert seen(tmp_path) == {
        case: [("image", "channel 0"), ("image", "channel 1")] for case in ("p_01", "p_02")
    }


def test_numbered_cases_are_no_channels(tmp_path):
    for number in range(3):
        save(tmp_path / f"imagesTs/mouse_{number + 1:04d}.nii.gz", scan())

    assert len(seen(tmp_path)) == 3


def test_contrasts_of_a_bids_subject_are_images_of_one_case(tmp_path):
    for name in ("sub-01_T1w", "sub-01_FLAIR"):
        save(tmp_path / f"bids/sub-01/anat/{name}.nii.gz", scan())
    save(tmp_path / "bids/derivatives/seg/sub-01/anat/sub-01_dseg.nii.gz", labels())

    (layers,) = seen(tmp_path).values()

    assert sorted(layers) == [("image", "FLAIR"), ("image", "T1w"), ("label", "anat")]


def test_a_dataset_json_names_lists_and_classes_and_a_store_its_own(store):
    with opened(str(store.parent)) as (_, catalogue):
        case = next(iter(catalogue.cases.values()))
        layers = [catalogue.layers[n] for n in case.layers]

    assert len(catalogue.cases) == 2
    assert sorted(layer.role for layer in layers) == ["image", "image", "label", "label"]
    assert case.part in ("training", "validation")
    assert all("tumour" in layer.classes.names for layer in layers if layer.role == "label")


def test_an_empty_folder_and_an_absent_path_are_told(tmp_path):
    with pytest.raises(UserError, match="nothing to see"):
        view(str(tmp_path), dry_run=True)
    with pytest.raises(UserError, match="does not exist"):
        view(str(tmp_path / "nowhere"), dry_run=True)


def test_a_file_that_was_named_and_is_no_result_is_an_error(study):
    (study / "other.json").write_text("[]")

    with pytest.raises(UserError, match="results"):
        view([str(study), str(study / "other.json")], dry_run=True)


def test_a_dry_run_says_what_would_be_shown(study, capsys):
    code = main(["view", str(study), "--dry_run"])

    assert code == 0
    assert "would show 3 case(s) (3 images, 3 labels, 3 predictions)" in capsys.readouterr().out


def test_images_without_any_label_are_cases_too(tmp_path):
    save(tmp_path / "deep/er/b.nii.gz", scan())
    save(tmp_path / "a.nii.gz", scan())

    assert sorted(seen(tmp_path)) == ["a", "b"]
