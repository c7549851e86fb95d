"""Runs that go wrong without an error: not-a-number, and nothing learned."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mim3d.config.training import OptimConfig
from mim3d.data.batch import CropBatch, MicroBatch
from mim3d.foundation.errors import StoppedError
from mim3d.training.checkpoints import weights_digest

TOLERATED_SHARE = 0.01
"""Share of a run's steps that may be skipped in all before it stops."""
LOOKS = (0.01, 0.05, 0.20)
"""Shares of the run at which the loss is compared with predicting the mean."""
GUESS_LOOKS = (0.25, 0.50, 1.0)
"""Shares of the run at which the loss is compared with guessing."""
GUESS_MARGIN = 0.02
"""Share of the loss of guessing by which one must lie below it: a collapsed run wavers around it.
"""
FLAT = 1e-6
"""Range of a crop, as a share of its values, that is rounding."""
SMALLEST_STRETCH = 20
"""Steps over which both are averaged, and which any run is given before the first look."""
FIRST_SHAPES = 150
"""Steps after the warm-up that are given to learning means, which come before shapes."""


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


def looks(
    steps: int,
    warmup_steps: int,
    shares: Iterable[float] = LOOKS,
    least: int = SMALLEST_STRETCH,
) -> list[int]:
    """The steps after which a run is asked whether it learns; none in a very short one.

    Args:
        steps: updates of the run.
        warmup_steps: before their end nothing is expected.
        shares: of the run, at which it would be asked but for that.
        least: steps after the warm-up that it is given in any case.
    """
    if steps < SMALLEST_STRETCH:
        return []
    earliest = warmup_steps + least
    return sorted({min(max(math.ceil(share * steps), earliest), steps) for share in shares})


class _Recent:
    """Means of some logs over the last steps."""

    def __init__(self, *names: str) -> None:
        self._stretches = {name: deque[Tensor](maxlen=SMALLEST_STRETCH) for name in names}

    def add(self, logs: Mapping[str, Tensor]) -> None:
        """Takes those of one step that are there."""
        for name, stretch in self._stretches.items():
            if name in logs:
                stretch.append(logs[name])

    def means(self) -> dict[str, float]:
        """Of all that came at least once."""
        return {
            name: float(torch.stack(list(stretch)).double().mean())
            for name, stretch in self._stretches.items()
            if stretch
        }


class MeanPredictor:
    """Says when a pretext task is no better than predicting the mean (RELIABILITY row 28).

    Args:
        steps: updates of the run.
        warmup_steps: before their end nothing is expected.
    """

    def __init__(self, steps: int, warmup_steps: int) -> None:
        self.looks = looks(steps, warmup_steps)
        self._recent = _Recent("loss", "mean_predictor")

    def note(self, logs: Mapping[str, Tensor], step: int) -> str | None:
        """Takes the logs of one step; returns a sentence where one is due.

        Args:
            logs: `loss` and, if the task knows it, `mean_predictor`.
            step: updates made, this one included.
        """
        if "mean_predictor" not in logs:
            return None
        self._recent.add(logs)
        if step not in self.looks:
            return None
        mean = self._recent.means()
        loss = mean["loss"]
        if not loss < mean["mean_predictor"]:
            return (
                f"this run does not learn: at step {step:,} the loss {loss:.4g} is not below "
                f"{mean['mean_predictor']:.4g}, that of predicting the mean; look at the "
                "reconstruction panels and try another `optim.lr`"
            )
        return None


class PatchMeans:
    """Says when all that a pretext task knows of a patch is its mean (row 28).

    Means are learnt first. What is compared is therefore not the loss, which stays high while they
    are not known, but what would be left of it if they were told.

    Args:
        steps: updates of the run.
        warmup_steps: before their end nothing is expected.
    """

    def __init__(self, steps: int, warmup_steps: int) -> None:
        self.looks = looks(steps, warmup_steps, LOOKS[-1:], FIRST_SHAPES)
        self._recent = _Recent("shape_loss", "patch_mean_predictor")

    def note(self, logs: Mapping[str, Tensor], step: int) -> str | None:
        """Takes the logs of one step; returns a sentence where one is due.

        Args:
            logs: `shape_loss` and `patch_mean_predictor`, if the task knows them.
            step: updates made, this one included.
        """
        if "shape_loss" not in logs:
            return None
        self._recent.add(logs)
        if step not in self.looks:
            return None
        mean = self._recent.means()
        shape, level = mean["shape_loss"], mean["patch_mean_predictor"]
        if shape < level:
            return None
        return (
            f"this run knows no more than the mean of each patch so far: at step {step:,} its loss "
            f"would be {shape:.4g} if it were told those means, and the means alone give "
            f"{level:.4g}; look at the reconstruction panels"
        )


class Guessing:
    """Says when a task that finds each crop's other view among others merely guesses.

    Args:
        steps: updates of the run.
        warmup_steps: before their end nothing is expected.
    """

    def __init__(self, steps: int, warmup_steps: int) -> None:
        self.looks = looks(steps, warmup_steps, GUESS_LOOKS)
        self._recent = _Recent("loss", "chance")

    def note(self, logs: Mapping[str, Tensor], step: int) -> str | None:
        """Takes the logs of one step; returns a sentence where one is due.

        Args:
            logs: `loss` and, if the task compares crops, `chance`.
            step: updates made, this one included.
        """
        if "chance" not in logs:
            return None
        self._recent.add(logs)
        if step not in self.looks:
            return None
        mean = self._recent.means()
        if not is_guessing(mean["loss"], mean["chance"]):
            return None
        return (
            f"this run does not learn: at step {step:,} the loss {mean['loss']:.4g} is not "
            f"{100 * GUESS_MARGIN:.0f} % below {mean['chance']:.4g}, that of guessing; look at "
            "`rank` in `log.jsonl`, try another `optim.lr` or a larger `training.batch_size`"
        )


