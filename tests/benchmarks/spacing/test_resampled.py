"""The proof about spacing runs through on a phantom, and its parts do what its tables say."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from mim3d.config.encoder import EncoderConfig
from mim3d.config.inference import InferenceConfig
from mim3d.config.task import DecoderConfig
from mim3d.data.classes import ClassTable
from mim3d.data.cohort.cases import Case
from mim3d.data.files import read_label, read_volume
from mim3d.data.prepare.volume import VolumeRule
from mim3d.data.resample import resample, resampled_affine
from mim3d.inference.predict import predict_probabilities
from mim3d.inference.seen import seen_volume
from mim3d.inference.segmenter import Segmenter
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from tests.small_benchmark import FINETUNE, PRETRAIN, make_store

SCRIPTS = Path(__file__).resolve().parents[3] / "benchmarks" / "spacing"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """Scripts import each other by name, as `python script.py` lets them."""
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])


@pytest.fixture
def resampled():
    import resampled

    return resampled


@pytest.fixture
def report():
    import resampled_report

    return resampled_report


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A folder with `cohort`, its `store` and two recipes with positions in millimetres."""
    folder = tmp_path_factory.mktemp("spacing")
    make_store(folder, subjects=6)
    for name, text in (("pretrain", PRETRAIN), ("finetune", FINETUNE)):
        recipe = text.replace("encoder: {", "encoder: {wavelengths_mm: [4, 120], ")
        (folder / f"{name}.yaml").write_text(recipe)
    return folder


def line(cohort, out, *more):
    return [
        *("--data", str(cohort / "cohort"), "--store", str(cohort / "store"), "--out", str(out)),
        *("--pretrain", str(cohort / "pretrain.yaml")),
        *("--finetune", str(cohort / "finetune.yaml")),
        *("--pretrain_steps", "2", "--finetune_steps", "2", "--factors", "0.7", "2"),
        *("--cases", "1", *more),
    ]


def test_the_script_runs_through_and_goes_on_where_it_was(resampled, cohort, tmp_path, monkeypatch):
    two = [one for one in resampled.TRAININGS if one.name != "rescaled"]
    monkeypatch.setattr(resampled, "TRAININGS", two)
    resampled.main(line(cohort, tmp_path, "--seeds", "3"))
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("judged/*/*/*.json")}
    (tmp_path / "judged" / "seed-3" / "native" / "2-z.json").unlink()

    resampled.main(line(cohort, tmp_path, "--seeds", "3"))

    content = json.loads((tmp_path / "results.json").read_text())
    assert content["seeds"] == [3]
    assert all(run["steps"] == 2 for run in content["facts"]["runs"].values())
    assert len(content["facts"]["runs"]) == 4, "a pre-training and a fine-tuning each"
    assert len(content["rows"]) == 6 * 7, "0.7 also with one window"
    again = {path for path, at in first.items() if path.stat().st_mtime_ns != at}
    assert {path.name for path in again} == {"2-z.json"}
    assert str(tmp_path) not in json.dumps(content), "results say nothing of the machine's paths"
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["factor"], row["axes"], row["window"]) for row in rows} == {
        ("1.0", "xyz", "of training"),
        *(("0.7", axes, window) for axes in ("xyz", "z") for window in ("of training", "whole")),
        *(("2.0", axes, "of training") for axes in ("xyz", "z")),
    }
    assert (tmp_path / "results.png").stat().st_size > 5000
    table = (tmp_path / "results.md").read_text()
    assert "| 0.7 times along z, one window |" in table
    assert table.count("## ") == 3


def test_another_recipe_in_the_same_folder_is_refused(resampled, cohort, tmp_path):
    (tmp_path / "settings.json").write_text("{}")

    with pytest.raises(SystemExit, match="other options"):
        resampled.main(line(cohort, tmp_path))


def test_data_that_the_store_was_not_made_of_are_refused(resampled, cohort, tmp_path):
    (tmp_path / "other").mkdir()
    for path in (cohort / "cohort" / "imagesTr").iterdir():
        shutil.copy(path, tmp_path / "other" / f"other_{path.name}")

    with pytest.raises(SystemExit, match="lacks 2 of the store's 2"):
        resampled.main([*line(cohort, tmp_path / "out"), "--data", str(tmp_path / "other")])


OWN_MM = (1.0, 1.2, 2.5)
CLASSES = ClassTable.from_values([0, 1, 7])


