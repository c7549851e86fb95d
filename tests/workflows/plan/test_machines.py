"""This machine, measured in moments."""

from __future__ import annotations

import pytest
import torch

from mim3d.config.plan import PretrainPlanConfig
from mim3d.config.sections import DataConfig, EncoderConfig
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
