from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from mim3d.data.batch import CropBatch

SHAPE = (2, 1, 11, 13, 7)


@pytest.fixture
def batch() -> CropBatch:
    return CropBatch(
        voxels=torch.arange(2002, dtype=torch.float32).view(SHAPE),
        affine=torch.eye(4, dtype=torch.float64).repeat(2, 1, 1),
        case_ids=("a", "b"),
        crop_ids=torch.tensor([4, 9]),
        labels=torch.ones(2, 11, 13, 7, dtype=torch.uint8),
        air=torch.tensor([[0.5], [0.25]]),
    )


def test_a_batch_that_is_on_the_cpu_stays_as_it_is(batch):
    for device in ("cpu", torch.device("cpu")):
        same = batch.to(device)
        assert all(getattr(same, f.name) is getattr(batch, f.name) for f in fields(batch))


@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda", 0)])
def test_a_batch_goes_to_a_gpu_through_pinned_memory_without_waiting(batch, device, monkeypatch):
    pinned: list[int] = []
    sent: list[tuple[int, torch.device, bool]] = []

    def pin_memory(self: Tensor) -> Tensor:
        copy = self.clone()  # pinning moves to other memory
        pinned.append(copy.data_ptr())
        return copy

    def to(self: Tensor, where: torch.device, *, non_blocking: bool = False) -> Tensor:
        sent.append((self.data_ptr(), where, non_blocking))
        return self

    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(Tensor, "to", to)

    found = batch.to(device)

    assert sent == [(place, torch.device(device), True) for place in pinned]
    assert found.voxels.data_ptr() in pinned
    assert found.air is not None
    assert found.air.data_ptr() in pinned
    assert len(pinned) == 4
    assert torch.equal(found.voxels, batch.voxels)
    assert found.crop_ids is batch.crop_ids
    assert found.valid is None
