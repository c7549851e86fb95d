from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mim3d.config.view import ViewConfig
from mim3d.foundation.errors import UserError
from mim3d.workflows.view.finding import find
from mim3d.workflows.view.reading import Reader
from mim3d.workflows.view.roots import Roots
from mim3d.workflows.view.sending import as_nifti, difference, overlaps, thinned
from mim3d.workflows.view.view import opened


def voxels_of(dtype):
    x, y, z = np.indices((11, 13, 7))
    return (1 + x + 13 * y + 200 * z).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("uint8", "uint8"), ("int16", "int16"), ("uint16", "uint16"), ("int32", "int32"),
     ("float32", "float32"), (">i2", "int16"), ("int64", "int32"), ("float64", "float32"),
     ("int8", "int32"), ("bool", "int32")],
)  # fmt: skip
def test_voxels_and_affine_are_read_back_by_nibabel(dtype, stored):
    voxels = voxels_of(dtype)
    affine = np.array([[0.2, 1, 0, 5], [2, 0.1, 0, -3], [0, 0, 4, 9], [0, 0, 0, 1.0]])

    read = nib.Nifti1Image.from_bytes(as_nifti(voxels, affine))

    assert read.get_data_dtype() == stored
    np.testing.assert_array_equal(np.asarray(read.dataobj), voxels)
    np.testing.assert_allclose(read.affine, affine, atol=1e-6)
    np.testing.assert_allclose(
        read.header.get_zooms(), np.sqrt((affine[:3, :3] ** 2).sum(0)), rtol=1e-6
    )
    assert read.header.get_xyzt_units()[0] == "mm"


def test_numbers_too_large_for_int32_become_float32():
    voxels = np.array([2**40, 5], np.int64).reshape(2, 1, 1)

    read = nib.Nifti1Image.from_bytes(as_nifti(voxels, np.eye(4)))

    assert read.get_data_dtype() == "float32"
    assert np.asarray(read.dataobj)[0, 0, 0] == 2.0**40


@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    spacing=st.tuples(*[st.floats(0.1, 9)] * 3),
    most=st.integers(1, 400),
)
def test_a_thinned_volume_has_at_most_so_many_voxels_each_at_its_place(shape, spacing, most):
    voxels = np.arange(np.prod(shape)).reshape(shape)
    affine = np.diag([*spacing, 1.0])

    thin, placed, steps = thinned(voxels, affine, most)

    assert thin.size <= most
    for index in np.ndindex(thin.shape):
        there = tuple(i * s for i, s in zip(index, steps, strict=True))
        assert thin[index] == voxels[there]
        np.testing.assert_allclose(placed @ [*index, 1], affine @ [*there, 1], rtol=1e-9)


def test_a_volume_that_fits_is_not_thinned():
    _, _, steps = thinned(np.zeros((11, 13, 7)), np.eye(4), 11 * 13 * 7)

    assert steps == (1, 1, 1)


def test_the_finest_axis_is_thinned_first():
    _, _, steps = thinned(np.zeros((10, 10, 10)), np.diag([0.5, 1, 5, 1]), 500)

    assert steps == (2, 1, 1)


def pair_of(study, case):
    roots = Roots.of((str(study),))
    catalogue = find(roots, ViewConfig().read)
    reader = Reader(roots, ViewConfig().read)
    layers = [catalogue.layers[n] for n in catalogue.cases[case].layers]
    by_role = {layer.role: layer for layer in layers}
    return reader.labels(by_role["label"]), reader.labels(by_role["prediction"])


def test_a_difference_says_of_each_voxel_who_is_wrong(study):
    truth, guess = pair_of(study, "case_c")

    found = difference(truth, guess)

    one, two = truth.volume.voxels[0], guess.volume.voxels[0]
    for index in np.ndindex(one.shape):
        a, b = one[index], two[index]
        want = 0 if a == b else 1 if a == 0 else 2 if b == 0 else 3
        assert found[index] == want
    assert {1, 2} <= set(np.unique(found).tolist())


