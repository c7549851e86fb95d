"""Memory that ran out, and what a process holds."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch

from mim3d.foundation.errors import ResourceError, VolumeError
from mim3d.foundation.memory import (
    gigabytes,
    is_out_of_memory,
    lack_told,
    resident_bytes,
    watched,
)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("std::bad_alloc"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        ImportError("libx.so: failed to map segment from shared object"),
    ],
)
def test_lack_of_memory_is_known_by_any_of_its_words(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("out of memory"),
        RuntimeError("shapes differ"),
        OSError(errno.EIO, "x"),
        ImportError("cannot allocate memory in static TLS block"),
    ],
)
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_a_lack_that_libraries_really_raise_is_known() -> None:
    for take in (lambda: np.empty(2**60, np.uint8), lambda: torch.empty(2**60)):
        with pytest.raises((MemoryError, RuntimeError)) as caught:
            take()
        assert is_out_of_memory(caught.value)


def test_what_is_held_in_a_block_is_seen_though_it_is_given_back() -> None:
    before = resident_bytes()
    assert before is not None

    with watched() as peak:
        held = np.ones(60_000_000, np.uint8)
        held.sum()
        del held

    assert peak.bytes is not None
    assert 55e6 < peak.bytes - before < 90e6


def test_bytes_are_said_as_a_person_says_them() -> None:
    assert [gigabytes(b) for b in (64e7, 3.24e9, 110e9)] == ["640 MB", "3.2 GB", "110 GB"]


def test_a_lack_of_memory_becomes_the_sentence_and_nothing_else_does() -> None:
    def sentence() -> ResourceError:
        return ResourceError("it does not fit", code="out-of-memory")

    for lack in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        with pytest.raises(ResourceError, match="it does not fit"), lack_told(sentence):
            raise lack
    for other in (VolumeError("not finite"), RuntimeError("a bug"), KeyError("k")):
        with pytest.raises(type(other)) as caught, lack_told(sentence):
            raise other
        assert caught.value is other
