"""Embeddings of all processes, so that a loss can compare crops of the whole global batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """Number of processes that train together; 1 where there is no group."""
    return dist.get_world_size() if _in_group() else 1


def rank_offset(b: int) -> int:
    """Row of this process's first crop in what `gathered` gives, with `b` rows a process."""
    return b * dist.get_rank() if _in_group() else 0


def gathered(x: Tensor) -> Tensor:
    """The rows of all processes in the order of their ranks, `b ... -> (world b) ...`.

    Gradients go to every process: with each process's mean loss `L_r`, averaging the processes'
    gradients, as DDP does, gives the gradient of the mean of all `L_r`. With one process it is `x`.

    Args:
        x: `b ...`, the same shape everywhere. Every process must call.
    """
    if world() == 1:
        return x
    rows: Tensor = _Gathered.apply(x)  # type: ignore[no-untyped-call]
    return rows


def batch_moments(rows: Tensor, *, together: bool = True) -> tuple[Tensor, Tensor]:
    """Mean and variance of rows `b d`, `d` each.

    Args:
        rows: of this process.
        together: whether those of all processes count, all of which must then call.
    """
    every = gathered(rows) if together else rows
    mean = every.mean(dim=0)
    return mean, (every - mean).square().mean(dim=0)


class _Gathered(torch.autograd.Function):
    """All processes' rows forwards; backwards the sum of what all processes ask of these rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        first = rank_offset(ctx.rows)
        return total[first : first + ctx.rows]


def _in_group() -> bool:
    return dist.is_available() and dist.is_initialized()
