"""A training step on crops in memory: forward, backward and update, ours and theirs."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mim3d.config.sections import OptimConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.randomness import RandomStream
from mim3d.objectives.base import Moment, Task
from mim3d.training.optim import build_optimiser, trainable
from mim3d.workflows.throughput.race import SHIPPED, TUNED, Contestant, require

Triple = tuple[int, int, int]
Preset = Literal["tiny", "small", "base", "large"]

SIDE = 96
"""Voxels of a crop and of a window along each axis."""
CLASSES = 14
ROTATED = 4
"""Batches that steps take in turn, so that no step sees what the one before it saw."""
GPU_STEPS = 10
"""Steps between two looks at the clock of a GPU, which is ahead of its launches only then."""
RATE = 1e-4


def agreement(
    ours: Tensor, theirs: Tensor, pairs: Sequence[tuple[Any, Any]], *, bound: float
) -> str:
    """How far losses and gradients lie apart; ends the run where it is more than rounding.

    Args:
        ours: our loss in fp32, not yet backward.
        theirs: likewise.
        pairs: our weight and theirs, of which gradients are compared.
        bound: largest norm of a difference between gradients / norm of theirs.
    """
    for loss in (ours, theirs):
        loss.backward()  # type: ignore[no-untyped-call]
    apart = abs(float(ours.detach() - theirs.detach()) / float(theirs.detach()))
    gradients = [(mine.grad.flatten(1), other.grad.flatten(1)) for mine, other in pairs]
    farthest = max(float((mine - other).norm() / other.norm()) for mine, other in gradients)
    losses = f"within {apart:.0e}" if apart else "equal"
    found = f"fp32 loss {losses}, gradients within {farthest:.0e}"
    require(apart < 1e-5 and farthest < bound, found)
    return found


def exact() -> contextlib.AbstractContextManager[None]:
    """Convolutions in true fp32 on a GPU too, while results are compared."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def step(
    loss: Callable[[CropBatch, int], Tensor],
    optimiser: torch.optim.Optimizer,
    given: Sequence[CropBatch],
    *,
    bf16: bool,
) -> Callable[[int], object]:
    """One update: loss, gradients, optimiser. No side clips gradients."""

    def update(number: int) -> None:
        batch = given[number % len(given)]
        with torch.autocast(batch.voxels.device.type, torch.bfloat16, enabled=bf16):
            value = loss(batch, number)
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()

    return update


def our_step(name: str, task: Task, given: Sequence[CropBatch], equality: str) -> Contestant:
    """A step as the training loop makes it: mask or loss by the task, bf16, fused AdamW."""
    optimiser = build_optimiser(trainable(task), OptimConfig(lr=RATE))
    update = step(lambda batch, n: task(batch, moment(n)).loss, optimiser, given, bf16=True)
    return Contestant(f"{name}: bf16, fused AdamW", update, equality, calls_on(given))


def their_steps(
    network: Any,
    loss: Callable[[Any, CropBatch], Tensor],
    given: Sequence[CropBatch],
    patch: Callable[[Any], None] = lambda _: None,
) -> list[Contestant]:
    """MONAI's network as shipped, and a patched copy in bf16 with fused AdamW."""
    tuned = copy.deepcopy(network)
    patch(tuned)
    plain = torch.optim.AdamW(network.parameters(), lr=RATE)
    fused = torch.optim.AdamW(tuned.parameters(), lr=RATE, fused=True)
    first = step(lambda batch, _: loss(network, batch), plain, given, bf16=False)
    second = step(lambda batch, _: loss(tuned, batch), fused, given, bf16=True)
    calls = calls_on(given)
    return [
        Contestant(f"{SHIPPED}: fp32, AdamW", first, "reference", calls),
        Contestant(f"{TUNED}: bf16, fused AdamW", second, "the same network", calls),
    ]


def calls_on(given: Sequence[CropBatch]) -> int:
    """Steps between two looks at the clock."""
    return GPU_STEPS if given[0].voxels.device.type == "cuda" else 1


def moment(number: int, *, pictures: bool = False) -> Moment:
    """Step `number` of a run; masks follow from it."""
    return Moment(number, 1000, RandomStream(0, number), wants_pictures=pictures)


def batches(count: int, device: torch.device) -> list[CropBatch]:
    """Batches of `count` crops, with labels whose class tells the place."""
    x, y, z = torch.meshgrid(*[torch.arange(SIDE) // 12] * 3, indexing="ij")
    labels = ((x + 2 * y + 3 * z) % CLASSES).to(torch.uint8).expand(count, -1, -1, -1)
    affine = torch.eye(4, dtype=torch.float64).expand(count, 4, 4)
    made = []
    for number in range(ROTATED):
        crops = [synthetic((SIDE, SIDE, SIDE), count * number + i)[None] for i in range(count)]
        names, ids = ("synthetic",) * count, torch.arange(count)
        made.append(CropBatch(torch.stack(crops), affine, names, ids, labels).to(device))
    return made


def synthetic(size: Triple, seed: int) -> Tensor:
    """A ramp, a sine, a square wave and noise, `x y z` float32: no two places are alike."""
    x, y, z = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in size), indexing="ij")
    noise = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    waves = torch.sin(9 * y + seed) + torch.sign(torch.sin(11 * z + 2 * x + seed))
    return x + 0.5 * waves + 0.2 * noise
