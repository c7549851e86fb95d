"""Run folders: made, continued, found done, refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mim3d.config.nodes import load
from mim3d.config.writing import dump
from mim3d.foundation.errors import ConfigError, Interrupted, StoppedError, UserError
from mim3d.training.checkpoints import Saved
from mim3d.training.run import Run, differing_keys, read_status
from tests.reliability.killing import Death, Say, life

CONFIG: dict[str, Any] = {
    "data": {"store": "stores/x", "crop_size": (24, 32, 40), "labels": None},
    "optim": {"lr": 1e-5, "betas": [0.9, 0.95]},
    "init": "none",
}


def status(folder: Path) -> dict[str, Any]:
    return read_status(folder)


def test_a_new_run_holds_its_config_and_versions(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "x"

    with Run.create_or_continue(folder, CONFIG) as run:
        run.progress(3, 10)

    assert load((folder / "config.yaml").read_text()) == json.loads(json.dumps(CONFIG))
    assert "torch" in json.loads((folder / "versions.json").read_text())
    assert status(folder)["state"] == "running"
    assert (status(folder)["step"], status(folder)["steps"]) == (3, 10)


def test_a_block_that_ends_well_after_the_last_step_is_done(tmp_path: Path) -> None:
    with Run.create_or_continue(tmp_path / "x", CONFIG) as run:
        run.trained({"loss": 0.25})
    again = Run.create_or_continue(tmp_path / "x", CONFIG)

    assert again.is_done
    assert again.results() == {"loss": 0.25}
    assert not (tmp_path / "x" / "lock.json").exists()


def test_results_are_those_that_were_written(tmp_path: Path) -> None:
    with Run.create_or_continue(tmp_path / "x", CONFIG) as run:
        run.trained({"loss": 0.25})
        run.finish({"dice": 0.9})

    assert Run.create_or_continue(tmp_path / "x", CONFIG).results() == {"dice": 0.9}


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (Interrupted("interrupted by SIGTERM"), "interrupted", "interrupted by SIGTERM"),
        (StoppedError("not finite"), "stopped", "not finite"),
        (UserError("no case", where="x"), "failed", "x: no case"),
        (ZeroDivisionError("secret"), "failed", "ZeroDivisionError"),
    ],
)
def test_how_it_ended_stands_in_the_status(
    error: Exception, state: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(type(error)), Run.create_or_continue(tmp_path / "x", CONFIG) as run:
        run.trained({})
        raise error

    assert (status(tmp_path / "x")["state"], status(tmp_path / "x")["reason"]) == (state, reason)
    assert not Run.create_or_continue(tmp_path / "x", CONFIG).is_done


def test_another_config_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    Run.create_or_continue(tmp_path / "x", CONFIG).release()
    other = {
        **CONFIG,
        "optim": {"lr": 1e-5, "betas": [0.9, 0.999]},
        "data": {**CONFIG["data"], "fold": 2},
    }
    before = {p: p.read_bytes() for p in (tmp_path / "x").iterdir()}

    with pytest.raises(ConfigError) as caught:
        Run.create_or_continue(tmp_path / "x", other)

    assert "`optim.betas` ([0.9, 0.95] there, [0.9, 0.999] now)" in str(caught.value)
    assert "`data.fold` (None there, 2 now)" in str(caught.value)
    assert "optim.lr" not in str(caught.value)
    assert "--overwrite" in str(caught.value.remedy)
    assert {p: p.read_bytes() for p in (tmp_path / "x").iterdir()} == before


def test_a_run_goes_on_with_another_strategy_or_from_before_there_was_one(tmp_path: Path) -> None:
    Run.create_or_continue(tmp_path / "x", CONFIG).release()

    for strategy in ("auto", "fsdp"):
        config = {**CONFIG, "training": {"strategy": strategy}}
        run = Run.create_or_continue(tmp_path / "x", config)
        assert not run.is_done
        run.release()

    # The run keeps the config that it began with.
    assert "strategy" not in (tmp_path / "x" / "config.yaml").read_text()


def test_a_setting_that_is_none_and_was_not_known_before_is_no_difference(tmp_path: Path) -> None:
    with Run.create_or_continue(tmp_path / "x", CONFIG):
        pass
    newer = {**CONFIG, "data": {**CONFIG["data"], "subjects": None}}

    with Run.create_or_continue(tmp_path / "x", newer):
        pass
    newer["data"]["subjects"] = 5
    with pytest.raises(ConfigError, match=r"`data.subjects` \(None there, 5 now\)"):
        Run.create_or_continue(tmp_path / "x", newer)


def test_a_setting_that_an_older_version_did_not_know_had_its_default(tmp_path):
    defaults = {"data": {"crop": 8, "joins": "none"}, "lr": 0.1}
    with Run.create_or_continue(tmp_path / "run", {"data": {"crop": 4}, "lr": 0.2}):
        pass

    now = {"data": {"crop": 4, "joins": "none"}, "lr": 0.2}
    with Run.create_or_continue(tmp_path / "run", now, defaults=defaults) as run:
        assert run.writes

    other = {"data": {"crop": 4, "joins": "left"}, "lr": 0.2}
    with pytest.raises(ConfigError, match=r"`data.joins` \(None there, left now\)"):
        Run.create_or_continue(tmp_path / "run", other, defaults=defaults)
    with pytest.raises(ConfigError, match=r"`data.crop` \(4 there, 8 now\)"):
        # A setting that is there keeps its value, whatever the default is.
        Run.create_or_continue(tmp_path / "run", defaults, defaults=defaults)


def test_overwrite_removes_what_is_the_runs_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    with Run.create_or_continue(folder, CONFIG) as run:
        run.trained({})
        run.write_json("preparation.json", {})
    (folder / "checkpoints" / "7").mkdir(parents=True)
    os.symlink("7", folder / "checkpoints" / "last")
    (folder / "log.jsonl").write_text("{}\n")
    (folder / "notes.txt").write_text("mine")

    with Run.create_or_continue(folder, {"init": "other"}, overwrite=True) as run:
        run.begin()
        assert not run.is_done
        assert run.checkpoints.find("last") is None

    names = {item.name for item in folder.iterdir()}
    assert names == {"config.yaml", "versions.json", "notes.txt"}
    assert load((folder / "config.yaml").read_text()) == {"init": "other"}


def test_what_overwrite_removes_stays_until_the_new_run_begins(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    with Run.create_or_continue(folder, CONFIG) as run:
        run.checkpoints.write(7, weights={}, header={}, saved=Saved({}, {}), is_best=True)
        run.write_json("preparation.json", {"of": "the old"})
        run.trained({})
        run.finish({"dice": 0.9})
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    with pytest.raises(ConfigError), Run.create_or_continue(folder, {}, overwrite=True) as run:
        assert run.checkpoints.find() is None
        run.write_json("preparation.json", {"of": "the new"})
        raise ConfigError("a number with which nothing trains")

    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert Run.create_or_continue(folder, CONFIG).is_done
    with Run.create_or_continue(folder, {}, overwrite=True) as run:
        run.write_json("preparation.json", {"of": "the new"})
        run.progress(0, 10)
        assert run.checkpoints.find() is None
    names = {item.name for item in folder.iterdir()}
    assert names == {"config.yaml", "versions.json", "preparation.json", "status.json"}
    assert json.loads((folder / "preparation.json").read_text()) == {"of": "the new"}
    assert load((folder / "config.yaml").read_text()) == {}


def test_a_process_that_is_not_the_first_finds_no_checkpoint_of_the_run_that_is_replaced(
    tmp_path: Path,
) -> None:
    Run(tmp_path).checkpoints.write(7, weights={}, header={}, saved=Saved({}, {}), is_best=True)

    run = Run(tmp_path, writes=False, replaces=True)

    assert run.checkpoints.find() is None
    run.begin()  # the first one empties the folder
    assert run.checkpoints.find() == tmp_path / "checkpoints" / "7"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["thesis.doc", "config.yaml"])
def test_a_folder_that_is_no_run_is_never_touched(
    name: str, overwrite: bool, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("a: 1\n")

    with pytest.raises(ConfigError, match="not a run folder"):
        Run.create_or_continue(tmp_path, CONFIG, overwrite=overwrite)

    assert [item.name for item in tmp_path.iterdir()] == [name]


def test_killed_before_the_config_was_written_the_run_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "versions.json").write_text("{}")
    (tmp_path / ".mim3d-tmp-999999999-abc.yaml").write_text("half")

    run = Run.create_or_continue(tmp_path, CONFIG)
    run.release()

    assert run.note == "removed 1 unfinished files of a process that was killed"
    assert {item.name for item in tmp_path.iterdir()} == {"config.yaml", "versions.json"}


def test_a_second_process_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    first = Run.create_or_continue(tmp_path / "x", CONFIG)

    for _ in range(20):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
            Run.create_or_continue(tmp_path / "x", CONFIG)
    first.release()

    Run.create_or_continue(tmp_path / "x", CONFIG).release()


def test_the_lock_of_a_killed_process_is_taken_over_with_a_note(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    script = (
        "import os, sys; from mim3d.foundation.lock import FolderLock; from pathlib import Path;"
        f"FolderLock(Path({str(folder)!r})).take(); os._exit(9)"
    )
    Run.create_or_continue(folder, CONFIG).release()
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", script], cwd=root, check=False)
    assert (folder / "lock.json").exists()

    run = Run.create_or_continue(folder, CONFIG)

    assert run.note is not None
    assert "ended without giving the folder back" in run.note
    run.release()


def test_processes_that_are_not_the_first_write_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path / "x", writes=False)

    with run:
        run.progress(1, 2)
        run.write_json("a.json", {})
        run.trained({})

    assert not (tmp_path / "x").exists()


def test_keys_differ_by_value_presence_and_depth() -> None:
    one = {"a": {"b": 1, "c": [1, 2]}, "d": None, "e": {}}
    other = {"a": {"b": 1, "c": [1, 3]}, "e": {"f": None}}

    assert differing_keys(one, other) == {
        "a.c": ([1, 2], [1, 3]),
        "d": (None, None),
        "e": ({}, None),
        "e.f": (None, None),
    }
    assert differing_keys(one, one) == {}


def test_killed_at_any_file_operation_of_overwrite_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where files of others lie beside the run, which are never touched."""
    # Looking up all packages makes hundreds of operations elsewhere.
    monkeypatch.setattr("mim3d.training.run.versions", lambda: {"mim3d": "x"})

    def begin(folder: Path, say: Say) -> None:
        with Run.create_or_continue(folder, CONFIG, overwrite=True) as run:
            run.begin()
            say("begun")

    begun = tmp_path / "begun"
    with Run.create_or_continue(begun, {"init": "other"}) as run:
        run.trained({})
    for name in ("7/weights", "8/weights", "8/state"):
        (begun / "checkpoints" / name).parent.mkdir(parents=True, exist_ok=True)
        (begun / "checkpoints" / name).write_text("x")
    os.symlink("8", begun / "checkpoints" / "last")
    (begun / "notes.txt").write_text("mine")
    shutil.copytree(begun, tmp_path / "alone", symlinks=True)
    operations = life(partial(begin, tmp_path / "alone")).operations
    assert operations > 30
    said: list[str] = []

    for operation in range(operations):
        folder = tmp_path / f"killed-{operation}"
        shutil.copytree(begun, folder, symlinks=True)
        ended = life(partial(begin, folder), Death(operation=operation))
        left = (folder / "checkpoints").exists()
        assert not left or len(list((folder / "checkpoints").rglob("*"))) == 6

        begin(folder, said.append)

        assert (ended.fault, said.pop()) == (None, "begun"), operation
        names = {item.name for item in folder.iterdir()} - {"status.json"}
        assert names == {"config.yaml", "versions.json", "notes.txt"}, operation
        assert load((folder / "config.yaml").read_text()) == load(dump(CONFIG))
        shutil.rmtree(folder)
