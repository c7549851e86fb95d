"""A running mean of a network, which gives the answers that the network learns from."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn

from mim3d.foundation.errors import ConfigError
from mim3d.objectives.base import Moment


class Teacher(nn.Module):
    """A frozen copy of a student that follows it (Tarvainen and Valpola, arXiv:1703.01780).

    Called, it answers as the student would, without gradient and always in eval mode. Stores
    `module`. All processes of a training have the same student, hence the same teacher.

    Args:
        student: copied as it is now.
        momentum: decay of the mean at the start, 0 to 1; see `momentum_at`.

    Raises:
        ConfigError: a momentum outside of 0 to 1.
    """

    def __init__(self, student: nn.Module, momentum: float) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ConfigError(f"a teacher's momentum is 0 to 1, not {momentum}", code="range")
        self.module = copy.deepcopy(student).requires_grad_(False).eval()
        self.momentum = momentum

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the copy answers."""
        return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode: an answer without dropout is the better one."""
        super().train(False)
        self.training = mode
        return self

    @torch.no_grad()
    def update(self, student: nn.Module, moment: Moment) -> None:
        """Moves the copy towards the student; for a task's `after_update`.

        `t <- m t + (1 - m) s` with `m = momentum_at(...)`; buffers are taken over.

        Args:
            student: of the same architecture.
            moment: of the step that was made.
        """
        share = 1 - momentum_at(moment, self.momentum)
        own = [parameter.detach() for parameter in self.module.parameters()]
        new = [parameter.detach() for parameter in student.parameters()]
        # Where both are equal (frozen parts) they stay so bit by bit.
        torch._foreach_lerp_(own, new, share)
        for mine, theirs in zip(self.module.buffers(), student.buffers(), strict=True):
            mine.copy_(theirs)


def momentum_at(moment: Moment, first: float) -> float:
    """Decay of a teacher at a step: `1 - (1 - m0) (cos(pi step / steps) + 1) / 2`, from m0 to 1.

    BYOL's schedule (arXiv:2006.07733, section 3.3), over the whole run.
    """
    return 1 - (1 - first) * (math.cos(math.pi * moment.step / moment.steps) + 1) / 2
