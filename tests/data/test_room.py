from __future__ import annotations

import pytest
import torch

from mim3d.data.room import AHEAD, Room, fitting, free_bytes
from mim3d.foundation import machine
from mim3d.foundation.errors import ResourceError

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "RANK": "5", "LOCAL_WORLD_SIZE": "4",
}  # fmt: skip


# Places


def test_room_is_as_far_ahead_as_memory_allows():
    assert fitting([10, 20], None, 3, 90, CPU).size == 30
    assert fitting([10, 20], 2, 3, None, CPU).size == 20 * (2 + AHEAD)
    assert fitting([10, 20], 2, 3, 20 * 3 * 2, CPU).size == 40
    with pytest.raises(ResourceError):
        fitting([10, 20], 2, 3, 20 * 3 * 2 - 1, CPU)


def test_places_of_a_room_do_not_meet():
    own, equal = Room([5, 9, 4], None), Room([5, 9, 4], 2)

    assert [own.take(n) for n in (5, 9, 4)] == [0, 5, 14]
    assert sorted([equal.take(5), equal.take(4)]) == [0, 9]
    assert equal.take(5) is None
    equal.give_back(9)
    assert equal.take(9) == 9


# A GPU


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of 1000 bytes: 100 taken by torch, of which 30 are in use, 300 by others."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (600, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 100)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30)


def test_volumes_leave_a_fifth_of_a_gpu_to_the_training(gpu):
    assert free_bytes(GPU) == 600 + (100 - 30) - 200

    # All that is free would hold this cohort, and nothing could be trained.
    with pytest.raises(ResourceError, match="`cuda:0` are free beside the 20% kept") as caught:
        fitting([100, 120], None, 3, free_bytes(GPU), GPU)
    assert fitting([100, 56], None, 3, free_bytes(GPU), GPU).size == 156

    assert "`--data.window_cases`" in str(caught.value.remedy)
    assert "`--data.resident_on host`" in str(caught.value.remedy)


def test_a_gpu_that_others_have_filled_has_nothing_free(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (50, 1000))

    assert free_bytes(GPU) == 0


def test_the_machine_is_no_way_out_of_itself():
    with pytest.raises(ResourceError) as caught:
        fitting([100], None, 3, 299, CPU)

    assert "resident_on" not in str(caught.value.remedy)
    assert "`--data.window_cases`" in str(caught.value.remedy)


# The machine


def test_the_memory_of_a_machine_is_parted_and_that_of_a_gpu_is_not(gpu, monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(machine, "_machine_bytes", lambda root: [4000])
    monkeypatch.setattr(machine, "_group_bytes", lambda root: [])

    assert free_bytes(CPU) == 1000
    assert free_bytes(GPU) == 470
