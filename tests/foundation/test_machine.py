from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mim3d.foundation.machine import available_bytes, local_processes
from mim3d.training.fabric import processes

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "RANK": "5", "LOCAL_WORLD_SIZE": "4",
}  # fmt: skip
SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "6", "SLURM_NNODES": "2"}


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


@pytest.mark.parametrize(
    "environment", [{}, TORCHRUN, SRUN, {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}]
)
def test_processes_are_counted_as_the_training_counts_them(environment):
    assert local_processes(environment) == processes(environment).local_world


def test_nodes_with_unequal_numbers_of_processes_are_taken_as_the_fullest():
    assert local_processes({**SRUN, "SLURM_NTASKS": "7"}) == 4


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
@pytest.mark.parametrize("for_good", [False, True])
def test_a_limit_for_good_cannot_be_raised_again(for_good):
    program = (
        "import resource; from mim3d.foundation.machine import limit_memory\n"
        f"limit_memory(1 << 28, for_good={for_good})\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_AS)\n"
        "print(soft != resource.RLIM_INFINITY, soft == hard)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          check=True)  # fmt: skip

    assert done.stdout == f"True {for_good}\n"
