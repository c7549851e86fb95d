"""Locks without flock."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from mim3d.foundation.errors import UserError
from mim3d.training.lock import STALE_AFTER_SECONDS, FolderLock


def pretend(folder: Path, **changes: object) -> None:
    """The lock of someone else."""
    content = {
        "host": "elsewhere",
        "pid": 12,
        "process_start": "99",
        "since": "2026-01-01 00:00:00",
        "job": None,
        "token": "x",
        **changes,
    }
    (folder / "lock.json").write_text(json.dumps(content))


def test_a_lock_excludes_and_is_given_back(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    lock.take()

    with pytest.raises(UserError, match="in use"):
        FolderLock(tmp_path).take()
    lock.release()

    assert list(tmp_path.iterdir()) == []


def test_a_living_lock_of_another_machine_is_respected_and_a_silent_one_taken(
    tmp_path: Path,
) -> None:
    pretend(tmp_path)
    with pytest.raises(UserError, match="process 12 on `elsewhere` since 2026-01-01"):
        FolderLock(tmp_path).take()

    old = time.time() - STALE_AFTER_SECONDS - 1
    os.utime(tmp_path / "lock.json", (old, old))
    lock = FolderLock(tmp_path)
    lock.take()

    assert lock.note is not None
    assert "no sign of life for 5 minutes" in lock.note
    lock.release()


def test_a_process_number_that_was_given_again_is_not_the_owner(tmp_path: Path) -> None:
    mine = FolderLock(tmp_path)
    mine.take()
    content = json.loads((tmp_path / "lock.json").read_text())
    mine.release()
    pretend(tmp_path, host=content["host"], pid=os.getpid(), process_start="1")

    lock = FolderLock(tmp_path)
    lock.take()

    assert lock.note is not None
    lock.release()


def test_a_job_that_was_put_back_in_the_queue_takes_its_own_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(tmp_path, job="77")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with pytest.raises(UserError):
        FolderLock(tmp_path).take()

    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    lock = FolderLock(tmp_path)
    lock.take()

    assert lock.note is not None
    assert "put back in the queue" in lock.note
    lock.release()


def test_a_lock_that_is_being_written_counts_as_held(tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_text("")

    with pytest.raises(UserError, match="in use"):
        FolderLock(tmp_path).take()


def test_a_lock_that_was_taken_over_is_not_removed_by_its_old_owner(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    lock.take()
    pretend(tmp_path)

    lock.release()

    assert json.loads((tmp_path / "lock.json").read_text())["token"] == "x"
