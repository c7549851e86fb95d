from __future__ import annotations

import ctypes
import os
import time

from tests.reliability.child import judged


def act(word: str) -> str:
    if word == "segfault":
        ctypes.string_at(0)
    if word == "loop":
        while True:
            pass
    if word == "sleep":
        time.sleep(100)
    if word == "eat":
        bytearray(1 << 30)
    if word == "exit":
        os._exit(7)
    if word == "raise":
        raise ValueError("no")
    return word.upper()


def test_every_item_has_its_outcome_whatever_the_ones_before_it_did():
    words = ["a", "segfault", "b", "loop", "eat", "sleep", "exit", "raise", "c"]

    found = judged(words, act, seconds=0.1)

    assert [each.fault for each in found] == [
        None,
        "killed by SIGSEGV",
        None,
        "over 0.1 s of the processor",
        "more memory than it may have",
        "stood still for 1.2 s",
        "exited with 7",
        "ValueError: no",
        None,
    ]
    assert [each.outcome for each in found if each.outcome] == ["A", "B", "C"]
