"""How long processes wait for each other; two of them in threads of one."""

from __future__ import annotations

import itertools
import threading
import time

import pytest
import torch.distributed as dist

from mim3d.foundation.errors import ExitCode, ProcessLost
from mim3d.training import waiting
from mim3d.training.waiting import Patience, stack

SECONDS = 0.4


@pytest.fixture(autouse=True)
def _one_store(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.HashStore()
    monkeypatch.setattr(waiting, "_store", lambda: store)
    # Both ranks live here: each number is asked for twice.
    twice = itertools.chain.from_iterable(itertools.repeat(n, 2) for n in itertools.count(1))
    monkeypatch.setattr(waiting, "_rounds", twice)


def patient(rank: int) -> Patience:
    patience = Patience(rank, 2)
    patience._seconds = SECONDS
    return patience


def test_the_others_wait_as_long_as_the_heart_of_the_first_one_beats() -> None:
    done: list[str] = []

    def first() -> None:
        with patient(0).while_first_works():
            time.sleep(3 * SECONDS)
            done.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    with patient(1).while_first_works():
        done.append("second")
    thread.join()

    assert done == ["first", "second"]


def test_a_first_process_without_a_heartbeat_is_taken_for_dead() -> None:
    silence = "no sign of life from the first one for 0.4 s"
    with pytest.raises(ProcessLost, match=silence) as caught, patient(1).while_first_works():
        raise AssertionError("it went on")

    assert caught.value.exit_code == ExitCode.RESUMABLE


def test_a_first_process_that_fails_lets_the_others_go_on() -> None:
    with pytest.raises(ValueError, match="disk"), patient(0).while_first_works():
        raise ValueError("disk")
    with patient(1).while_first_works():
        passed = True

    assert passed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 2000ms", "waited 0.4 s for"),
        ("Application timeout caused pair closure", "waited 0.4 s for"),
        ("[gloo/transport/tcp/pair.cc:537] Read error", "lost its connection to"),
        ("Connection closed by peer [127.0.0.1]:9646", "lost its connection to"),
    ],
)
def test_an_error_of_a_collective_is_told_as_a_lost_process(text: str, words: str) -> None:
    lost = patient(1).lost(RuntimeError(text))

    assert lost is not None
    assert lost.what.startswith(f"process 1 of 2 {words} another one")


def test_other_errors_and_those_of_a_process_alone_are_none_of_it() -> None:
    assert patient(1).lost(RuntimeError("shapes cannot be multiplied")) is None
    assert patient(1).lost(ValueError("gloo")) is None
    assert Patience(0, 1).lost(RuntimeError("gloo")) is None


def test_a_stack_names_places_without_folders() -> None:
    try:
        raise RuntimeError("here")
    except RuntimeError as error:
        (place,) = stack(error)

    assert place.startswith("test_waiting.py:")
    assert place.endswith(" test_a_stack_names_places_without_folders")
