"""Two processes over gloo, started by `torchrun` as a user would, or forked.

Each strategy goes through `torchrun` once, and every trouble does; other tasks are forked, which
saves four imports of torch a test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mim3d.training.run import read_status
from tests.reliability.ranks import finished
from tests.training import rank_program

PROGRAM = Path(__file__).with_name("rank_program.py")


def run(
    folder: Path,
    trouble: str = "none",
    *,
    world: int,
    restarts: int = 0,
    strategy: str = "auto",
    kind: str = "fake",
    accumulation: int = 2,
) -> list[dict[str, Any]]:
    """What each process says in the end."""
    command = [sys.executable]
    if world > 1:
        options = ["--standalone", f"--nproc_per_node={world}", f"--max-restarts={restarts}"]
        command += ["-m", "torch.distributed.run", *options]
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [*command, str(PROGRAM), str(folder), trouble, strategy, kind, str(accumulation)],
        check=False,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return said(folder, world)


def forked(
    folder: Path, *, world: int, strategy: str = "auto", kind: str = "fake", accumulation: int = 2
) -> list[dict[str, Any]]:
    """The same without `torchrun`."""
    folder.mkdir(exist_ok=True)
    finished(partial(rank_program.main, folder, "none", strategy, kind, accumulation), world)
    return said(folder, world)


def said(folder: Path, world: int) -> list[dict[str, Any]]:
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(world)]


def assert_same_training(folder: Path, reference: Path, *, atol: float = 1e-6) -> None:
    ours, theirs = (
        load_file(f / "run" / "checkpoints" / "last" / "state.safetensors")
        for f in (folder, reference)
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        # float32 gradients are added in another order.
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=atol)


def read_log(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "run" / "log.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == kind]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    forked(folder, world=1)
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


@pytest.fixture(scope="module")
def alone_masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone_masked")
    forked(folder, world=1, kind="mae")
    return folder


def assert_same_facts(folder: Path, reference: Path, facts: list[dict[str, Any]]) -> None:
    (expected,) = (json.loads((reference / "rank_0.json").read_text()),)
    assert [fact["world"] for fact in facts] == [2, 2]
    assert facts[0]["digest"] == facts[1]["digest"]
    for fact in facts:
        assert fact["best_step"] == expected["best_step"]
        assert fact["validation"]["look"]["loss"] == pytest.approx(
            expected["validation"]["look"]["loss"], rel=1e-5
        )
    for ours, theirs in zip(read_log(folder, "train"), read_log(reference, "train"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-4)


def test_fsdp_trains_as_one_process_does(alone_masked: Path, tmp_path: Path) -> None:
    """An MAE with clipping, running mean, frozen first steps, accumulation and checkpointing."""
    facts = run(tmp_path, world=2, strategy="fsdp", kind="mae")

    assert_same_facts(tmp_path, alone_masked, facts)
    assert_same_training(tmp_path, alone_masked, atol=3e-5)
    # Threads that outlive the group run into the end of the interpreter, and abort it at times.
    for rank in range(2):
        left = json.loads((tmp_path / f"threads_{rank}.json").read_text())
        assert not [name for name in left if "gloo" in name]


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_teacher_and_its_centres_are_the_same_in_every_process(
    tmp_path: Path, strategy: str
) -> None:
    """Breaks where each process centres by its own crops alone."""
    forked(tmp_path / "one", world=1, kind="smit")
    facts = forked(tmp_path / "two", world=2, kind="smit", strategy=strategy)

    assert_same_facts(tmp_path / "two", tmp_path / "one", facts)
    assert_same_training(tmp_path / "two", tmp_path / "one", atol=5e-4)


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_a_classifier_standardises_by_the_batch_of_all_processes(
    tmp_path: Path, strategy: str
) -> None:
    """And follows the same moments in each."""
    forked(tmp_path / "one", world=1, kind="classifier", accumulation=1)
    facts = forked(tmp_path / "two", world=2, kind="classifier", strategy=strategy, accumulation=1)

    assert_same_facts(tmp_path / "two", tmp_path / "one", facts)
    assert_same_training(tmp_path / "two", tmp_path / "one", atol=3e-5)
    weights = tmp_path / "two" / "run" / "checkpoints" / "last" / "weights.safetensors"
    assert load_file(weights)["decoder.updates"] == 10


@pytest.mark.parametrize("strategy", ["fsdp", pytest.param("ddp", marks=pytest.mark.slow)])
def test_adapters_learn_and_are_merged_as_in_one_process(tmp_path: Path, strategy: str) -> None:
    """With FSDP a map that stays and its adapters are cut and gathered together."""
    forked(tmp_path / "one", world=1, kind="lora")
    facts = forked(tmp_path / "two", world=2, kind="lora", strategy=strategy)

    assert_same_facts(tmp_path / "two", tmp_path / "one", facts)
    assert_same_training(tmp_path / "two", tmp_path / "one", atol=3e-5)
    one, two = (
        load_file(tmp_path / name / "run" / "checkpoints" / "last" / "weights.safetensors")
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    assert not [name for name in two if name.endswith((".down", ".up"))]
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=3e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "accumulation"), [("ddp", 1), ("ddp", 2), ("fsdp", 1)])
def test_ddp_and_fsdp_train_as_one_process_does_however_a_batch_is_parted(
    alone_masked: Path, tmp_path: Path, strategy: str, accumulation: int
) -> None:
    facts = run(tmp_path, world=2, strategy=strategy, kind="mae", accumulation=accumulation)

    assert_same_facts(tmp_path, alone_masked, facts)
    assert_same_training(tmp_path, alone_masked, atol=3e-5)


@pytest.mark.slow
def test_with_fsdp_not_a_number_in_one_process_makes_both_skip_the_step(tmp_path: Path) -> None:
    """The task has a teacher that follows the decoder, and a buffer: they survive being cut."""
    run(tmp_path / "one", "nan", world=1)
    first, second = run(tmp_path / "two", "nan", world=2, strategy="fsdp")

    assert_same_training(tmp_path / "two", tmp_path / "one", atol=3e-5)
    assert (first["skipped"], second["skipped"]) == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("begun", "ended"), [(("ddp", 2), ("fsdp", 2)), (("fsdp", 2), ("auto", 1))]
)
def test_a_run_goes_on_with_another_strategy_and_number_of_processes(
    alone: Path, tmp_path: Path, begun: tuple[str, int], ended: tuple[str, int]
) -> None:
    run(tmp_path, "signal", strategy=begun[0], world=begun[1])
    assert read_status(tmp_path / "run")["state"] == "interrupted"

    run(tmp_path, strategy=ended[0], world=ended[1])

    assert_same_training(tmp_path, alone, atol=3e-5)


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
def test_a_look_that_a_signal_ends_in_the_first_process_ends_in_both(
    alone: Path, tmp_path: Path
) -> None:
    facts = run(tmp_path, "signal in a look", world=2)

    assert [fact["error"] for fact in facts] == ["Interrupted"] * 2
    assert (tmp_path / "run" / "checkpoints" / "last").resolve().name == "4"
    assert read_log(tmp_path, "validation") == []
    run(tmp_path, world=2)
    assert_same_training(tmp_path, alone)


@pytest.mark.slow
def test_after_a_killed_process_torchrun_goes_on_from_the_checkpoint(
    alone: Path, tmp_path: Path
) -> None:
    run(tmp_path, "kill", world=2, restarts=1)

    assert_same_training(tmp_path, alone)
