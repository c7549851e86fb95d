"""What ends a training before its time, and how the same command goes on from there."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from loop_fakes import FakeTask
from loop_runs import log, train

from mim3d.data.batch import CropBatch
from mim3d.foundation.errors import Interrupted
from mim3d.objectives.base import Moment, Outcome
from mim3d.training.run import Run, read_status
from mim3d.training.validation import Validator

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def test_a_done_run_is_not_trained_again_and_a_trained_one_only_finished(tmp_path: Path) -> None:
    first = train(tmp_path / "x")
    (tmp_path / "x" / "status.json").unlink()
    task = FakeTask()

    again = train(tmp_path / "x", task=task)

    assert task.calls == []
    assert again.digest == first.digest
    assert (again.steps, again.loss) == (12, first.loss)
    assert Run.create_or_continue(tmp_path / "x", {}).results()["digest"] == first.digest


def test_the_end_of_a_slurm_job_is_a_checkpoint_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 30))

    with pytest.raises(Interrupted, match="the end of the SLURM job after step 1 of 12"):
        train(tmp_path / "x")

    assert read_status(tmp_path / "x")["state"] == "interrupted"
    assert (tmp_path / "x" / "checkpoints" / "last").resolve().name == "1"


def test_a_signal_in_the_last_validation_ends_the_command_and_keeps_the_work(
    tmp_path: Path,
) -> None:
    def look(task: FakeTask, moment: Moment) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return {"x": 1.0}

    with pytest.raises(Interrupted, match="SIGTERM after step 12 of 12"):
        train(tmp_path / "x", validators=[Validator("x", 0, look)])

    task = FakeTask()
    again = Validator("x", 0, lambda task, moment: {"x": 1.0})
    result = train(tmp_path / "x", task=task, validators=[again])
    assert task.calls == []
    assert result.validation == {"x": {"x": 1.0}}


def test_a_signal_in_a_validation_leaves_it_at_once_and_all_its_looks_come_again(
    tmp_path: Path,
) -> None:
    """Of two validators the first was through: its line must not stand in the log twice."""
    looks: list[str] = []

    def first(task: FakeTask, moment: Moment) -> dict[str, float]:
        looks.append("first")
        return {"x": float(moment.step)}

    def second(task: FakeTask, moment: Moment) -> dict[str, float]:
        looks.append("second")
        if looks.count("second") == 1:
            signal.raise_signal(signal.SIGUSR1)
            looks.append("went on")
        return {"y": 1.0}

    validators = [Validator("first", 4, first, best=("x", "max")), Validator("second", 4, second)]
    with pytest.raises(Interrupted, match="SIGUSR1 after step 4 of 12"):
        train(tmp_path / "x", validators=validators)
    assert log(tmp_path / "x", "validation") == []
    result = train(tmp_path / "x", validators=validators)

    assert looks[:4] == ["first", "second", "first", "second"]
    assert "went on" not in looks
    assert [line["step"] for line in log(tmp_path / "x", "validation")] == [4, 4, 8, 8, 12, 12]
    assert result.best == 12.0
    assert result.digest == train(tmp_path / "y").digest


def test_a_second_ctrl_c_leaves_the_folder_as_it_is(tmp_path: Path) -> None:
    class Impatient(FakeTask):
        def forward(self, batch: CropBatch, moment: Moment) -> Outcome:
            if moment.step == 7:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            return super().forward(batch, moment)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "x", task=Impatient())

    assert read_status(tmp_path / "x")["state"] == "running"
    assert (tmp_path / "x" / "checkpoints" / "last").resolve().name == "5"
    assert train(tmp_path / "x").steps == 12


def test_a_full_disk_keeps_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith("checkpoints/10"):
            raise OSError(28, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patch, pytest.raises(Exception, match="no room to write"):
        patch.setattr("mim3d.foundation.atomic.os.replace", full)
        train(tmp_path / "x")

    assert read_status(tmp_path / "x")["state"] == "failed"
    assert (tmp_path / "x" / "checkpoints" / "last").resolve().name == "5"
    assert train(tmp_path / "x").steps == 12
