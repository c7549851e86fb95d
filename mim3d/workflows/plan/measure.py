"""A real step on this machine's CPU, to correct what was reckoned."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from mim3d.config.training import OptimConfig
from mim3d.data.batch import CropBatch
from mim3d.foundation.randomness import RandomStream, generator
from mim3d.objectives.base import Moment, Task
from mim3d.training.optim import build_optimiser, trainable
from mim3d.workflows.plan.subject import Subject


@dataclass(frozen=True)
class Measured:
    """What a real step took.

    Args:
        crops: of the step.
        seconds: of the step.
    """

    crops: int
    seconds: float


def measure_step(subject: Subject, crops: int, precision: str) -> Measured:
    """Two real steps on synthetic crops; the second counts.

    With one thread the clock is the process's own, so that other work of the machine does not
    count; with several it is the wall's.

    Args:
        subject: the training.
        crops: of the step.
        precision: of autocast.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        task = subject.build()
    step = RealStep(task.train(), subject.optim, precision)
    batch = synthetic_batch(subject, crops, task.needs.views)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    step(batch, 0)
    began = clock()
    step(batch, 1)
    return Measured(crops, clock() - began)


class RealStep:
    """Forward, backward and update as training does them.

    Args:
        task: on its device, in training mode.
        optim: rates.
        precision: of autocast.
    """

    def __init__(self, task: Task, optim: OptimConfig, precision: str) -> None:
        self.task = task
        self.parameters = trainable(task)
        self.optimiser = build_optimiser(self.parameters, optim)
        self.precision = precision

    def __call__(self, batch: CropBatch, number: int) -> None:
        """One update."""
        moment = Moment(number, 1000, RandomStream(0, number))
        self.optimiser.zero_grad(set_to_none=True)
        device = batch.voxels.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.task(batch, moment).loss
        loss.backward()
        grads = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), 1.0, norm)
        self.optimiser.step()


def synthetic_batch(subject: Subject, crops: int, views: int = 1) -> CropBatch:
    """Crops of the subject's size that are nowhere constant, with labels where it needs them."""
    x, y, z = subject.crop_size
    rows = crops * views
    noise = generator(0, "plan").normal(size=(rows, subject.channels, x, y, z))
    ramp = torch.linspace(-1, 1, x)[:, None, None] + torch.linspace(-1, 1, z)
    voxels = torch.from_numpy(noise).float() * 0.2 + ramp
    task_needs_labels = subject.verb == "finetune"
    labels = (voxels[:, 0] > 0).to(torch.uint8) if task_needs_labels else None
    affine = torch.eye(4, dtype=torch.float64).expand(rows, 4, 4)
    ids = torch.arange(crops).repeat(views)
    return CropBatch(voxels, affine, ("synthetic",) * rows, ids, labels)
