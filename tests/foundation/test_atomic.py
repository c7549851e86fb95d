"""Files and folders are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mim3d.foundation.atomic import (
    ASIDE,
    FOREIGN_MOVE_SECONDS,
    FOREIGN_SECONDS,
    TEMPORARY,
    point,
    sweep,
    temporary_name,
    whole_file,
    whole_folder,
    write_json,
    write_text,
)
from mim3d.foundation.errors import DiskError, ExitCode, ResourceError
from mim3d.foundation.owner import Owner


def names(folder):
    return sorted(item.name for item in folder.iterdir())


def test_a_file_appears_whole_and_replaces_the_older_one(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "old")

    with whole_file(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        temporary.write_text("whole")

    assert path.read_text() == "whole"
    assert names(path.parent) == ["a.txt"]


def test_a_failing_write_leaves_the_older_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    with pytest.raises(RuntimeError), whole_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError

    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_failing_folder_leaves_the_older_folder_and_nothing_else(tmp_path):
    path = tmp_path / "run"
    with whole_folder(path) as temporary:
        (temporary / "old").touch()

    with pytest.raises(RuntimeError), whole_folder(path) as temporary:
        (temporary / "half").touch()
        raise RuntimeError

    assert names(path) == ["old"]
    assert names(tmp_path) == ["run"]


def test_a_new_folder_takes_the_place_of_the_older_one(tmp_path):
    path = tmp_path / "run"
    for name in ("old", "new"):
        with whole_folder(path) as temporary:
            (temporary / "deep").mkdir()
            (temporary / "deep" / name).touch()

    assert names(path / "deep") == ["new"]
    assert names(tmp_path) == ["run"]


def test_a_full_disk_is_told_with_what_is_free_and_keeps_the_older_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    with pytest.raises(ResourceError) as caught, whole_file(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    assert "no room to write `a.txt`" in str(caught.value)
    assert "MiB are free" in str(caught.value)
    assert caught.value.exit_code is ExitCode.RESOURCES
    assert path.read_text() == "old"


def test_errors_about_other_files_pass_unchanged(tmp_path):
    (tmp_path / "source").mkdir()

    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "out" / "a.txt"):
        (tmp_path / "source" / "absent").read_bytes()


def test_what_does_not_read_back_is_refused_and_the_older_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    right = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda self, content: right(self, content[:-1]))

    with pytest.raises(DiskError, match="does not read back"):
        write_text(path, "new")

    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_is_replaced_in_one_move(tmp_path, monkeypatch):
    """At no moment does the name stand for nothing: looked at in every call of the system."""
    path = tmp_path / "run"
    with whole_folder(path) as temporary:
        (temporary / "old").touch()
    seen = set()
    sys.addaudithook(lambda event, _: seen.add(path.exists()) if event.startswith("os.") else None)

    with whole_folder(path) as temporary:
        (temporary / "new").touch()

    assert seen == {True}
    assert names(path) == ["new"]
    assert names(tmp_path) == ["run"]


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_without_exchange_a_folder_killed_between_the_moves_comes_back(
    tmp_path, monkeypatch, moves
):
    path = tmp_path / "5"
    with whole_folder(path) as temporary:
        (temporary / "old").touch()

    class Killed(BaseException):
        pass

    made = iter(range(9))

    def replace(source, target):
        if next(made) == moves:
            raise Killed
        real(source, target)

    real = os.replace
    with monkeypatch.context() as patch:
        patch.setattr("mim3d.foundation.atomic.exchange", lambda *names: False)
        patch.setattr("mim3d.foundation.atomic.os.replace", replace)
        with contextlib.suppress(Killed), whole_folder(path) as temporary:
            (temporary / "new").touch()
    sweep(tmp_path)  # the owner lives: it may be just about to make the second move
    monkeypatch.setattr(Owner, "is_alive", lambda self: False)
    sweep(tmp_path)

    assert names(path) == (["new"] if moves == 2 else ["old"])
    assert names(tmp_path) == ["5"]


def test_sweeping_between_the_two_moves_of_a_living_process_spoils_nothing(tmp_path, monkeypatch):
    path = tmp_path / "5"
    with whole_folder(path) as temporary:
        (temporary / "old").touch()
    real = os.replace

    def replace(source, target):
        real(source, target)
        sweep(tmp_path)

    monkeypatch.setattr("mim3d.foundation.atomic.exchange", lambda *names: False)
    monkeypatch.setattr("mim3d.foundation.atomic.os.replace", replace)
    with whole_folder(path) as temporary:
        (temporary / "new").touch()

    assert names(path) == ["new"]
    assert names(tmp_path) == ["5"]


@pytest.mark.parametrize("name", ["5", "a-b-c", "epoch-1-2-3-4-5-6"])
def test_a_folder_moved_aside_by_another_machine_comes_back_after_minutes(
    tmp_path, monkeypatch, name
):
    aside = tmp_path / f"{ASIDE}00000000-12-34-abcdefabcdef-{name}"
    aside.mkdir()
    (aside / "old").touch()

    assert sweep(tmp_path) == 0
    assert names(tmp_path) == [aside.name]

    later = time.time() + FOREIGN_MOVE_SECONDS + 1
    monkeypatch.setattr("mim3d.foundation.atomic.time.time", lambda: later)
    assert sweep(tmp_path) == 1
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("name", ["5", "a-b-c", "1-2-3-4-5-6"])
def test_a_folder_moved_aside_by_an_older_version_comes_back(tmp_path, name):
    (tmp_path / f"{ASIDE}{name}").mkdir()

    assert sweep(tmp_path) == 1
    assert names(tmp_path) == [name]


def test_leftovers_of_another_machine_are_kept_for_a_day(tmp_path):
    leftover = tmp_path / f"{TEMPORARY}00000000-12-34-abcdef.h5"
    leftover.touch()
    kept = sweep(tmp_path)
    old = time.time() - FOREIGN_SECONDS - 60
    os.utime(leftover, (old, old))

    removed = sweep(tmp_path)

    assert (kept, removed) == (0, 1)
    assert names(tmp_path) == []


def test_a_name_of_any_ending_has_room_for_its_temporary_name(tmp_path):
    path = tmp_path / ("a." + "b" * 250)

    write_text(path, "text")

    assert path.read_text() == "text"


def test_json_without_a_meaning_is_refused(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"dice": 0.5})

    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"dice": float("nan")})

    assert json.loads(path.read_text()) == {"dice": 0.5}


def test_a_link_is_relative_and_replaced_in_one_move(tmp_path):
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        point(tmp_path / "last", name)

    assert os.readlink(tmp_path / "last") == "2"
    assert names(tmp_path) == ["1", "2", "last"]


KILLED = """
import os, signal, sys
from pathlib import Path
from mim3d.foundation.atomic import whole_file, whole_folder
here = Path(sys.argv[1])
with whole_folder(here / "folder") as folder, whole_file(here / "file") as file:
    (folder / "half").touch()
    file.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_kept(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, cwd=os.getcwd())
    left = names(tmp_path)
    living = temporary_name(tmp_path / "own")
    living.touch()

    removed = sweep(tmp_path)

    assert len(left) == 2
    assert all(name.startswith(TEMPORARY) for name in left)
    assert removed == 2
    assert names(tmp_path) == [living.name]
