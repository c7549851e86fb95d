"""Rows of all processes, and tasks whose loss spans them: two over gloo are as one."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from view_crops import ALL

from mim3d.models.gathering import gathered, rank_offset, world
from tests.models import gathering_program
from tests.reliability.ranks import finished

BATCH_NORMED = ("simclr", "vicreg", "byol", "mocov3")
UNSEEN = ("encoder.norm.bias", "projector.layers.3.bias")
"""What these have in common for all crops BatchNorm or the loss takes away again: the gradient is
rounding, of which AdamW makes steps."""


def run(folder: Path, processes: int, strategy: str = "auto") -> Path:
    finished(partial(gathering_program.main, folder, strategy), processes)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("alone"), 1)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("together"), 2)


def losses(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / name / "log.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == "train"]


def assert_same_training(folder: Path, reference: Path, name: str) -> None:
    for ours, theirs in zip(losses(folder, name), losses(reference, name), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-3)
    ours, theirs = (
        load_file(each / name / "checkpoints" / "last" / "state.safetensors")
        for each in (folder, reference)
    )
    assert ours.keys() == theirs.keys()
    assert any("teacher." in key for key in ours) == (name not in ("simclr", "vicreg"))
    for key, tensor in theirs.items():
        if name in BATCH_NORMED and key.endswith(UNSEEN):
            continue
        # float32 sums in another order, which AdamW makes larger where gradients are small.
        is_close = torch.isclose(ours[key], tensor, rtol=1e-3, atol=2e-5)
        assert is_close.double().mean() >= 0.999, key
        torch.testing.assert_close(ours[key], tensor, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("name", ALL)
def test_two_processes_train_as_one_with_the_whole_batch(
    alone: Path, together: Path, name: str
) -> None:
    """Negatives, variances and centres are those of all 8 crops, 4 a process.

    Validators look in the first process alone meanwhile, and must not wait for the other.
    """
    assert_same_training(together, alone, name)


@pytest.mark.slow
def test_fsdp_trains_as_one_process_does(alone: Path, tmp_path: Path) -> None:
    run(tmp_path, 2, "fsdp")

    for name in ALL:
        assert_same_training(tmp_path, alone, name)


def test_rows_come_in_the_order_of_ranks_and_their_gradients_are_summed(together: Path) -> None:
    first, second = (
        json.loads((together / f"gathered_{rank}.json").read_text()) for rank in (0, 1)
    )

    own = [torch.arange(6.0).reshape(3, 2) + 10 * rank for rank in (0, 1)]
    assert (first["world"], second["world"]) == (2, 2)
    assert (first["offset"], second["offset"]) == (0, 3)
    assert first["rows"] == second["rows"] == torch.cat(own).tolist()
    assert first["whole"] == second["whole"] == [0, 7, 1, 7]
    for facts, rows in zip((first, second), own, strict=True):
        # 2 x of each of the losses, which weigh 1 and 2.
        assert facts["gradient"] == (2 * rows * (1 + 2)).tolist()


def test_without_other_processes_rows_are_what_they_were() -> None:
    x = torch.randn(3, 2, requires_grad=True)

    assert gathered(x) is x
    assert (world(), rank_offset(5)) == (1, 0)
