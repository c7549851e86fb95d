"""Processes, devices and precision."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loop_fakes import FakeFeed, FakeTask, training_config

from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.randomness import RandomStream
from mim3d.objectives.base import Moment
from mim3d.training import fabric
from mim3d.training.fabric import Processes, choose_device, choose_precision, processes, start

MOMENT = Moment(0, 1, RandomStream(0, 0))
ROOT = Path(__file__).resolve().parents[2]


def test_processes_are_read_from_what_started_them() -> None:
    torchrun = {
        "TORCHELASTIC_RUN_ID": "x",
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_WORLD_SIZE": "4",
    }
    srun = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"}

    assert processes({}) == Processes(0, 1, 1, "none")
    assert processes(torchrun) == Processes(5, 8, 4, "torchrun")
    assert processes(srun) == Processes(3, 4, 2, "slurm")
    # A batch script without srun: one process, though the job has four tasks.
    assert processes({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) == Processes()
    assert processes({**srun, "SLURM_NTASKS": "1"}) == Processes()


def test_srun_must_say_how_many_tasks_share_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("STEP_ID", "0"), ("PROCID", "1"), ("NTASKS", "2"), ("NNODES", "1")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)

    with pytest.raises(ConfigError, match="srun started 2 tasks") as caught:
        start(training_config())

    assert "--ntasks-per-node" in str(caught.value.remedy)


def test_reading_the_processes_imports_neither_fabric_nor_anything_of_it() -> None:
    script = (
        "import sys; import mim3d.training.loop, mim3d.training.run as r;"
        "from mim3d.training.fabric import processes; processes();"
        "print([m for m in sys.modules if 'lightning' in m or m in ('monai', 'tensorboard')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("word", ["gpu", "cuda:x", "cpu:", "mps", "meta"])
def test_words_that_are_no_device_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=f"`{word}`"):
        choose_device(word)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="torch sees 0 CUDA devices"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16", "bf16"),
        ("flags\t\t: fpu amx_bf16 amx_tile", "bf16"),
        ("flags\t\t: fpu avx2 avx512f", "fp32"),
        ("Features\t: fp asimd", "fp32"),
    ],
)
def test_auto_is_bf16_where_the_cpu_multiplies_it(
    flags: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\n")
    monkeypatch.setattr(fabric, "Path", lambda name: tmp_path / "cpuinfo")

    assert choose_precision("auto", torch.device("cpu")) == expected
    assert choose_precision("fp32", torch.device("cpu")) == "fp32"
    assert choose_precision("bf16", torch.device("cpu")) == "bf16"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_adds_the_gradient_of_its_share_in_the_machines_precision(precision: str) -> None:
    machine = start(training_config(precision=precision))
    task, batch = FakeTask(dropout=0.0), FakeFeed(4).batch(0, range(4))
    stepper = machine.stepper(task)

    outcome = stepper(batch, MOMENT, share=0.25, is_last=True)

    reference = FakeTask(dropout=0.0)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = reference(batch, MOMENT).loss
    (loss.float() / 4).backward()
    assert torch.equal(outcome.loss, loss.detach())
    assert not outcome.loss.requires_grad
    assert set(outcome.logs) == {"drift", "mean_predictor"}
    for name, parameter in reference.named_parameters():
        own = task.get_parameter(name)
        assert own.dtype == torch.float32
        if parameter.grad is not None:
            assert torch.equal(own.grad, parameter.grad), name


def test_validation_sees_the_same_precision() -> None:
    machine = start(training_config(precision="bf16"))

    with machine.autocast():
        product = torch.ones(2, 3) @ torch.ones(3, 2)

    assert product.dtype == torch.bfloat16


def test_alone_all_collectives_are_the_process_itself() -> None:
    machine = start(training_config())

    assert (machine.rank, machine.world, machine.is_first) == (0, 1, True)
    assert machine.largest([1.0, -2.0]) == machine.summed([1.0, -2.0]) == [1.0, -2.0]
    assert machine.gathered("a") == ["a"]
    assert machine.first(lambda: 7) == 7
    machine.hurry(1.0)
    assert machine.lost(RuntimeError("gloo")) is None
    with pytest.raises(UserError, match="x"):
        machine.first(lambda: (_ for _ in ()).throw(UserError("x")))


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_exactness_of_products_is_set_and_put_back(precision: str) -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with fabric.float32_matmul(precision):  # type: ignore[arg-type]
            inside = torch.get_float32_matmul_precision()

        assert (inside, torch.get_float32_matmul_precision()) == (precision, "high")
    finally:
        torch.set_float32_matmul_precision("highest")


def test_threads_are_set_and_put_back() -> None:
    before = torch.get_num_threads()

    with fabric.threads(before + 1):
        inside = torch.get_num_threads()
    with fabric.threads(None):
        unchanged = torch.get_num_threads()

    assert (inside, unchanged, torch.get_num_threads()) == (before + 1, before, before)
