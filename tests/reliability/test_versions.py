"""Stores and runs of every version are read as they were meant; later ones are refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from mim3d.data.prepare.summary import rebuild
from mim3d.data.store import open_store
from mim3d.data.store.layout import read_json
from mim3d.foundation.errors import ExitCode, UserError
from mim3d.foundation.reporting import Silent
from mim3d.models.weights import encoder_tensors
from mim3d.training.checkpoints import Checkpoints, read_state, read_weights, weights_digest
from mim3d.workflows.doctor import doctor
from mim3d.workflows.run_record import load_preparation
from mim3d.workflows.run_weights import checkpoint_of, encoder_of, initial_record

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
VOXELS = "ba57307ae816f7c0c61179f13351b4a3bd2acaf35bbc7af7bde3762f59fb4cc1"
"""SHA-256 of the voxels and labels of `case_0`, noted when the files were made."""
ENCODER = "08fd3c28ede47ee14040de78b34693aa46c32c589736a3f7c34446a4486f567f"
"""`weights_digest` of the checkpoint's weights, noted when it was made."""


@pytest.mark.parametrize("version", [1, 2])
def test_a_store_of_each_version_gives_its_voxels(version: int) -> None:
    store = open_store(GOLDEN / f"store_records_{version}")

    with store.open("case_0") as case:
        voxels, labels = case.read((0, 0, 0), case.shape[1:])

    assert labels is not None
    assert hashlib.sha256(voxels.tobytes() + labels.tobytes()).hexdigest() == VOXELS
    assert store.ids() == ("case_0", "case_1")
    assert store.fingerprint["cases"] == 2
    assert doctor(str(store.path), reporter=Silent()).exit_code == ExitCode.DONE


@pytest.mark.parametrize("version", [1, 2])
def test_a_run_of_each_version_gives_its_weights(version: int) -> None:
    run = GOLDEN / f"run_{version}"

    tensors, _ = read_weights(checkpoint_of(run))
    saved = read_state(checkpoint_of(run))

    assert weights_digest(tensors) == ENCODER
    assert initial_record(str(run))["encoder_digest"] == weights_digest(encoder_tensors(tensors)[0])
    assert (saved.numbers["step"], saved.numbers["loss"]) == (7, 0.125)
    assert torch.equal(saved.tensors["weights/a"], torch.arange(6.0).view(2, 3))
    assert encoder_of(run).width == 8
    assert load_preparation(run)["trained_on"] == {"case_0": "ab" * 32}
    assert doctor(str(run), reporter=Silent()).exit_code == ExitCode.DONE


def test_records_of_the_first_version_are_written_anew_in_the_present_one(tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(GOLDEN / "store_records_1", store)

    rebuild(store)

    assert read_json(store / "manifest.json")["records"] == 2
    cases = [read_json(GOLDEN / f"store_records_{n}" / "manifest.json")["cases"] for n in (1, 2)]
    assert read_json(store / "manifest.json")["cases"] == cases[0] == cases[1]


@pytest.mark.parametrize("key", ["format", "records"])
def test_a_store_of_a_later_version_is_refused_with_the_command_to_run(
    key: str, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(GOLDEN / "store_records_2", store)
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps({**manifest, key: 9}))

    with pytest.raises(UserError, match="was written by .*format 9, this version") as error:
        open_store(store)

    assert "mim3d prepare" in str(error.value.remedy)


def test_a_checkpoint_of_a_later_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(GOLDEN / "run_2", run, symlinks=True)
    path = run / "checkpoints" / "7" / "state.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 3'))

    with pytest.raises(UserError, match="format 3, this version reads format 2") as error:
        read_state(checkpoint_of(run))

    assert "versions.json" in str(error.value.remedy)


@pytest.mark.parametrize("target", ["../../elsewhere", "/etc", "7/..", "..", "weights", "7 "])
def test_a_link_out_of_the_checkpoints_is_not_followed(target: str, tmp_path: Path) -> None:
    (tmp_path / "last").symlink_to(target)

    with pytest.raises(UserError, match="does not point at one of its checkpoints"):
        Checkpoints(tmp_path).find()
