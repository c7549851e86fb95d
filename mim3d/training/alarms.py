"""Runs that go wrong without an error: not-a-number, and nothing learned."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from mim3d.foundation.errors import StoppedError

TOLERATED_SHARE = 0.01
"""Share of a run's steps that may be skipped in all before it stops."""
LOOKS = (0.01, 0.05, 0.20)
"""Shares of the run at which the loss is compared with predicting the mean."""
SMALLEST_STRETCH = 20
"""Steps over which both are averaged, and which any run is given before the first look."""


@dataclass
class NonFinite:
    """Counts steps that were skipped because loss or gradient was not finite.

    Args:
        allowed: consecutive ones after which the run stops.
        steps: updates of the whole run.
    """

    allowed: int
    steps: int
    total: int = 0
    in_a_row: int = 0

    def note(self, *, is_finite: bool, step: int) -> None:
        """Counts one step.

        Raises:
            StoppedError: too many, in a row or in all.
        """
        if is_finite:
            self.in_a_row = 0
            return
        self.total += 1
        self.in_a_row += 1
        most = max(self.allowed, math.floor(TOLERATED_SHARE * self.steps))
        if self.in_a_row >= self.allowed or self.total > most:
            raise StoppedError(
                f"loss or gradient was not finite in {self.in_a_row} steps in a row, "
                f"{self.total} in all, the last at step {step + 1:,}",
                remedy="look for the crops in `log.jsonl` (`skipped`), lower `optim.lr`, or use "
                "`--training.precision fp32`; the last good checkpoint is kept",
                code="non-finite",
            )


class MeanPredictor:
    """Says when a pretext task is no better than predicting the mean (RELIABILITY row 28).

    Args:
        steps: updates of the run.
        warmup_steps: before their end nothing is expected.
    """

    def __init__(self, steps: int, warmup_steps: int) -> None:
        earliest = warmup_steps + SMALLEST_STRETCH
        self.looks = sorted({max(math.ceil(share * steps), earliest) for share in LOOKS})
        self._recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=SMALLEST_STRETCH)

    def note(self, logs: dict[str, Tensor], step: int) -> str | None:
        """Takes the logs of one step; returns a sentence where one is due.

        Args:
            logs: `loss` and, if the task knows it, `mean_predictor`.
            step: updates made, this one included.
        """
        if "mean_predictor" not in logs:
            return None
        self._recent.append((logs["loss"], logs["mean_predictor"]))
        if step not in self.looks:
            return None
        loss, mean = torch.stack([torch.stack(pair).double() for pair in self._recent]).mean(0)
        if loss < mean:
            return None
        return (
            f"this run does not learn: at step {step:,} the loss {float(loss):.4g} is not below "
            f"{float(mean):.4g}, that of predicting the mean; look at the reconstruction panels "
            "and try another `optim.lr`"
        )
