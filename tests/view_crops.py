"""Views of toy crops and small tasks on them, for tests of what compares views."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import ContrastConfig, PretextConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.randomness import RandomStream, generator
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment, Task
from mim3d.objectives.registry import PRETEXT_TASKS

SIZE = (11, 13, 7)
SMALL = (8, 12, 5)
ENCODER = EncoderConfig(width=24, depth=2, heads=2, patch=(4, 4, 2), channels=2)
CONTRAST = ContrastConfig(
    projector_width=32, projector_out=16, temperature=0.2, base_crops=(2, 3, 1), windows=3
)
TWO_VIEWS = ("simclr", "vicreg", "byol", "mocov3")
ALL = (*TWO_VIEWS, "voco")


def made(name: str, encoder: EncoderConfig = ENCODER, seed: int = 0, **contrast: Any) -> Any:
    """A small task by its word, the same weights for the same seed."""
    config = PretextConfig(name=name, contrast=replace(CONTRAST, **contrast))  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PRETEXT_TASKS[name](VolumeViT(encoder), config)


def moment(step: int = 0, steps: int = 10, seed: int = 0) -> Moment:
    return Moment(step, steps, RandomStream(seed, step))


def crop(number: int, size: tuple[int, int, int] = SIZE) -> Tensor:
    """A wave of its own direction for each number, `2 x y z`."""
    draw = generator(number, "wave").normal(size=(2, 4))
    axes = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in size), indexing="ij")
    directions = torch.from_numpy(draw).float()
    phases = torch.einsum("ca,axyz->cxyz", directions[:, :3], torch.stack(axes))
    return (3 * phases + directions[:, 3, None, None, None]).sin()


def batch(
    name: str,
    numbers: range = range(4),
    *,
    step: int = 0,
    size: tuple[int, int, int] = SIZE,
    noise: float = 0.3,
) -> CropBatch:
    """As many views of some crops as the task needs, each with noise of its own."""
    views = 1 if name == "voco" else 2
    rows = []
    for view in range(views):
        for number in numbers:
            draw = generator(number, step, view, "noise").normal(size=(2, *size))
            rows.append(crop(number, size) + noise * torch.from_numpy(draw).float())
    affine = torch.diag(torch.tensor([0.5, 1.0, 3.0, 1.0], dtype=torch.float64))
    return CropBatch(
        torch.stack(rows),
        affine.repeat(len(rows), 1, 1),
        tuple(f"case_{number}" for number in numbers) * views,
        torch.tensor(list(numbers)).repeat(views),
    )


def trained(
    task: Task, name: str, steps: int, *, crops: int = 6, rate: float = 2e-3
) -> list[float]:
    """The losses of a short training on a few crops."""
    learning = [p for p in task.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    losses = []
    for step in range(steps):
        now = moment(step, steps)
        outcome = task(batch(name, range(crops), step=step, size=SMALL), now)
        optimiser.zero_grad()
        outcome.loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
        task.after_update(now)
        losses.append(outcome.loss.item())
    return losses


class ViewFeed:
    """Steps of toy crops, laid out as a feed lays out views."""

    def __init__(self, name: str, batch_size: int) -> None:
        self.name = name
        self.batch_size = batch_size

    def batches(
        self, start: int, stop: int, *, rank: int = 0, world: int = 1, accumulation: int = 1
    ) -> Iterator[tuple[int, list[CropBatch]]]:
        """This process's share of every step."""
        size = self.batch_size // (world * accumulation)
        first = rank * size * accumulation
        for step in range(start, stop):
            starts = range(first, first + size * accumulation, size)
            yield step, [batch(self.name, range(i, i + size), step=step) for i in starts]
