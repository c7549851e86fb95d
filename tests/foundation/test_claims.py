"""Claims on the items of a folder that several commands fill."""

from __future__ import annotations

import os
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from mim3d.foundation import claims as module
from mim3d.foundation.claims import Claims
from mim3d.foundation.errors import DiskError
from tests.reliability.killing import Child, Say, life


def hold(folder: Path, say: Say) -> None:
    with Claims(folder).claimed("a"):
        say("has it")
        time.sleep(100)


def die_with_it(folder: Path, say: Say) -> None:
    with Claims(folder).claimed("a"), Claims(folder).claimed("b"):
        os._exit(9)


def count_up(folder: Path, say: Say) -> None:
    """Adds 1 to a file, without care for others but by `merging`."""
    for _ in range(20):
        with Claims(folder).merging():
            path = folder / "count"
            path.write_text(str(int(path.read_text()) + 1))


def test_an_item_is_claimed_by_one_living_command(tmp_path: Path) -> None:
    claims = Claims(tmp_path)

    with claims.claimed("a") as first, claims.claimed("a") as second, claims.claimed("b") as other:
        assert (first, second, other) == (True, False, True)
    with claims.claimed("a") as again:
        assert again


def test_the_claim_of_a_killed_command_is_nobodys(tmp_path: Path) -> None:
    child = Child(partial(hold, tmp_path))
    until = time.monotonic() + 60
    while not (tmp_path / "shards/claim-a.lock").exists() and time.monotonic() < until:
        time.sleep(0.01)
    with Claims(tmp_path).claimed("a") as is_mine:
        assert not is_mine

    child.kill()
    child.wait()

    with Claims(tmp_path).claimed("a") as is_mine:
        assert is_mine


def test_who_merges_removes_what_killed_commands_left(tmp_path: Path) -> None:
    life(partial(die_with_it, tmp_path))
    claims = Claims(tmp_path)
    assert {path.name for path in claims.path.iterdir()} == {"claim-a.lock", "claim-b.lock"}

    with claims.claimed("c"), claims.merging():
        claims.clear()
        names = {path.name for path in claims.path.iterdir()}
    with claims.merging():
        pass

    assert names == {"claim-c.lock", "merge.lock"}
    assert list(tmp_path.iterdir()) == []


def test_several_merge_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")

    children = [Child(partial(count_up, tmp_path)) for _ in range(4)]
    faults = [child.wait().fault for child in children]

    assert faults == [None] * 4
    assert (tmp_path / "count").read_text() == "80"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_items_of_others_come_last_and_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    claims, waited = Claims(tmp_path), list[str]()
    taken, over = threading.Event(), threading.Event()

    def elsewhere() -> None:
        with claims.claimed("b"):
            taken.set()
            over.wait(60)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    taken.wait(60)
    done = []
    for item in claims.in_turn("abc", str, waited.append):
        done.append(item)
        if len(done) == 2:
            threading.Timer(0.1, over.set).start()
    thread.join()

    assert done == ["a", "c", "b"]
    assert waited == ["b"]


def test_a_claim_does_not_make_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="its folder is gone"), Claims(tmp_path / "x").claimed("a"):
        pass

    assert not (tmp_path / "x").exists()
