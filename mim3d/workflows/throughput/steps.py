"""A training step on crops in memory: forward, backward and update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from mim3d.config.encoder import EncoderConfig
from mim3d.config.task import DecoderConfig
from mim3d.config.training import OptimConfig
from mim3d.data.batch import CropBatch
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Task
from mim3d.training.optim import build_optimiser, trainable
from mim3d.workflows.throughput.inputs import moment
from mim3d.workflows.throughput.race import Contestant

Preset = Literal["tiny", "small", "base", "large"]

GPU_STEPS = 10
"""Steps between two looks at the clock of a GPU, which is ahead of its launches only then."""
RATE = 1e-4


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


def our_step(
    name: str, task: Task, given: Sequence[CropBatch], equality: str, *, bf16: bool = True
) -> Contestant:
    """A step: mask or loss by the task, autocast, fused AdamW; without the loop's guard and EMA."""
    optimiser = build_optimiser(trainable(task), OptimConfig(lr=RATE))
    update = step(lambda batch, n: task(batch, moment(n)).loss, optimiser, given, bf16=bf16)
    precision = "bf16" if bf16 else "fp32"
    return Contestant(f"{name}: {precision}, fused AdamW", update, equality, calls_on(given))


def calls_on(given: Sequence[CropBatch]) -> int:
    """Steps between two looks at the clock."""
    return GPU_STEPS if given[0].voxels.device.type == "cuda" else 1


def segmenter(preset: Preset, decoder: DecoderConfig, classes: int) -> UNETR:
    """A network with patch 16 and positions in millimetres, as a recipe builds it."""
    encoder = EncoderConfig(preset=preset, default_spacing_mm=(1.0, 1.0, 1.0))
    return UNETR(VolumeViT(encoder), classes, decoder)
