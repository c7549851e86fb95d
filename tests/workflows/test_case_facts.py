"""What a pretext task is told of the store, and runs of pre-training that learn where to mask."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from archives import SHAPE, write_archive
from preparing import config_with, write_nifti
from safetensors import safe_open
from safetensors.torch import load_file

from mim3d.config.objective import GuideConfig, PretextConfig, SupervisedConfig
from mim3d.config.reading import read_config
from mim3d.config.verbs import PretrainConfig
from mim3d.data.prepare import prepare_store
from mim3d.data.splits import pretraining_cases, training_cases
from mim3d.data.store import open_store
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.reporting import Silent
from mim3d.objectives.base import Moment
from mim3d.objectives.masked import Masked
from mim3d.workflows.case_facts import (
    told_cases,
    volume_grids,
    weights_on,
    with_classes,
)
from mim3d.workflows.pretrain import pretrain

RAMP = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
FAR = np.array([[1.0, 0, 0, 5e3], [0, 1, 0, 5e3], [0, 0, 1, 5e3], [0, 0, 0, 1]])
SUPERVISED = PretextConfig(supervised=SupervisedConfig("label"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    prepare_store(write_archive(folder / "a.npz"), folder / "store", config_with())
    return folder / "store"


def test_grids_are_those_of_the_stored_volumes(store: Path) -> None:
    opened = open_store(store)
    cases = opened.ids("training")

    grids = volume_grids(opened, cases)

    assert tuple(grids) == cases
    for case_id, grid in grids.items():
        assert grid.shape == SHAPE
        with opened.open(case_id) as case:
            np.testing.assert_array_equal(grid.affine, case.affine)


def test_classes_are_the_stores_unless_they_are_named(store: Path) -> None:
    opened = open_store(store)
    named = replace(SUPERVISED, supervised=SupervisedConfig("label", classes=(2.0, 0.0, 1.0)))

    assert with_classes(SUPERVISED, opened).supervised.classes == (0.0, 1.0, 2.0)
    assert with_classes(named, opened) == named
    assert with_classes(PretextConfig(), opened) == PretextConfig()
    with pytest.raises(UserError, match="no target `grade`"):
        with_classes(replace(SUPERVISED, supervised=SupervisedConfig("grade")), opened)
    with pytest.raises(ConfigError, match="not for `objective.name dino`"):
        with_classes(replace(SUPERVISED, name="dino"), opened)


def test_numbers_that_are_no_classes_are_refused(store: Path) -> None:
    opened = open_store(store)
    opened.entries = {
        name: replace(entry, targets={"age": 0.5 + place})
        for place, (name, entry) in enumerate(opened.entries.items())
    }

    with pytest.raises(ConfigError, match="the values of the target `age` are no classes"):
        with_classes(replace(SUPERVISED, supervised=SupervisedConfig("age")), opened)


def test_told_are_the_cases_that_a_fine_tuning_of_so_few_labels_is_given(store: Path) -> None:
    """And all where no number is said."""
    opened = open_store(store)
    config = PretrainConfig(objective=SUPERVISED)
    cases = pretraining_cases(opened, config.data, 3)
    few = replace(config, data=replace(config.data, labels=2),
                  training=replace(config.training, seed=3))  # fmt: skip

    told = told_cases(opened, few, cases)

    assert told_cases(opened, config, cases) == cases
    assert set(told) == set(training_cases(opened, few.data, 3, ("label",)))
    assert len({opened.subject(case) for case in told}) == 2


def _run(store: Path, out: Path, fields: dict[str, Any] | None = None, **guide: Any) -> Path:
    config = read_config(
        "msmae",
        PretrainConfig,
        {
            "data.store": str(store),
            "data.crop_size": "8,8,4",
            "encoder.patch": "2,2,2",
            "encoder.depth": "2",
            "encoder.width": "24",
            "encoder.heads": "2",
            "objective.decoder_width": "24",
            "training.steps": "6",
            "training.batch_size": "4",
            "training.checkpoint_every": "3",
            "training.validate_every": "3",
            "training.pictures_every": "0",
            "training.log_every": "1",
            "training.device": "cpu",
            "training.precision": "fp32",
            "training.threads": "1",
            "optim.warmup_steps": "1",
            "probes.every": "0",
        },
    )
    objective = replace(
        config.objective, guide=replace(config.objective.guide, **guide), **(fields or {})
    )
    pretrain(replace(config, objective=objective), out=str(out), reporter=Silent())
    return out


@pytest.mark.parametrize(
    "guide",
    [{}, {"by": "loss", "queries": None, "share": (0.0, 0.5)},
     {"by": "loss", "queries": None, "source": "teacher", "every": 2}],
    ids=["attention", "loss", "teacher"],
)  # fmt: skip
def test_the_msmae_recipe_runs_learns_maps_and_writes_an_encoder_alone(
    store: Path, tmp_path: Path, guide: dict[str, Any]
) -> None:
    run = _run(store, tmp_path / "run", **guide)

    last = run / "checkpoints" / "last"
    state = load_file(last / "state.safetensors")
    evidence = state["weights/masks.guide.maps.evidence"]
    assert len(evidence) == 5 * 6 * 7 * 4  # five training cases of 11 x 13 x 7 voxels
    assert (evidence > 0).float().mean() > 0.3
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    logged = [line for line in lines if line["kind"] == "train"]
    assert all(0 < line["supervised_loss"] < 5 for line in logged)
    assert all(line["labelled_share"] == 1 for line in logged)
    with safe_open(last / "weights.safetensors", "pt") as weights:
        assert all(name.startswith(("encoder.", "decoder.")) for name in weights.keys())  # noqa: SIM118
    kept = (run / "config.yaml").read_text()
    assert "classes" in kept  # the run knows them without its store


@pytest.mark.parametrize("by", ["attention", "loss"])
def test_self_distillation_leads_its_masks_by_what_both_views_have_told(
    store: Path, tmp_path: Path, by: str
) -> None:
    smit = {"name": "smit", "drop_ratio": 0.0, "supervised": SupervisedConfig()}

    run = _run(store, tmp_path / "run", smit, by=by, queries=None)

    state = load_file(run / "checkpoints" / "last" / "state.safetensors")
    evidence = state["weights/masks.guide.maps.evidence"]
    assert (evidence > 0).float().mean() > 0.5


def test_a_run_that_broke_off_ends_with_the_bits_of_one_that_did_not(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _run(store, tmp_path / "whole")
    real = Masked.after_update

    def broken(task: Masked, moment: Moment) -> None:
        if moment.step == 4:
            raise RuntimeError("the machine goes down")
        real(task, moment)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="goes down"):
        patch.setattr(Masked, "after_update", broken)
        _run(store, tmp_path / "broken")
    resumed = _run(store, tmp_path / "broken")  # from the checkpoint of step 3

    ours, theirs = (
        load_file(run / "checkpoints" / "last" / "state.safetensors") for run in (resumed, whole)
    )
    assert "weights/masks.guide.maps.read_sums" in theirs
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def _priors(store: Path, folder: Path) -> Path:
    """Weights of 1 in the lower half along x of each case, at half its spacing, else 0."""
    opened = open_store(store)
    folder.mkdir()
    for case_id, grid in volume_grids(opened, opened.ids("training")).items():
        fine = np.zeros([2 * side for side in grid.shape], np.float32)
        fine[: len(fine) // 2] = 1.0
        affine = grid.affine @ np.diag([0.5, 0.5, 0.5, 1.0])
        affine[:3, 3] -= grid.affine[:3, :3] @ np.full(3, 0.25)
        write_nifti(folder / f"{case_id}.nii.gz", fine, affine)
    return folder


def test_volumes_of_weights_lead_masks_and_are_taken_to_the_grid_of_their_case(
    store: Path, tmp_path: Path
) -> None:
    """Weights at half the spacing; voxel 5 of 11 lies between 1 and 0, and gets half of each."""
    folder = _priors(store, tmp_path / "priors")
    opened = open_store(store)
    (case_id, grid), *_ = volume_grids(opened, opened.ids("training")).items()

    weights = weights_on(grid, folder / f"{case_id}.nii.gz")
    run = _run(store, tmp_path / "run", by="prior", priors=str(folder), queries=None)

    assert weights.shape == SHAPE == (11, 13, 7)
    np.testing.assert_allclose(weights[:5], 1.0)
    np.testing.assert_allclose(weights[5], 0.5, atol=1e-6)
    np.testing.assert_allclose(weights[6:], 0.0)
    state = load_file(run / "checkpoints" / "last" / "state.safetensors")
    values = state["weights/masks.guide.maps.sums"].reshape(-1, 6, 7, 4)
    assert len(values) == len(opened.ids("training"))
    # Cells of two voxels: 0-1, 2-3, 4-5, ... along x; the volume of weights itself ends in the
    # outer half of its last voxels, which are there and count.
    expected = torch.tensor([1, 1, 0.75, 0, 0, 0])[None, :, None, None]
    torch.testing.assert_close(values, expected.expand_as(values), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: path.unlink(), "1 of 5 cases have no volume of weights of their own"),
        (lambda path: write_nifti(path, RAMP - 1, FAR), "holds weights below 0, down to -1"),
        (lambda path: write_nifti(path, RAMP, FAR), "weighs nothing within its case"),
        (lambda path: write_nifti(path, np.full((2, 2, 2), np.nan, np.float32)), "are not finite"),
    ],
)
def test_weights_that_are_missing_or_none_are_refused(
    store: Path, tmp_path: Path, harm: Any, said: str
) -> None:
    folder = _priors(store, tmp_path / "priors")
    harm(sorted(folder.iterdir())[2])

    with pytest.raises(UserError, match=said):
        _run(store, tmp_path / "run", by="prior", priors=str(folder), queries=None)


def test_the_recipe_masks_as_the_paper() -> None:
    objective = read_config("msmae", PretrainConfig).objective

    assert (objective.mask_ratio, objective.drop_ratio) == (0.45, 0.3)
    assert objective.guide == GuideConfig(
        by="attention", queries="class_token", warmup=0.12, refresh_epochs=5.0
    )
    assert objective.supervised.weight == 0.1