def test_dice_computed_here_is_that_of_evaluate(study):
    truth, guess = pair_of(study, "case_c")

    rows = overlaps(truth, guess)

    evaluated = json.loads((study / "results.json").read_text())["cases"]
    want = {row["class"]: row["dice"] for row in evaluated if row["case_id"] == "case_c"}
    assert {row["class"]: row["dice"] for row in rows} == pytest.approx(want)


def test_a_class_that_one_side_lacks_scores_zero_and_says_so(study):
    labels = nib.load(study / "labels/case_a.nii.gz")
    lacking = np.asarray(labels.dataobj).copy()
    lacking[lacking == 7] = 0
    nib.save(nib.Nifti1Image(lacking, labels.affine), study / "predictions/mae/case_a.nii.gz")

    rows = {row["class"]: row for row in overlaps(*pair_of(study, "case_a"))}

    assert (rows["left kidney"]["dice"], rows["left kidney"]["counted_as"]) == (0.0, "missed")
    assert (rows["liver"]["dice"], rows["liver"]["counted_as"]) == (1.0, "case")


def test_two_grids_are_not_compared(study):
    labels = nib.load(study / "labels/case_a.nii.gz")
    moved = labels.affine.copy()
    moved[:3, 3] += 2
    nib.save(
        nib.Nifti1Image(np.asarray(labels.dataobj), moved), study / "predictions/mae/case_a.nii.gz"
    )

    with pytest.raises(UserError):
        overlaps(*pair_of(study, "case_a"))


def test_labels_without_names_take_those_of_their_prediction(study):
    truth, guess = pair_of(study, "case_a")

    assert truth.classes == guess.classes
    assert "liver" in truth.classes.names


def test_a_value_that_is_not_in_the_list_keeps_the_names_of_the_others(study):
    labels = nib.load(study / "predictions/mae/case_a.nii.gz")
    more = np.asarray(labels.dataobj).copy()
    more[0, 0, 0] = 5
    nib.save(nib.Nifti1Image(more, labels.affine), study / "predictions/mae/case_a.nii.gz")

    _, guess = pair_of(study, "case_a")

    names = dict(zip(guess.classes.values, guess.classes.names, strict=True))
    assert names[3] == "liver"
    assert names[5] == "label 5 (not in the list)"


def colours_of(labels):
    return dict(zip(labels.classes.values, labels.classes.colours, strict=True))


def test_a_value_without_a_name_has_the_colour_it_has_where_other_classes_occur_too(study):
    (study / "predictions/mae/labels.json").unlink()
    labels = nib.load(study / "labels/case_a.nii.gz")
    lacking = np.asarray(labels.dataobj).copy()
    lacking[lacking == 3] = 0
    nib.save(nib.Nifti1Image(lacking, labels.affine), study / "predictions/mae/case_a.nii.gz")

    truth, guess = map(colours_of, pair_of(study, "case_a"))

    assert sorted(guess) == [0, 7]
    assert guess[7] == truth[7] != truth[3]


def test_a_class_has_one_colour_though_the_prediction_lists_fewer_classes(study):
    names = {"background": 0, "liver": 3, "spleen": 5, "left kidney": 7}
    (study / "labels/dataset.json").write_text(json.dumps({"labels": names}))

    truth, guess = map(colours_of, pair_of(study, "case_a"))

    assert len(set(truth.values())) == len(truth) == 4
    assert guess[7] == truth[7]


def test_a_class_that_only_the_prediction_lists_takes_no_other_ones_colour(study):
    names = {"background": 0, "left kidney": 7}
    (study / "labels/dataset.json").write_text(json.dumps({"labels": names}))

    truth, guess = map(colours_of, pair_of(study, "case_a"))

    assert guess[7] == truth[7]
    assert len(set(guess.values())) == len(guess) == 3


def test_the_last_volumes_stay_in_memory_and_old_ones_do_not(study, monkeypatch):
    monkeypatch.setattr("mim3d.workflows.view.reading.KEPT_BYTES", 1)
    with opened(str(study)) as (server, _):
        server.answers.to("image/0/0.nii")
        server.answers.to("image/1/0.nii")

        assert len(server.answers._reader._kept) == 1