@pytest.fixture
def case(tmp_path):
    """An image that is a linear function of the place in mm, and labels by half-spaces of it."""
    affine = np.diag([*OWN_MM, 1.0])
    affine[:3, 3] = (-7.0, 4.0, 11.0)
    x, y, z = (
        np.arange(n) * s + o for n, s, o in zip((23, 26, 14), OWN_MM, affine[:3, 3], strict=True)
    )
    image = (2 * x[:, None, None] - y[None, :, None] + 0.5 * z).astype(np.float32)
    labels = np.where(z > 30, 7, (x > 5)[:, None, None] & np.ones(image.shape, bool))
    for name, voxels in (("image", image), ("label", labels.astype(np.uint8))):
        nib.save(nib.Nifti1Image(voxels, affine), tmp_path / f"{name}.nii.gz")
    return Case("one", "somebody", (tmp_path / "image.nii.gz",), tmp_path / "label.nii.gz")


@pytest.mark.parametrize(
    ("factor", "axes", "spacing_mm"),
    [
        (0.7, "xyz", (0.7, 0.84, 1.75)),
        (2.0, "xyz", (2.0, 2.4, 5.0)),
        (3.0, "z", (1.0, 1.2, 7.5)),
    ],
)
def test_a_resampled_case_keeps_its_places_in_mm(resampled, case, factor, axes, spacing_mm):
    found = resampled.resampled_case(case, resampled.Condition(factor, axes), CLASSES)

    assert found.image.spacing_mm == pytest.approx(spacing_mm)
    places = np.stack(np.meshgrid(*map(np.arange, found.image.shape), indexing="ij"), axis=-1)
    x, y, z = np.moveaxis(places @ found.image.affine[:3, :3].T + found.image.affine[:3, 3], -1, 0)
    expected = 2 * x - y + 0.5 * z
    # Smoothing bends a ramp where it ends, and there is nothing to interpolate beyond it.
    inner = tuple(slice(2, -2) if n > 5 else slice(1, -1) for n in found.image.shape)
    np.testing.assert_allclose(found.image.voxels[0][inner], expected[inner], atol=0.01)
    # Labels change between two voxel centres of the original: x between 5 and 6, z 28.5 and 31.
    sure = (np.abs(x - 5.5) > 0.5) & (np.abs(z - 29.75) > 1.25)
    expected = np.where(z > 29.75, 7, x > 5.5)
    assert found.labels.shape == found.image.shape
    assert (found.labels == expected)[sure].all()
    assert (found.case_id, found.subject) == ("one", "somebody")


def test_larger_voxels_hold_the_mean_of_what_they_cover_and_not_a_sample(resampled, tmp_path):
    noise = np.random.default_rng(0).standard_normal((33, 37, 31)).astype(np.float32)
    for name, voxels in (("image", noise), ("label", np.zeros(noise.shape, np.uint8))):
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / f"{name}.nii.gz")
    case = Case("one", "one", (tmp_path / "image.nii.gz",), tmp_path / "label.nii.gz")

    found = resampled.resampled_case(case, resampled.Condition(3.0), CLASSES)

    # A Gaussian of deviation s leaves 1/(2 s sqrt(pi)) of an axis's variance; s = 1.2 voxels here.
    deviation = (2 * np.sqrt((9 - 1) / (8 * np.log(2))) * np.sqrt(np.pi)) ** -1.5
    assert found.image.voxels[0, 2:-2, 2:-2, 2:-2].std() == pytest.approx(deviation, rel=0.2)


def test_at_the_spacing_of_training_the_case_is_left_alone(resampled, case):
    found = resampled.resampled_case(case, resampled.Condition(1.0), CLASSES)

    assert np.array_equal(found.image.voxels, read_volume(case.images[0]).voxels)
    assert np.array_equal(found.labels, read_label(case.label).voxels[0])


AS_TRAINED = InferenceConfig(patch="fixed")
"""What follows the spacing follows already."""


def unetr(positions, trained_mm=(1.0, 1.0, 1.0)):
    torch.manual_seed(0)
    config = EncoderConfig(width=24, depth=2, heads=2, patch=(4, 4, 4), positions=positions)
    network = UNETR(VolumeViT(config), 3, DecoderConfig(name="light")).eval()
    rule = VolumeRule(modalities=("mr",), crop_to_body=False)
    seen = (trained_mm, trained_mm)
    return Segmenter(network, (16, 16, 16), classes=CLASSES, rule=rule, spacings_mm=seen)


def as_arms(resampled, trained_mm):
    """One segmenter as every arm uses it in volumes of `OWN_MM`."""
    own = unetr("rotary_mm", trained_mm)
    return {
        name: resampled.segmenter_for(own, arm, trained_mm, OWN_MM)
        for name, arm in resampled.ARMS.items()
    }


def test_told_one_spacing_mm_are_positions_by_index(resampled, case):
    volume = read_volume(case.images[0])
    assert volume.spacing_mm == pytest.approx(OWN_MM)
    arms = as_arms(resampled, (1.0, 1.0, 1.0))

    by = {name: predict_probabilities(one, volume, AS_TRAINED).voxels for name, one in arms.items()}
    oracle = predict_probabilities(unetr("rotary_index"), volume, AS_TRAINED).voxels

    assert np.array_equal(by["index"], oracle)
    assert np.abs(by["mm"] - oracle).max() > 1e-3


