from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mim3d.data import room
from mim3d.data.room import AHEAD, Room, available_bytes, fitting, free_bytes, local_processes
from mim3d.foundation.errors import ResourceError
from mim3d.training.fabric import processes

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "RANK": "5", "LOCAL_WORLD_SIZE": "4",
}  # fmt: skip
SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "6", "SLURM_NNODES": "2"}


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


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def machine(root: Path, available_kib: int, groups: str = "") -> Path:
    listing = f"MemTotal:  64000 kB\nMemAvailable:   {available_kib} kB\nHugePages_Total:  0"
    write(root / "proc" / "meminfo", listing)
    if groups:
        write(root / "proc" / "self" / "cgroup", groups)
    return root


def second_version(group: Path, most: object, used: int, inactive: int = 0, active: int = 0):
    write(group / "memory.max", most)
    write(group / "memory.current", used)
    write(group / "memory.stat", f"anon 7\ninactive_file {inactive}\nactive_file {active}")


def first_version(group: Path, most: int, used: int, inactive: int = 0):
    write(group / "memory.limit_in_bytes", most)
    write(group / "memory.usage_in_bytes", used)
    stat = f"inactive_file 1\ntotal_inactive_file {inactive}\ntotal_active_file 0"
    write(group / "memory.stat", stat)


def test_without_limits_it_is_what_the_machine_has(tmp_path):
    assert available_bytes(machine(tmp_path, 50), {}) == 50 * 1024


def test_a_system_that_says_nothing_is_not_guessed_at(tmp_path):
    assert available_bytes(tmp_path, {}) is None
    assert available_bytes(tmp_path, TORCHRUN) is None


def test_the_tightest_of_the_groups_above_a_process_counts(tmp_path):
    root = machine(tmp_path, 50, "0::/job/step")
    groups = root / "sys" / "fs" / "cgroup"
    second_version(groups / "job" / "step", "max", 9000)
    second_version(groups / "job", 20000, 12000, inactive=500, active=300)

    # pages of files that were read can be given up
    assert available_bytes(root, {}) == 20000 - 12000 + 800

    second_version(groups / "job" / "step", 9700, 9000)
    assert available_bytes(root, {}) == 700

    second_version(groups / "job" / "step", 8000, 9000)
    assert available_bytes(root, {}) == 0


@pytest.mark.parametrize("folder", ["", "docker/1234"], ids=["container", "machine"])
def test_groups_of_the_first_version_count_too(tmp_path, folder):
    root = machine(tmp_path, 50, "5:cpu,cpuacct:/docker/1234\n4:memory:/docker/1234\n0::/other")
    groups = root / "sys" / "fs" / "cgroup"
    first_version(groups / "memory" / folder, 30000, 26000, inactive=400)
    # Not the group of a controller that is not for memory.
    first_version(groups / "docker" / "1234", 1000, 0)

    assert available_bytes(root, {}) == 4400


def test_a_group_of_the_first_version_without_a_limit_does_not_count(tmp_path):
    root = machine(tmp_path, 50, "4:memory:/")
    first_version(root / "sys" / "fs" / "cgroup" / "memory", 2**63 - 4096, 26000)

    assert available_bytes(root, {}) == 50 * 1024


def test_processes_of_one_machine_have_equal_parts_of_its_memory(tmp_path):
    root = machine(tmp_path, 60)

    assert available_bytes(root, TORCHRUN) == 60 * 1024 // 4
    assert available_bytes(root, SRUN) == 60 * 1024 // 3


def test_the_memory_of_a_machine_is_parted_and_that_of_a_gpu_is_not(gpu, monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(room, "_machine_bytes", lambda root: [4000])
    monkeypatch.setattr(room, "_group_bytes", lambda root: [])

    assert free_bytes(CPU) == 1000
    assert free_bytes(GPU) == 470


@pytest.mark.parametrize(
    "environment", [{}, TORCHRUN, SRUN, {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}]
)
def test_processes_are_counted_as_the_training_counts_them(environment):
    assert local_processes(environment) == processes(environment).local_world


def test_nodes_with_unequal_numbers_of_processes_are_taken_as_the_fullest():
    assert local_processes({**SRUN, "SLURM_NTASKS": "7"}) == 4
