"""This machine, measured in moments."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mim3d.config.data import DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.plan import PretrainPlanConfig
from mim3d.workflows.plan import machines
from mim3d.workflows.plan.measure import measure_step, synthetic_batch
from mim3d.workflows.plan.subject import subject_of


def test_this_machine_has_rates_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "SECONDS", 1e-3)
    monkeypatch.setattr(machines, "COPIED_BYTES", 2**20)

    here = machines.this_machine()

    assert here.source == "measured now"
    assert here.fp32 > 1e8
    assert here.peak("bf16") == here.bf16
    assert here.bandwidth > 1e8
    assert here.memory > 1e8


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/job/step\n", {"job/memory.max": "3000000"}, 3_000_000),
        ("0::/job/step\n", {"job/memory.max": "3000000", "job/step/memory.max": "max"}, 3_000_000),
        ("0::/unseen\n", {"memory.max": "2000000\n"}, 2_000_000),
        ("4:memory:/job\n0::/\n", {"memory/job/memory.limit_in_bytes": "5000000"}, 5_000_000),
        ("3:cpu:/job\n", {"memory/memory.limit_in_bytes": "4000000"}, 4_000_000),
        ("0::/job\n", {"job/memory.max": "max"}, None),
        ("0::/job\n", {"job/memory.max": str(2**63 - 4096)}, None),
        (None, {}, None),
    ],
)
def test_a_control_group_bounds_the_memory(
    groups: str | None, limits: dict[str, str], expected: int | None, tmp_path: Path
) -> None:
    for name, text in limits.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if groups is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    assert machines.memory_bytes(tmp_path) == (expected or machine)


def test_a_real_step_is_timed_on_crops_that_are_nowhere_constant() -> None:
    subject = subject_of(
        PretrainPlanConfig(
            data=DataConfig(crop_size=(16, 24, 32)),
            encoder=EncoderConfig(width=24, depth=4, heads=2, patch=(8, 8, 8)),
        )
    )
    state = torch.random.get_rng_state()

    found = measure_step(subject, 3, "fp32")

    assert (found.crops, found.seconds > 0) == (3, True)
    assert torch.equal(torch.random.get_rng_state(), state)
    batch = synthetic_batch(subject, 2)
    assert batch.voxels.shape == (2, 1, 16, 24, 32)
    assert all(batch.voxels.std(dim=axis).min() > 0 for axis in range(2, 5))
    views = synthetic_batch(subject, 2, views=3)
    assert views.voxels.shape == (6, 1, 16, 24, 32)
    assert views.crop_ids.tolist() == [0, 1, 0, 1, 0, 1]
    assert len(views.case_ids) == len(views.affine) == 6
