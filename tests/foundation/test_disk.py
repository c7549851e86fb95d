"""What a disk has against a file, in one sentence."""

from __future__ import annotations

import errno
import os
from collections import namedtuple
from pathlib import Path

import pytest

from mim3d.foundation import disk
from mim3d.foundation.atomic import make_folder, whole_file, whole_folder, write_text
from mim3d.foundation.disk import OUTSIDE, REASONS, check_room, explained, free_bytes
from mim3d.foundation.errors import DiskError, ExitCode

State = namedtuple("State", "f_blocks f_bfree f_bavail f_frsize")


@pytest.mark.parametrize("number", sorted({*REASONS, *OUTSIDE, errno.EMFILE}))
@pytest.mark.parametrize("writer", [whole_file, whole_folder])
def test_every_refusal_of_the_system_is_one_sentence(tmp_path, number, writer) -> None:
    path = tmp_path / "a.txt"

    with pytest.raises(DiskError) as caught, writer(path):
        raise OSError(number, os.strerror(number))

    said = str(caught.value)
    assert "`a.txt`" in said
    assert "\n" not in said
    assert not said.endswith(".")
    assert caught.value.remedy
    assert caught.value.exit_code is ExitCode.RESOURCES
    assert list(tmp_path.iterdir()) == []


def test_room_is_asked_for_before_anything_is_written(tmp_path, monkeypatch) -> None:
    # 3 MiB for everybody, 2 MiB of them for users who are not root.
    monkeypatch.setattr(os, "statvfs", lambda folder: State(100, 3, 2, 2**20))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(DiskError) as caught, whole_file(tmp_path / "a.txt", need=5 * 2**19):
        pytest.fail("the block was entered")

    assert "it needs at least 2.5 MiB and 2.0 MiB are free" in str(caught.value)
    check_room(tmp_path / "a.txt", 2 * 2**20)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    check_room(tmp_path / "a.txt", 3 * 2**20)


def test_a_file_system_that_does_not_say_what_is_free_is_tried(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda folder: State(0, 0, 0, 4096))

    write_text(tmp_path / "a.txt", "text")

    assert free_bytes(tmp_path) is None
    assert (tmp_path / "a.txt").read_text() == "text"


def test_a_disk_that_fills_up_is_told_with_what_was_written(tmp_path) -> None:
    with pytest.raises(DiskError, match=r"at least 3\.0 MiB"), whole_file(tmp_path / "a") as file:
        file.write_bytes(bytes(3 * 2**20))
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_in_the_way_of_a_folder_is_said(tmp_path) -> None:
    write_text(tmp_path / "a", "text")

    with pytest.raises(DiskError, match="`b` cannot be written: a part of its path is a file"):
        write_text(tmp_path / "a" / "b", "text")
    with pytest.raises(DiskError, match="`a` cannot be written"):
        make_folder(tmp_path / "a")


def test_a_folder_that_vanishes_while_it_is_written_to_is_said(tmp_path) -> None:
    path = tmp_path / "share" / "a.txt"

    with pytest.raises(DiskError, match="its folder is gone"), whole_file(path) as temporary:
        path.parent.rmdir()
        temporary.write_text("text")


def test_names_in_bytes_and_relative_names_are_known(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(DiskError), explained(Path("a.txt")):
        raise OSError(errno.EIO, "x", os.fsencode(tmp_path / "a.txt"))
    with pytest.raises(OSError, match="elsewhere"), explained(Path("a.txt")):
        raise OSError(errno.EIO, "x", "/elsewhere/b")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EIO, errno.EISDIR])
@pytest.mark.parametrize("place", ["input.nii", "out/input.nii", "out/a.txt.old", "out/deep/x", ""])
def test_an_error_about_an_input_in_the_same_tree_is_not_blamed_on_the_output(
    tmp_path, number, place
) -> None:
    (tmp_path / "out").mkdir()
    about = tmp_path / place
    if not place and number == errno.EIO:
        return  # the device of a folder above fails: nothing can be written there either

    with pytest.raises(OSError, match=os.strerror(number)), whole_file(tmp_path / "out/a.txt"):
        raise OSError(number, os.strerror(number), str(about))

    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("about", ["path", "temporary", "inside", "beside", "second"])
def test_an_error_about_what_is_written_is_its_own(tmp_path, number, about) -> None:
    path = tmp_path / "out" / "a"

    with pytest.raises(DiskError, match="`a`"), whole_folder(path) as temporary:
        names = {
            "path": (path, None, None),
            "temporary": (temporary, None, None),
            "inside": (temporary / "deep" / "x", None, None),
            "beside": (f"{temporary}.npy", None, None),
            "second": ("/elsewhere/b", None, path),
        }[about]
        raise OSError(number, os.strerror(number), *names)


def test_a_folder_above_that_is_gone_or_shut_is_said(tmp_path, monkeypatch) -> None:
    share = tmp_path / "share"
    path = share / "run" / "a.txt"
    path.parent.mkdir(parents=True)

    with monkeypatch.context() as patch, pytest.raises(DiskError), explained(path):
        patch.setattr(os, "access", lambda folder, mode: folder != str(share))
        raise PermissionError(errno.EACCES, "x", str(share))
    with pytest.raises(DiskError, match="its folder is gone"), explained(path):
        path.parent.rmdir()
        raise FileNotFoundError(errno.ENOENT, "x", str(path.parent))


def test_no_sentence_names_a_folder(tmp_path) -> None:
    error = disk.disk_error(OSError(errno.EACCES, "x"), tmp_path / "a.txt")

    assert str(tmp_path) not in f"{error} {error.remedy}"
