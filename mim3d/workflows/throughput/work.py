"""How much work a piece of a run is: FLOP of matrix products and convolutions, or bytes moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mim3d.data.batch import CropBatch
from mim3d.objectives.base import Task
from mim3d.objectives.segmentation import Segmentation
from mim3d.workflows.throughput.ceilings import Ceilings, Limit
from mim3d.workflows.throughput.inputs import moment


@dataclass(frozen=True)
class Work:
    """What must be done at least, and the ceiling that bounds it.

    Args:
        amount: FLOP or bytes.
        limit: the field of `Ceilings` it is measured against.
    """

    amount: float
    limit: Limit

    def seconds(self, ceilings: Ceilings) -> float:
        """The time below which it cannot be done on this machine."""
        return self.amount / ceilings.rate(self.limit)


def step_flop(task: Task, batch: CropBatch) -> int:
    """FLOP of one training step: the backward pass costs twice the forward.

    The gradient of voxels is not needed, hence the backward pass of what reads them costs one
    forward: of the patch embedding, or of a convolutional stem's first map.
    The optimiser and all elementwise work are left out, and so is what is computed twice to save
    memory: these are the FLOP of the model, as in model FLOP utilisation (Chowdhery et al.,
    arXiv:2204.02311, appendix B).
    """
    one = _first_crop(batch)
    module: nn.Module = task
    inputs: tuple[Any, ...] = (one, moment(0))
    if isinstance(task, Segmentation):  # its loss has neither products nor convolutions
        module, inputs = task.network, (one.voxels, one.spacing_mm)
    counter = _counted(module, inputs)
    counts, name = counter.get_flop_counts(), f"{type(module).__name__}.encoder.embedding"
    reading = counts.get(f"{name}.stages.0.merge", counts.get(name, {}))
    return (3 * counter.get_total_flops() - sum(reading.values())) * len(batch.crop_ids)


def forward_flop(network: nn.Module, voxels: Tensor) -> int:
    """FLOP of one forward pass of a network on voxels `b c x y z` of 1 mm."""
    inputs = (voxels.to("meta"), (1.0, 1.0, 1.0))
    return _counted(network, inputs).get_total_flops()


def _counted(module: nn.Module, inputs: tuple[Any, ...]) -> FlopCounterMode:
    """Torch's counter after one forward pass without numbers: on the meta device."""
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    blank = {name: tensor.detach().to("meta") for name, tensor in state.items()}
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        torch.func.functional_call(module, blank, inputs)
    return counter


def _first_crop(batch: CropBatch) -> CropBatch:
    """A batch of one: FLOP grow with the batch. Its ids stay where they can be read."""
    labels = None if batch.labels is None else batch.labels[:1].to("meta")
    affine, ids = batch.affine[:1].to("meta"), batch.crop_ids[:1].cpu()
    return CropBatch(batch.voxels[:1].to("meta"), affine, batch.case_ids[:1], ids, labels)
