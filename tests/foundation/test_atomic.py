"""Files and folders are written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

from mim3d.foundation.atomic import (
    TEMPORARY,
    point,
    sweep,
    temporary_name,
    whole_file,
    whole_folder,
    write_json,
    write_text,
)
from mim3d.foundation.errors import ExitCode, ResourceError


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


def test_other_system_errors_pass_unchanged(tmp_path):
    with pytest.raises(PermissionError), whole_file(tmp_path / "a.txt"):
        raise PermissionError(errno.EACCES, "Permission denied")


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