def test_arms_with_resampling_see_the_spacing_of_training_and_answer_on_the_volumes_grid(
    resampled, case
):
    volume = read_volume(case.images[0])
    arms = as_arms(resampled, (1.0, 1.0, 1.0))

    arm = arms["rescaled mm + resampling"]
    ours = predict_probabilities(arm, volume, AS_TRAINED).voxels

    at_1_mm = resample(volume.voxels.astype(np.float32), OWN_MM, (1.0, 1.0, 1.0))
    shape = at_1_mm.shape[1:]
    affine = resampled_affine(volume.affine, volume.shape, shape, (1.0, 1.0, 1.0))
    assert seen_volume(volume, arm).shape == shape
    np.testing.assert_allclose(seen_volume(volume, arm).affine, affine)
    assert ours.shape[1:] == volume.shape
    assert np.array_equal(
        ours, predict_probabilities(arms["index + resampling"], volume, AS_TRAINED).voxels
    )


def test_one_window_of_whole_patches_holds_what_is_seen_of_a_larger_volume(resampled, case):
    volume = read_volume(case.images[0])  # 23 x 26 x 14 voxels of 1 x 1.2 x 2.5 mm
    arms = as_arms(resampled, (1.0, 1.0, 1.0))

    as_it_is = resampled.whole_window(volume, arms["mm"], (4, 8, 4))
    at_1_mm = resampled.whole_window(volume, arms["index + resampling"], (4, 8, 4))

    assert as_it_is == (24, 32, 16)
    assert at_1_mm == (24, 32, 36), "23 x 31 x 35 voxels"


def test_at_the_spacing_of_training_positions_by_mm_and_by_index_are_the_same(resampled, case):
    volume = read_volume(case.images[0])
    told = as_arms(resampled, OWN_MM)

    by = {name: predict_probabilities(one, volume, AS_TRAINED).voxels for name, one in told.items()}

    for name in ("index", "index + resampling", "mm, patch by spacing", "index, patch by spacing"):
        assert np.array_equal(by[name], by["mm"]), name


def scores(report, dice):
    """Scores of two structures of three cases of two subjects from their mean, by seed and arm."""
    subjects = {"a": "s1", "b": "s1", "c": "s2"}
    return {
        seed: {
            arm: {
                name: [
                    {"case_id": case_id, "subject": whom, "structure": structure, "dice": value}
                    for case_id, whom in subjects.items()
                    for structure, value in (
                        ("one", dice(seed, arm, name, case_id) + 0.05),
                        ("two", dice(seed, arm, name, case_id) - 0.05),
                        ("absent", None),
                    )
                ]
                for name in ("1-xyz", "2-xyz")
            }
            for arm in ("mm", "index")
        }
        for seed in (0, 1, 2)
    }


def test_estimates_are_means_over_seeds_and_cases_and_pair_what_is_compared(report, resampled):
    own = {"a": 0.5, "b": 0.7, "c": 0.9}
    lost = {("mm", "2-xyz"): 0.1, ("index", "2-xyz"): 0.3}

    def dice(seed, arm, name, case_id):
        return own[case_id] - 0.02 * seed - lost.get((arm, name), 0.0)

    asked = (resampled.Condition(1.0), resampled.Condition(2.0))
    judged = scores(report, dice)
    _, mm = report.estimates(judged, "mm", asked)
    _, index = report.estimates(judged, "index", asked)

    assert mm["dice"].value == pytest.approx(0.7 - 0.02 - 0.1)
    assert mm["dice"].low < mm["dice"].value < mm["dice"].high
    assert mm["dice"].replicates == mm["dice"].pretrainings == 3
    assert "mm_leads_by" not in mm
    # Seeds and cases differ, what is compared within them does not: no spread is left.
    for estimate, value in (
        (mm["lost"], 0.1),
        (index["lost"], 0.3),
        (index["mm_leads_by"], 0.2),
        (index["mm_loses_less_by"], 0.2),
    ):
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((value,) * 3)


def test_a_seed_that_was_not_judged_whole_is_left_out(report, resampled):
    judged = scores(report, lambda seed, arm, name, case_id: 0.5 + 0.1 * seed)
    del judged[2]["index"]["2-xyz"]

    asked = (resampled.Condition(1.0), resampled.Condition(2.0))
    (_, mm), (_, index) = (report.estimates(judged, arm, asked) for arm in ("mm", "index"))

    assert (mm["dice"].replicates, index["dice"].replicates) == (3, 2)
    assert index["mm_leads_by"].replicates == 2
    assert index["dice"].value == pytest.approx(0.55)
