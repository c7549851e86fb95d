"""Two processes over gloo, started by `torchrun` as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mim3d.training.run import read_status

PROGRAM = Path(__file__).with_name("rank_program.py")


def run(
    folder: Path, trouble: str = "none", *, world: int, restarts: int = 0
) -> list[dict[str, Any]]:
    """What each process says in the end."""
    command = [sys.executable]
    if world > 1:
        options = ["--standalone", f"--nproc_per_node={world}", f"--max-restarts={restarts}"]
        command += ["-m", "torch.distributed.run", *options]
    folder.mkdir(exist_ok=True)
    subprocess.run(
        [*command, str(PROGRAM), str(folder), trouble],
        check=True,
        timeout=240,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            # Without it restarted processes read the addresses of the dead ones (pytorch#135712).
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        },
        capture_output=True,
    )
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(world)]


def assert_same_training(folder: Path, reference: Path) -> None:
    ours, theirs = (
        load_file(f / "run" / "checkpoints" / "last" / "state.safetensors")
        for f in (folder, reference)
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        # float32 gradients are added in another order.
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-6)


def read_log(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "run" / "log.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == kind]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run(folder, world=1)
    return folder


def test_two_processes_train_as_one(alone: Path, tmp_path: Path) -> None:
    first, second = run(tmp_path, world=2)

    assert_same_training(tmp_path, alone)
    assert (first["writes"], second["writes"]) == (True, False)
    assert first["digest"] == second["digest"]
    assert first["validation"] == second["validation"]
    assert first["best"] == second["best"]
    for ours, theirs in zip(read_log(tmp_path, "train"), read_log(alone, "train"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert read_status(tmp_path / "run")["state"] == "done"


@pytest.mark.slow
def test_one_process_with_not_a_number_makes_both_skip_the_step(tmp_path: Path) -> None:
    run(tmp_path / "one", "nan", world=1)
    first, second = run(tmp_path / "two", "nan", world=2)

    assert_same_training(tmp_path / "two", tmp_path / "one")
    assert (first["skipped"], second["skipped"]) == (1, 1)
    (line,) = read_log(tmp_path / "two", "skipped")
    assert {"case": "case_7", "crop": 7} in line["crops"]


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_after_a_checkpoint(alone: Path, tmp_path: Path) -> None:
    facts = run(tmp_path, "signal", world=2)

    assert [fact["error"] for fact in facts] == ["Interrupted"] * 2
    assert read_status(tmp_path / "run")["state"] == "interrupted"
    assert (tmp_path / "run" / "checkpoints" / "last").resolve().name == "7"
    run(tmp_path, world=2)
    assert_same_training(tmp_path, alone)


@pytest.mark.slow
def test_after_a_killed_process_torchrun_goes_on_from_the_checkpoint(
    alone: Path, tmp_path: Path
) -> None:
    run(tmp_path, "kill", world=2, restarts=1)

    assert_same_training(tmp_path, alone)
