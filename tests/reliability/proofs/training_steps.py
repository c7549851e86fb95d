"""Rows 27 and 28 in one process: steps that are not finite, and runs that learn nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from mim3d.data.batch import CropBatch
from mim3d.foundation.randomness import generator
from mim3d.objectives.base import Task
from mim3d.training.loop import Feed
from tests.reliability.killing import Say, life
from tests.reliability.proof import Tally, proof
from tests.reliability.proofs.training import OBJECTIVES
from tests.reliability.small_training import (
    ACCUMULATION,
    BATCH_SIZE,
    LeavingOut,
    Small,
    small_store,
    tensors_digest,
    train,
)

PLACES = ("voxel", "loss", "gradient")
VALUES = (float("nan"), float("inf"), float("-inf"))
MASKED = ("mae", "simmim", "autoencoder")
"""Objectives that know what predicting the mean costs."""
STANDSTILLS = ("constant crops", "rate 0", "frozen steps", "frozen encoder", "encoder rate 0",
               "none")  # fmt: skip
SAYS = {"constant crops": "constant", "rate 0": "`optim.lr` is 0",
        "frozen steps": "freeze_encoder_steps", "frozen encoder": "encoder does not learn",
        "encoder rate 0": "encoder does not learn"}  # fmt: skip


@proof(rows=(27,), trials="not-a-numbers and infinities in a voxel, the loss or the gradient",
       quick=3, full=40, stretch=20)  # fmt: skip
def steps_left_out(trials: range, seed: int, folder: Path) -> Tally:
    """A step that is not finite leaves the bits of a run that never had it, and is told of."""
    tally, store = Tally(), small_store(folder / "store")
    for trial in trials:
        place = PLACES[trial % len(PLACES)]
        small = Small(store, OBJECTIVES[trial // len(PLACES) % len(OBJECTIVES)])
        random = generator(seed, trial, "not finite")
        step = int(random.integers(small.steps - 1))
        fault = Fault(place, step, int(random.integers(ACCUMULATION)), VALUES[trial // 9 % 3])
        runs = [folder / f"{name}-{trial}" for name in ("with", "without")]
        lives = [life(partial(_with, small, fault, runs[0])),
                 life(partial(_without, small, step, runs[1]))]  # fmt: skip
        broken = next((one.fault for one in lives if one.fault), None)
        if broken is None and tensors_digest(runs[0]) != tensors_digest(runs[1]):
            broken = "other bits than without that step"
        tally.add(trial, f"{place}: equal", broken or _not_told(runs[0], fault))
        for run in runs:
            shutil.rmtree(run)
    return tally


@dataclass(frozen=True)
class Fault:
    """What is not finite, and when.

    Args:
        place: `voxel`, `loss` or `gradient`.
        step: of the run.
        part: micro-batch of the step.
        value: NaN or an infinity.
    """

    place: str
    step: int
    part: int
    value: float

    def touch(self, task: Task) -> None:
        """Plants it in a task; voxels are changed on their way in."""
        parts = {"count": 0}

        def before(module: Task, arguments: tuple[Any, ...]) -> Any:
            batch, moment = arguments
            if moment.step != self.step or not module.training:
                return None
            parts["count"] += 1
            if self.place != "voxel" or parts["count"] - 1 != self.part:
                return None
            voxels = batch.voxels.clone()
            voxels[-1, -1, 7, 5, 3] = self.value
            return replace(batch, voxels=voxels), moment

        def after(module: Task, arguments: tuple[Any, ...], outcome: Any) -> Any:
            is_here = arguments[1].step == self.step and module.training
            if not is_here or parts["count"] - 1 != self.part:
                return None
            if self.place == "loss":
                return replace(outcome, loss=outcome.loss + self.value)
            if self.place == "gradient":
                outcome.loss.register_hook(lambda gradient: gradient * self.value)
            return None

        task.register_forward_pre_hook(before)
        task.register_forward_hook(after)


def _with(small: Small, fault: Fault, folder: Path, say: Say) -> None:
    train(small, folder, touch=fault.touch, validators=())


def _without(small: Small, step: int, folder: Path, say: Say) -> None:
    train(small, folder, feed=lambda feed: LeavingOut(feed, step), validators=())


def _not_told(folder: Path, fault: Fault) -> str | None:
    """What is missing in the log of a step that was left out."""
    lines = [line for line in _log(folder) if line["kind"] == "skipped"]
    if [line["step"] for line in lines] != [fault.step + 1]:
        return f"skipped steps in the log: {[line['step'] for line in lines]}"
    crops = {crop["crop"] for crop in lines[0]["crops"]}
    size = BATCH_SIZE // ACCUMULATION
    culprits = set(range(fault.part * size, (fault.part + 1) * size))
    return None if culprits <= crops else f"crops in the log: {crops}, not {culprits}"


def _log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@proof(rows=(28,), trials="runs that cannot learn, and as many that can", quick=6, full=60,
       stretch=20)  # fmt: skip
def learning_nothing(trials: range, seed: int, folder: Path) -> Tally:
    """Constant crops, a rate of 0, a frozen encoder are said; a run that learns is left alone."""
    tally, store = Tally(), small_store(folder / "store")
    for trial in trials:
        reason = STANDSTILLS[trial % len(STANDSTILLS)]
        objectives = MASKED if trial < 2 * len(STANDSTILLS) else OBJECTIVES
        objective = objectives[trial // len(STANDSTILLS) % len(objectives)]
        run = folder / f"run-{trial}"
        ended = life(partial(_standing_still, Small(store, objective, steps=24), reason, run))
        broken = ended.fault or _unsaid(run, reason)
        tally.add(trial, "left alone" if reason == "none" else f"{reason}: said", broken)
        shutil.rmtree(run)
    return tally


def _standing_still(small: Small, reason: str, folder: Path, say: Say) -> None:
    optim = {"rate 0": {"lr": 0.0}, "frozen steps": {"freeze_encoder_steps": small.steps},
             "encoder rate 0": {"encoder_lr": 0.0}}.get(reason, {})  # fmt: skip
    changed = replace(small, optim=tuple(optim.items()))
    touch: Callable[[Task], None] = _freeze if reason == "frozen encoder" else lambda task: None
    feed: Callable[[Feed], Feed] = _Constant if reason == "constant crops" else lambda feed: feed
    train(changed, folder, feed=feed, touch=touch, validators=())


def _freeze(task: Task) -> None:
    for name, parameter in task.named_parameters():
        if name.startswith("encoder."):
            parameter.requires_grad_(False)


@dataclass
class _Constant:
    """A feed whose every crop has one value, another one each."""

    feed: Feed

    def batches(self, start: int, stop: int, **share: int) -> Iterator[tuple[int, list[CropBatch]]]:
        for step, batches in self.feed.batches(start, stop, **share):
            yield step, [replace(b, voxels=_flat(b.voxels)) for b in batches]


def _flat(voxels: Tensor) -> Tensor:
    return voxels.mean(dim=(2, 3, 4), keepdim=True).expand_as(voxels).contiguous()


def _unsaid(folder: Path, reason: str) -> str | None:
    texts = [line["text"] for line in _log(folder) if line["kind"] == "notice"]
    if reason == "none":
        wrong = [text for text in texts if "encoder does not" in text or "constant" in text]
        return f"said of a sound run: {wrong}" if wrong else None
    is_said = any(SAYS[reason] in text for text in texts)
    return None if is_said else f"of {reason} it says {texts}"
