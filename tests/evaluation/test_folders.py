"""Folders of predictions and labels: pairing, names, subjects and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mim3d.config.inference import EvaluationConfig
from mim3d.config.read import ReadConfig
from mim3d.data.classes import ClassTable
from mim3d.data.regions import SCHEMES
from mim3d.evaluation.folders import class_table, evaluate_folder, label_files
from mim3d.foundation.errors import UserError
from mim3d.inference.label_files import write_label_files

QUICK = EvaluationConfig(resamples=50)
AFFINE = np.diag([0.8, 1.2, 2.5, 1.0])


def blocks(values: tuple[int, ...] = (1, 2), shift: int = 0) -> np.ndarray:
    labels = np.zeros((13, 11, 7), np.uint8)
    for place, value in enumerate(values):
        labels[1 + 3 * place + shift : 4 + 3 * place + shift, 2:7, 1:5] = value
    return labels


def write(path: Path, labels: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, affine), path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two cases: one perfect, one shifted by a voxel."""
    guesses, labels = tmp_path / "predictions", tmp_path / "labels"
    for name, shift in (("b_2", 0), ("a_1", 1)):
        write(labels / f"{name}.nii.gz", blocks())
        write(guesses / f"{name}.nii.gz", blocks(shift=shift))
    return guesses, labels


def dice(results: object, case: str, structure: str) -> float | None:
    return next(
        score.dice
        for score in results.scores  # type: ignore[attr-defined]
        if (score.case_id, score.structure) == (case, structure)
    )


def test_files_are_paired_by_name_and_values_are_classes(folders: tuple[Path, Path]) -> None:
    results = evaluate_folder(*folders, QUICK)

    assert results.case_ids == ("a_1", "b_2")
    assert results.structures == ("label 1", "label 2")
    assert dice(results, "b_2", "label 1") == 1.0
    assert dice(results, "a_1", "label 1") == pytest.approx(2 / 3)
    assert results.subjects == results.case_ids


def test_endings_need_not_agree(folders: tuple[Path, Path]) -> None:
    guesses, labels = folders
    (labels / "a_1.nii.gz").unlink()
    write(labels / "a_1.nii", blocks())

    assert evaluate_folder(guesses, labels, QUICK).case_ids == ("a_1", "b_2")


def test_one_file_is_scored_against_another_of_its_name(folders: tuple[Path, Path]) -> None:
    guesses, labels = folders

    results = evaluate_folder(guesses / "a_1.nii.gz", labels / "a_1.nii.gz", QUICK)

    assert results.case_ids == ("a_1",)


def test_names_come_from_the_file_beside_the_predictions(folders: tuple[Path, Path]) -> None:
    table = ClassTable.from_values([0, 1, 2, 9], {0: "air", 1: "head", 2: "tail", 9: "cyst"})
    write_label_files(folders[0], table)

    results = evaluate_folder(*folders, QUICK)

    assert results.structures == ("head", "tail", "cyst")
    assert results.summary()["cyst"]["dice"].absent == 2


def test_probabilities_and_pictures_beside_predictions_are_left_alone(
    folders: tuple[Path, Path],
) -> None:
    write(folders[0] / "a_1_probabilities.nii.gz", blocks())
    (folders[0] / "a_1.png").write_bytes(b"")

    assert evaluate_folder(*folders, QUICK).case_ids == ("a_1", "b_2")


def msd(folder: Path) -> Path:
    lists = {
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": [{"image": "./imagesTr/c_3.nii.gz", "label": "./labelsTr/c_3.nii.gz"}],
        "validation": [
            {"image": f"imagesTr/{c}.nii.gz", "label": f"labelsTr/{c}.nii.gz", "subject": "S7"}
            for c in ("a_1", "b_2")
        ],
    }
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps(lists))
    for name in ("a_1", "b_2", "c_3"):
        write(folder / "labelsTr" / f"{name}.nii.gz", blocks())
    return folder


