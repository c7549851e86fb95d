"""Locks without flock."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from mim3d.foundation import lock as lock_module
from mim3d.foundation.errors import DiskError, UserError
from mim3d.foundation.lock import STALE_AFTER_SECONDS, FolderLock, held
from mim3d.foundation.owner import Owner


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


def test_a_process_of_the_same_number_in_another_container_is_respected(tmp_path: Path) -> None:
    mine = Owner.this()
    host = socket.gethostname()
    pretend(tmp_path, host=host, home="00000000", pid=mine.pid, process_start="1")

    with pytest.raises(UserError, match="in use"):
        FolderLock(tmp_path).take()


def test_a_process_that_lives_keeps_its_lock_however_long_it_is_silent(tmp_path: Path) -> None:
    FolderLock(tmp_path).take()
    old = time.time() - 100 * STALE_AFTER_SECONDS
    os.utime(tmp_path / "lock.json", (old, old))

    with pytest.raises(UserError, match="in use"):
        FolderLock(tmp_path).take()


def test_silence_is_measured_by_the_clock_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(tmp_path)
    fast = time.time() + 10 * STALE_AFTER_SECONDS
    monkeypatch.setattr(time, "time", lambda: fast)

    with pytest.raises(UserError, match="in use"):
        FolderLock(tmp_path).take()


def test_a_stale_lock_seen_by_two_is_not_taken_from_the_one_who_was_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second judges before the first takes over, and removes after it."""
    pretend(tmp_path, host=socket.gethostname(), home=Owner.this().home, pid=2**22 + 1)
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    judge = lock_module._why_stale

    def judge_then_wait(path: Path, content: dict[str, Any]) -> str | None:
        why = judge(path, content)
        monkeypatch.setattr(lock_module, "_why_stale", judge)
        first.take()
        return why

    monkeypatch.setattr(lock_module, "_why_stale", judge_then_wait)
    with pytest.raises(UserError, match="in use"):
        second.take()

    first.check()
    assert [item.name for item in tmp_path.iterdir()] == ["lock.json"]


def test_killed_while_taking_a_lock_over_the_next_one_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(tmp_path, host=socket.gethostname(), home=Owner.this().home, pid=2**22 + 1)

    class Killed(BaseException):
        pass

    def die(self: Path, missing_ok: bool = False) -> None:
        if self.name.startswith("lock.json"):
            raise Killed
        real(self, missing_ok)

    real = Path.unlink
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "unlink", die)
        FolderLock(tmp_path).take()
    guards = list(tmp_path.glob("lock.json.*"))
    for guard in guards:
        content = json.loads(guard.read_text())
        guard.write_text(json.dumps({**content, "pid": 2**22 + 1}))
    lock = FolderLock(tmp_path)
    lock.take()

    assert len(guards) == 1
    lock.check()
    lock.release()
    assert not list(tmp_path.glob("lock*"))


def test_file_systems_without_links_lock_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*names: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    lock = FolderLock(tmp_path)
    lock.take()

    with pytest.raises(UserError, match="in use"):
        FolderLock(tmp_path).take()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_one_that_stood_still_sees_that_its_lock_was_taken_over(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    lock.take()
    lock.check()
    pretend(tmp_path, token="another")

    with pytest.raises(UserError, match="taken over by process 12 on `elsewhere`"):
        lock.check()


def test_a_lock_removed_by_hand_stops_nobody(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    lock.take()
    (tmp_path / "lock.json").unlink()

    lock.check()
    lock.release()


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *content: object, **options: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)

    with pytest.raises(DiskError, match="no room to write `lock.json`"):
        FolderLock(tmp_path).take()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EACCES, errno.ESTALE])
def test_what_is_no_lack_of_links_is_said_and_leaves_nothing(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: object, target: object) -> None:
        raise OSError(number, os.strerror(number), str(source), None, str(target))

    monkeypatch.setattr(os, "link", fail)

    with pytest.raises(DiskError, match=r"`lock\.json`"):
        FolderLock(tmp_path).take()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS])
def test_a_disk_that_fills_up_under_a_lock_without_links_leaves_none(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*names: object) -> None:
        raise OSError(number, os.strerror(number))

    def full(path: object, mode: str = "r", **options: Any) -> Any:
        if mode != "x":
            return open(path, mode, **options)  # type: ignore[call-overload]
        open(path, "x").close()  # type: ignore[call-overload]
        return open("/dev/full", "w", **options)

    monkeypatch.setattr(os, "link", refuse)
    with monkeypatch.context() as patch:
        patch.setattr("mim3d.foundation.lock.open", full, raising=False)
        with pytest.raises(DiskError, match="no room"):
            FolderLock(tmp_path).take()
    assert list(tmp_path.iterdir()) == []

    lock = FolderLock(tmp_path)
    lock.take()
    lock.release()


@pytest.mark.parametrize("content", ["", '{"host": "else'])
def test_a_lock_without_a_name_is_held_for_minutes_and_then_nobodys(
    content: str, tmp_path: Path
) -> None:
    path = tmp_path / "lock.json"
    path.write_text(content)

    with pytest.raises(UserError, match="before it wrote its name") as caught:
        FolderLock(tmp_path).take()
    assert "5 minutes" in str(caught.value.remedy)

    long_ago = time.time() - STALE_AFTER_SECONDS - 5
    os.utime(path, (long_ago, long_ago))
    lock = FolderLock(tmp_path)
    lock.take()
    lock.check()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_who_waits_for_a_lock_says_once_for_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    slept: list[float] = []
    lock = FolderLock(tmp_path)
    lock.take()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            lock.release()

    monkeypatch.setattr(lock_module.time, "sleep", sleep)
    with held(tmp_path, tell=said.append):
        assert len(slept) == 3

    assert len(said) == 1
    assert "waiting: run folder" in said[0]
    assert "is in use by process" in said[0]


def test_waiting_ends_where_the_lock_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="its folder is gone"), held(tmp_path / "gone"):
        pass


def test_a_lock_is_free_where_nobody_has_it_or_its_owner_is_gone(tmp_path: Path) -> None:
    lock, other = FolderLock(tmp_path), FolderLock(tmp_path)

    assert other.is_free()
    lock.take()
    assert not other.is_free()
    lock.release()
    assert other.is_free()

    pretend(tmp_path, host=socket.gethostname(), home=Owner.this().home, pid=2**22 + 1)
    assert other.is_free()
