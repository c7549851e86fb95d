"""Killed and continued, in shards, side by side: the records are those of one process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest
from small_benchmark import records, run, write_benchmark

from mim3d.foundation.errors import Interrupted
from mim3d.foundation.reporting import Silent
from mim3d.workflows.convergence import bench, harness
from mim3d.workflows.convergence import report as written


def test_a_finished_benchmark_runs_nothing_again(whole, source, monkeypatch):
    for name in ("pretrain", "finetune", "embedding_health"):
        monkeypatch.setattr(bench, name, lambda *a, **k: pytest.fail("ran again"))
    before = {path: path.read_bytes() for path in whole.glob("records/*.json")}

    result = run(source, whole)

    assert {path: path.read_bytes() for path in whole.glob("records/*.json")} == before
    assert result.facts["missing"] == 0


class StopsAt:
    """Sends the process a signal at one step of one run."""

    def __init__(self, run_name, step):
        self.run_name, self.step, self.is_sent = run_name, step, False

    def say(self, text):
        pass

    def warn(self, text):
        pass

    def progress(self, done, total, text):
        if not self.is_sent and text.startswith(f"{self.run_name}: ") and done >= self.step:
            self.is_sent = True
            os.kill(os.getpid(), 15)


def counted(monkeypatch):
    """Counts how often each run is begun."""
    begun = []
    for name in ("pretrain", "finetune"):
        real = getattr(bench, name)

        def workflow(config, *, out, reporter, _real=real):
            begun.append(Path(out).name)
            return _real(config, out=out, reporter=reporter)

        monkeypatch.setattr(bench, name, workflow)
    return begun


def killed(*arguments):
    raise KeyboardInterrupt


def test_a_kill_inside_runs_and_between_them_changes_no_record(
    whole, source, tmp_path, monkeypatch
):
    begun = counted(monkeypatch)
    with pytest.raises(Interrupted):  # inside the pre-training
        run(source, tmp_path, StopsAt("mae-seed0", 3))
    with pytest.raises(Interrupted):  # inside a fine-tuning
        run(source, tmp_path, StopsAt("mae-labels2-0", 12))
    real = bench.embedding_health
    monkeypatch.setattr(bench, "embedding_health", killed)
    with pytest.raises(KeyboardInterrupt):  # after a run, before its record
        run(source, tmp_path)
    monkeypatch.setattr(bench, "embedding_health", real)

    run(source, tmp_path)

    assert records(tmp_path) == records(whole)
    assert begun.count("scratch-labels2-0") == 1
    assert begun.count("mae-seed0") == 2
    assert begun.count("mae-labels2-0") == 2
    assert begun.count("simmim-seed0") == 2  # found done, not trained again
    assert begun.count("simmim-labels0.5-0") == 1


def test_two_shards_give_the_records_of_one_process(whole, source, tmp_path):
    first = run(source, tmp_path, shard="0/2")
    assert first.facts["missing"] == 3

    run(source, tmp_path, shard="1/2")

    assert records(tmp_path) == records(whole)


def test_two_processes_at_once_give_the_records_of_one(whole, store, tmp_path):
    """They start together, plan once, and the second arm's pre-training is needed by both."""
    text = "  scratch: {}\n  mae: {pretrain: {}}\n  again: {pretrain_of: mae}\n"
    source = write_benchmark(tmp_path / "bench", store, text, labels=[2])
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mim3d", "benchmark", "convergence", str(source), "--out",
               str(out)]  # fmt: skip
    both = [
        subprocess.Popen([*command, "--shard", f"{i}/2"], stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True)
        for i in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[0] for process in both]

    assert [process.returncode for process in both] == [0, 0], said
    alone, found = records(whole), records(out)
    assert found["scratch-labels2-0"] == alone["scratch-labels2-0"]
    assert found["mae-labels2-0"] == alone["mae-labels2-0"]
    assert found["again-labels2-0"] == {**alone["mae-labels2-0"], "arm": "again"}
    assert not list(out.rglob("lock.json*"))
    waits = [line for line in "".join(said).splitlines() if "waits: another process" in line]
    assert len(waits) == len(set(waits))


def test_runs_that_another_process_holds_come_last(source, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "BUSY_WAIT_SECONDS", 0.0)
    made, held = [], ["scratch-labels2-0", "scratch-labels2-0", "mae-labels2-0"]

    def make(self, trial):
        if trial.name in held:
            held.remove(trial.name)
            raise bench.Busy(trial.name)
        made.append(trial.name)
        return None

    monkeypatch.setattr(bench.Bench, "make", make)
    monkeypatch.setattr(harness, "_line", lambda record: "")

    said = []

    class Says(Silent):
        def say(self, text):
            said.append(text)

    run(source, tmp_path, Says())

    assert made[-2:] == ["mae-labels2-0", "scratch-labels2-0"]
    assert len(made) == 6
    # Though it waited twice.
    assert sum("scratch-labels2-0 waits: another process is at" in text for text in said) == 1


def test_a_report_is_read_and_written_while_no_other_command_does(
    whole, source, tmp_path, monkeypatch
):
    """Of two shards that end together, the one that read less could write last."""
    copytree(whole, tmp_path / "out")
    said, locked = [], []

    @contextlib.contextmanager
    def held(folder, name, *, tell):
        with real_held(folder, name, tell=tell) as lock:
            locked.append(folder / name)
            yield lock
        locked.clear()

    def noted(what, real):
        def call(*args, **settings):
            said.append((what, (tmp_path / "out" / harness.REPORT_LOCK).is_file(), len(locked)))
            return real(*args, **settings)

        return call

    real_held = harness.held
    monkeypatch.setattr(harness, "held", held)
    monkeypatch.setattr(harness, "_records", noted("read", harness._records))
    monkeypatch.setattr(written, "write_report", noted("write", written.write_report))

    run(source, tmp_path / "out")

    assert said == [("read", True, 1), ("write", True, 1)]
    assert not (tmp_path / "out" / harness.REPORT_LOCK).exists()