def test_an_msd_folder_gives_names_subjects_and_lists(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    source = msd(tmp_path / "msd")

    for labels in (source, source / "labelsTr", source / "dataset.json"):
        results = evaluate_folder(folders[0], labels, QUICK, part="validation")

        assert results.structures == ("Anterior", "Posterior")
        assert results.case_ids == ("a_1", "b_2")
        assert results.subjects == ("S7",)


def test_an_nnunet_dataset_gives_names_and_regions(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    guesses, labels = folders
    named = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    (labels / "dataset.json").write_text(json.dumps({"labels": named}))
    holed = blocks()
    holed[0, 0, 0] = 3
    write(labels / "a_1.nii.gz", holed)

    results = evaluate_folder(guesses, labels, QUICK)

    assert results.structures == ("whole", "core")
    assert dice(results, "b_2", "whole") == 1.0


def test_regions_are_scored_where_the_predictions_say_so(folders: tuple[Path, Path]) -> None:
    guesses, labels = folders
    for folder in folders:
        write(folder / "a_1.nii.gz", blocks((1, 2, 4)))
    write_label_files(guesses, ClassTable.from_values([0, 1, 2, 4]), SCHEMES["brats2021"])

    results = evaluate_folder(guesses, labels, QUICK)

    assert results.structures == ("TC", "WT", "ET")
    write(labels / "a_1.nii.gz", blocks((1, 3)))
    with pytest.raises(UserError, match="`brats2021`"):
        evaluate_folder(guesses, labels, QUICK)


def test_a_label_without_prediction_is_an_error_unless_allowed(
    folders: tuple[Path, Path],
) -> None:
    guesses, labels = folders
    (guesses / "a_1.nii.gz").unlink()

    with pytest.raises(UserError, match="1 of 2 labels have no prediction: `a_1`"):
        evaluate_folder(guesses, labels, QUICK)
    allowed = evaluate_folder(guesses, labels, EvaluationConfig(allow_missing=True, resamples=9))

    assert dice(allowed, "a_1", "label 1") == 0.0
    assert allowed.summary()["label 1"]["dice"].missed == 1


@pytest.mark.parametrize("deleted", ["small", "tiny"])
def test_deleting_the_prediction_of_a_small_image_does_not_lower_a_mean_distance(
    deleted: str, tmp_path: Path
) -> None:
    """Two small images rightly without class 2; a large one in which it is missed: 60 times as
    large, so that a charge of their own diagonals would halve the mean distance."""
    guesses, labels = tmp_path / "predictions", tmp_path / "labels"
    write(labels / "large.nii.gz", blocks(), np.diag([48.0, 72.0, 150.0, 1.0]))
    write(guesses / "large.nii.gz", blocks((1,)), np.diag([48.0, 72.0, 150.0, 1.0]))
    for name in ("small", "tiny"):
        write(labels / f"{name}.nii.gz", blocks((1,)))
        write(guesses / f"{name}.nii.gz", blocks((1,)))
    config = EvaluationConfig(allow_missing=True, resamples=50)

    before = evaluate_folder(guesses, labels, config).summary()["label 2"]["hd95_mm"]
    (guesses / f"{deleted}.nii.gz").unlink()
    after = evaluate_folder(guesses, labels, config).summary()["label 2"]["hd95_mm"]
    (guesses / "large.nii.gz").unlink()
    last = evaluate_folder(guesses, labels, config).summary()["label 2"]["hd95_mm"]

    assert (before.n, after.n, last.n) == (1, 2, 2)
    assert before.mean is not None
    assert after.mean == pytest.approx(before.mean)
    assert last.mean == pytest.approx(before.mean)


def test_grids_that_differ_are_refused(folders: tuple[Path, Path]) -> None:
    guesses, labels = folders
    moved = AFFINE.copy()
    moved[0, 3] = 3.0
    write(guesses / "a_1.nii.gz", blocks(), moved)

    with pytest.raises(UserError, match="3 mm apart"):
        evaluate_folder(guesses, labels, QUICK)


def test_grids_that_differ_in_storage_order_alone_are_the_same(
    folders: tuple[Path, Path],
) -> None:
    guesses, labels = folders
    flipped = AFFINE @ np.array([[-1, 0, 0, 12], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    write(guesses / "a_1.nii.gz", blocks()[::-1], flipped)

    assert dice(evaluate_folder(guesses, labels, QUICK), "a_1", "label 2") == 1.0


def test_values_outside_the_class_table_are_refused(folders: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match="2"):
        evaluate_folder(*folders, QUICK, classes=ClassTable.from_values([0, 1]))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda g, r: [p.unlink() for p in g.iterdir()], "holds no label maps"),
        (lambda g, r: [p.rename(p.with_name(f"x{p.name}")) for p in list(g.iterdir())], "name of"),
        (lambda g, r: write(g / "a_1.nii", blocks()), "both label maps of `a_1`"),
        (lambda g, r: (g / "labels.json").write_text("{"), "it is no JSON"),
        (lambda g, r: (g / "labels.json").write_text("{}"), "does not list classes"),
        (lambda g, r: (r / "dataset.json").write_text('{"labels": {"a": "b"}}'), "neither"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_sentence(
    folders: tuple[Path, Path], spoil: object, message: str
) -> None:
    spoil(*folders)  # type: ignore[operator]

    with pytest.raises(UserError, match=message):
        evaluate_folder(*folders, QUICK)


def test_a_missing_folder_and_a_list_that_is_not_there_are_named(
    folders: tuple[Path, Path],
) -> None:
    with pytest.raises(UserError, match="does not exist"):
        evaluate_folder(folders[0] / "nowhere", folders[1], QUICK)
    with pytest.raises(UserError, match="list `test`"):
        evaluate_folder(*folders, QUICK, part="test")


def test_ignored_voxels_of_a_class_table_count_nowhere(folders: tuple[Path, Path]) -> None:
    guesses, labels = folders
    holed = blocks()
    holed[blocks(shift=1) != holed] = 200
    write(labels / "a_1.nii.gz", holed)
    table = ClassTable.from_values([0, 1, 2], ignore_value=200)

    results = evaluate_folder(guesses, labels, QUICK, classes=table)

    assert dice(results, "a_1", "label 1") == 1.0


def test_label_files_are_listed_by_stem(folders: tuple[Path, Path]) -> None:
    files = label_files(folders[1])

    assert files == {name: folders[1] / f"{name}.nii.gz" for name in ("a_1", "b_2")}


@pytest.mark.parametrize("beside", ["labels.json", "dataset.json"])
def test_two_values_of_one_name_are_refused(folders: tuple[Path, Path], beside: str) -> None:
    """Results go by names: of a `dataset.json` the last value stood for both."""
    guesses, labels = folders
    if beside == "labels.json":
        write_label_files(guesses, ClassTable.from_values([1, 2], {1: "cyst", 2: "cyst"}))
    else:
        said = {"labels": {"0": "background", "1": "cyst", "2": "cyst"}}
        (labels / beside).write_text(json.dumps(said))

    with pytest.raises(UserError, match="1 and 2 are both called `cyst`") as caught:
        evaluate_folder(guesses, labels, QUICK)

    assert str(caught.value.where).endswith(beside)


def test_a_class_table_of_values_that_occur_is_read_within_the_limits_of_the_reader(
    folders: tuple[Path, Path],
) -> None:
    assert class_table(*folders, ReadConfig(max_gib=1e-5)).values == (0, 1, 2)
    with pytest.raises(UserError) as caught:
        class_table(*folders, ReadConfig(max_gib=1e-8))
    assert "--read.max_gib" in str(caught.value.remedy)


def test_a_class_table_is_found_beside_predictions(folders: tuple[Path, Path]) -> None:
    table = ClassTable.from_values([0, 1, 2, 9], {1: "head", 2: "tail", 9: "cyst"})
    write_label_files(folders[0], table)

    assert class_table(*folders).names[1:] == ("head", "tail", "cyst")
