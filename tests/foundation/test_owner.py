"""Processes as others see them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mim3d.foundation.owner import Owner, process_start

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


def test_this_process_lives_and_is_the_same_when_read_back() -> None:
    owner = Owner.this()

    assert owner.pid == os.getpid()
    assert Owner.parse(str(owner)) == owner
    assert owner.is_alive() is True


@pytest.mark.parametrize("text", ["", "abc", "12-abc", "aa-1-2-3", "aa-x-1", "aa-1-", "aa--1-1"])
def test_any_other_text_is_no_owner(text: str) -> None:
    assert Owner.parse(text) is None


@LINUX
def test_a_number_that_was_given_again_is_not_the_owner() -> None:
    owner = Owner.this()

    assert Owner(owner.home, owner.pid, "1").is_alive() is False


def test_a_process_counted_elsewhere_cannot_be_told() -> None:
    assert Owner("00000000", os.getpid(), Owner.this().start).is_alive() is None


@LINUX
def test_a_killed_process_that_nobody_has_waited_for_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    before = process_start(child.pid)

    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    after = process_start(child.pid)
    child.communicate()

    assert before is not None
    assert after is None