class SameAnswer:
    """Says when a task of whole volumes is no better than one answer for all of them.

    Args:
        steps: updates of the run.
        warmup_steps: before their end nothing is expected.
    """

    def __init__(self, steps: int, warmup_steps: int) -> None:
        self.looks = looks(steps, warmup_steps, GUESS_LOOKS)
        self._recent = _Recent("loss", "same_answer")

    def note(self, logs: Mapping[str, Tensor], step: int) -> str | None:
        """Takes the logs of one step; returns a sentence where one is due.

        Args:
            logs: `loss` and, if the task learns answers, `same_answer`.
            step: updates made, this one included.
        """
        if "same_answer" not in logs:
            return None
        self._recent.add(logs)
        if step not in self.looks:
            return None
        mean = self._recent.means()
        if not is_guessing(mean["loss"], mean["same_answer"]):
            return None
        return (
            f"this run has learnt nothing by step {step:,}: the loss {mean['loss']:.4g} is not "
            f"{100 * GUESS_MARGIN:.0f} % below {mean['same_answer']:.4g}, that of one answer for "
            "all volumes; do crops show what the target depends on (`data.crop_size`, "
            "`data.placement`)? If so try another `optim.lr`, or `--init` from a pre-trained run"
        )


def is_guessing(loss: float, chance: float) -> bool:
    """Whether a loss is not clearly below that of guessing; not-a-number is not.

    Args:
        loss: of a task, a mean over some steps.
        chance: of the same steps, that of guessing.
    """
    return not loss < (1 - GUESS_MARGIN) * chance


class Standstill:
    """Says when weights do not change, or crops hold nothing to learn from (row 28).

    Args:
        task: as it is before its first step here.
        optim: rates and what is frozen.
        steps: updates of the run.
    """

    def __init__(self, task: torch.nn.Module, optim: OptimConfig, steps: int) -> None:
        self.looks = looks(steps, optim.warmup_steps)
        self._task, self._optim, self._steps = task, optim, steps
        self._is_frozen_throughout = optim.freeze_encoder_steps >= steps
        self._digests = self._digest() if self.looks else {}

    def expected(self) -> list[str]:
        """What the config alone tells."""
        found = []
        if self._optim.lr == 0:
            found.append("this run does not learn: `optim.lr` is 0")
        if self._is_frozen_throughout:
            found.append(
                f"the encoder does not learn: `optim.freeze_encoder_steps` "
                f"{self._optim.freeze_encoder_steps:,} is not below `training.steps` "
                f"{self._steps:,}"
            )
        return found

    def note(self, batches: Iterable[MicroBatch], step: int) -> list[str]:
        """What a look finds; nothing at other steps.

        Args:
            batches: of the step.
            step: updates made, this one included.
        """
        if step not in self.looks:
            return []
        found = []
        if all(is_constant(part) for batch in batches for part in batch.parts):
            found.append(
                f"there is nothing to learn from: all crops of step {step:,} are constant; look at "
                "the store with `mim3d info` and at `contact_sheet.png`"
            )
        same = [part for part, digest in self._digest().items() if self._digests[part] == digest]
        if "whole" in same and self._optim.lr > 0:
            found.append(
                f"this run does not learn: at step {step:,} all weights are as they were; is every "
                "part frozen, or does the loss not depend on them?"
            )
        is_its_turn = step > self._optim.freeze_encoder_steps
        is_asked_for = self._is_frozen_throughout or self._optim.adapt == "frozen"
        if same == ["encoder"] and is_its_turn and not is_asked_for:
            found.append(
                f"the encoder does not learn: at step {step:,} its weights are as they were; is it "
                "frozen (`optim.encoder_lr`), or does the loss not depend on it?"
            )
        return found

    def _digest(self) -> dict[str, str]:
        """Digests of all weights and of the encoder's; of this process's share with FSDP."""
        whole = {name: _here(p.detach()) for name, p in self._task.named_parameters()}
        encoder = {name: p for name, p in whole.items() if name.startswith("encoder.")}
        parts = {"whole": whole, "encoder": encoder}
        return {part: weights_digest(tensors) for part, tensors in parts.items() if tensors}


def is_constant(batch: CropBatch) -> bool:
    """Whether each channel of each crop has one value throughout; padding does not count."""
    voxels, valid = batch.voxels.flatten(2), batch.valid
    if valid is None:
        low, high = voxels.aminmax(dim=2)
    else:
        inside = valid.flatten(1)[:, None]
        low = voxels.masked_fill(~inside, math.inf).amin(dim=2)
        high = voxels.masked_fill(~inside, -math.inf).amax(dim=2)
    return bool((high - low <= FLAT * high.abs().clamp_min(1)).all())


def _here(tensor: Tensor) -> Tensor:
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local
