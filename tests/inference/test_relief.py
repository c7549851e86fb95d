"""Where memory runs out a prediction goes on with less, and gives the same."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from mim3d.config.inference import InferenceConfig
from mim3d.foundation.errors import ResourceError
from mim3d.inference.relief import Relief
from mim3d.inference.sliding_window import mirrored, slabs
from mim3d.inference.windows import plan_sweep

WINDOW = (8, 6, 5)
SPACING = (0.8, 1.2, 2.5)
CPU = torch.device("cpu")


class Small:
    """A network on a device that holds so many windows; others raise what a GPU raises."""

    def __init__(self, most: int) -> None:
        self.most, self.seen = most, []  # type: ignore[var-annotated]

    def __call__(self, voxels: Tensor, spacing_mm: Tensor, valid: Tensor | None) -> Tensor:
        self.seen.append(len(voxels))
        if len(voxels) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return torch.cat([voxels.sin(), voxels.cos() * spacing_mm[:, :1, None, None, None]], dim=1)


def summed(network: Small, relief: Relief, flips: tuple[str, ...] = ()) -> Tensor:
    volume = torch.arange(19 * 11 * 7, dtype=torch.float32).reshape(1, 19, 11, 7) / 100
    sweep = plan_sweep((19, 11, 7), WINDOW, 0.5)
    config = InferenceConfig(flips=flips, windows_per_batch=8, overlap=0.5)  # type: ignore[arg-type]
    found = [
        (slab.first, slab.sums.clone())
        for slab in slabs(volume, network, config, sweep, spacing_mm=SPACING, relief=relief)
    ]
    assert [first for first, _ in found] == sorted({first for first, _ in found})
    return torch.cat([sums for _, sums in found], dim=1 + sweep.axis)


@pytest.mark.parametrize("flips", [(), ("x", "z")])
@pytest.mark.parametrize("most", [1, 3, 8])
def test_smaller_batches_give_the_same_sums_and_are_said_once(
    most: int, flips: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    whole = summed(Small(100), Relief(CPU, 8), flips)
    caplog.clear()
    relief, network = Relief(CPU, 8), Small(most)

    with caplog.at_level(logging.WARNING):
        less = summed(network, relief, flips)
        summed(network, relief, flips)

    assert torch.equal(less, whole)
    assert relief.at_once == {1: 1, 3: 2, 8: 8}[most]
    assert len(caplog.records) == (most < 8)


def test_a_single_window_that_does_not_fit_ends_with_a_remedy() -> None:
    with pytest.raises(ResourceError, match="a single window") as caught:
        summed(Small(0), Relief(CPU, 8))

    assert caught.value.remedy is not None
    assert "--inference.window" in caught.value.remedy


def test_after_single_windows_sums_move_to_the_machines_memory() -> None:
    """No GPU is needed for the rule: `meta` stands for a device other than the CPU."""
    relief = Relief(torch.device("meta"), 2)
    lack = torch.OutOfMemoryError("CUDA out of memory")

    relief.after(lack)
    assert (relief.at_once, relief.sums_on.type) == (1, "meta")
    relief.after(lack)
    assert (relief.at_once, relief.sums_on.type) == (1, "cpu")
    with pytest.raises(ResourceError):
        relief.after(lack)


def test_sums_that_move_half_way_are_those_of_an_undisturbed_sweep() -> None:
    """The third batch runs out: what was added up before it stays."""
    whole = summed(Small(100), Relief(CPU, 4))

    class Once(Small):
        def __call__(self, voxels: Tensor, spacing_mm: Tensor, valid: Tensor | None) -> Tensor:
            self.most = 0 if len(self.seen) == 2 else 100
            return super().__call__(voxels, spacing_mm, valid)

    assert torch.equal(summed(Once(100), Relief(CPU, 4)), whole)


def test_other_errors_pass() -> None:
    with pytest.raises(ValueError, match="broken"):
        Relief(CPU, 8).after(ValueError("broken"))
    assert mirrored(Small(9), torch.zeros(1, 1, 4, 4, 4), torch.ones(1, 3), None, ()).shape[1] == 2
