from __future__ import annotations

import multiprocessing

import pytest
import torch

from mim3d.data import workers
from mim3d.data.batch import CropBatch
from mim3d.data.workers import made_ahead

SLOT_BYTES = 1 << 16


def batch_of(step: int) -> CropBatch:
    voxels = torch.arange(2 * 11 * 13 * 7, dtype=torch.float32).view(1, 2, 11, 13, 7) + step
    return CropBatch(
        voxels=voxels,
        affine=torch.eye(4, dtype=torch.float64)[None] * step,
        case_ids=(f"case_{step}",),
        crop_ids=torch.tensor([step]),
        valid=voxels[:, 0] > 5 if step % 2 else None,
    )


def make(step: int) -> list[CropBatch]:
    return [batch_of(step), batch_of(step + 100)]


class BooksOfAWorker:
    """Stands in for a process: notes which slots hold a step that has not been taken."""

    def __init__(self, make, slot_bytes, start_method) -> None:
        self.waiting: list[tuple[int, int]] = []

    def ask(self, step: int, slot: int) -> None:
        assert slot not in {other for _, other in self.waiting}, "it would be written over"
        self.waiting.append((step, slot))
        assert len(self.waiting) <= workers.SLOTS

    def receive(self, describe) -> list[CropBatch]:
        step, _ = self.waiting.pop(0)
        return [batch_of(step)]

    def close(self) -> None:
        assert not self.waiting


def assert_equal(found: CropBatch, expected: CropBatch) -> None:
    for name, value in vars(expected).items():
        if isinstance(value, torch.Tensor):
            assert getattr(found, name).dtype == value.dtype
            assert torch.equal(getattr(found, name), value)
        else:
            assert getattr(found, name) == value


@pytest.mark.parametrize("count", [1, 2, 5])
def test_batches_arrive_whole_and_in_order(count):
    made = list(made_ahead(make, range(3, 9), workers=count, slot_bytes=SLOT_BYTES, describe=str))

    assert [step for step, _ in made] == list(range(3, 9))
    for step, (one, two) in made:
        assert_equal(one, batch_of(step))
        assert_equal(two, batch_of(step + 100))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_slot_is_filled_again_only_after_it_was_emptied(monkeypatch, count):
    monkeypatch.setattr(workers, "_Worker", BooksOfAWorker)

    steps = made_ahead(make, range(4, 15), workers=count, slot_bytes=64, describe=str)

    assert [(step, int(batch.crop_ids)) for step, (batch,) in steps] == [
        (step, step) for step in range(4, 15)
    ]


def test_no_step_needs_no_process():
    assert list(made_ahead(make, range(0), workers=3, slot_bytes=64, describe=str)) == []


def test_a_worker_returns_when_its_parent_is_gone(monkeypatch):
    ours, theirs = multiprocessing.Pipe()
    monkeypatch.setattr(workers, "PATIENCE", 0.01)
    monkeypatch.setattr(workers.signal, "signal", lambda *_: None)

    workers._work(make, theirs, [], parent=-1)  # would never return otherwise

    ours.close()
