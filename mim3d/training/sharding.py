"""Weights in parts: FSDP2 (Zhao et al., arXiv:2304.11277; torch's `fully_shard`).

Each process keeps its share of every parameter, gradient, moment and running mean, and sees a
block whole only while it computes it. What leaves a training is whole again (`whole`), what comes
in is cut (`spread`), so that a checkpoint does not know how many processes wrote it.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def shard(module: nn.Module, blocks: Iterable[nn.Module], world: int, device: torch.device) -> None:
    """Cuts the parameters of a module on `device` over all processes, in place.

    Args:
        module: the outermost one, whose forward will be called; what belongs to none of the blocks
            is gathered at its start and stays whole until its backward pass is over.
        blocks: parts that are gathered by themselves, just before they compute and again before
            their backward pass; nothing of them is used but their forward.
        world: number of processes.
        device: where the parameters are.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world,))
    atexit.register(_let_go, mesh)  # before `fabric` leaves the group: the last one goes first
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def _let_go(mesh: DeviceMesh) -> None:
    """Drops what would keep the processes' group when it is left, and with it its threads.

    These would run into the end of the interpreter, which at times aborts. torch's caches keep the
    mesh for ever, and what was cut holds the group in circles.
    """
    getattr(mesh, "_pg_registry", {}).clear()
    gc.collect()


def encoder_blocks(task: nn.Module) -> list[nn.Module]:
    """What is gathered block by block: the encoder's, where nearly all weights are.

    A decoder's stay with the rest: MAE's uses parts of its blocks by themselves.
    """
    encoder = getattr(task, "encoder", None)
    lists = [x for x in encoder.children() if isinstance(x, nn.ModuleList)] if encoder else []
    return [entry for one in lists for entry in one]


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a share of it only."""
    return hasattr(tensor, "full_tensor")


def whole_tensor(tensor: Tensor) -> Tensor:
    """All of it; every process must ask."""
    if not is_sharded(tensor):
        return tensor
    full: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return full


def whole(tensors: Mapping[str, Tensor], *, keeps: bool) -> dict[str, Tensor]:
    """Shares gathered from all processes, one after the other, on the CPU; every process must ask.

    Args:
        tensors: the same names in the same order everywhere.
        keeps: whether this process wants them; the others get nothing.
    """
    if not any(is_sharded(tensor) for tensor in tensors.values()):
        return dict(tensors) if keeps else {}
    gathered: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole_tensor(tensor.detach())
        if keeps:
            gathered[name] = full.cpu()
    return gathered


def spread(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors cut as their counterparts are; nothing is sent, each process has the whole.

    Args:
        tensors: whole.
        like: counterparts by name; what has none, or one of another shape, stays as it is.
    """
    return {name: _spread(tensor, like.get(name)) for name, tensor in tensors.items()}


def _spread(tensor: Tensor, like: Tensor | None) -> Tensor:
    if like is None or not is_sharded(like) or like.shape != tensor.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    there = tensor.to(like.device)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)
