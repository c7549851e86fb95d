"""What one training step costs: its FLOP, counted op by op, and its seconds on this machine."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from mim3d.config.objective import PretextConfig
from mim3d.config.plan import FinetunePlanConfig, PretrainPlanConfig
from mim3d.config.verbs import FinetuneConfig, PretrainConfig
from mim3d.config.writing import to_mapping
from mim3d.data.batch import BatchNeeds
from mim3d.data.feed import make_feed
from mim3d.data.splits import pretraining_cases, training_cases, validation_cases
from mim3d.data.store import open_store
from mim3d.inference.windows import window_starts
from mim3d.objectives.masks import ratio_range
from mim3d.training.fabric import choose_device, choose_precision, float32_matmul, threads
from mim3d.workflows.assembly import store_of
from mim3d.workflows.plan.facts import traced
from mim3d.workflows.plan.measure import RealStep, synthetic_batch
from mim3d.workflows.plan.subject import Subject, subject_of
from mim3d.workflows.plan.trace import without_content

TIMED_STEPS = 3
"""After one that is not counted; the median is taken."""
FEED_CASES = 8
"""From which the feed is timed: as many as tell volumes of a cohort apart, and few to load."""
Clock = Callable[[], float]
FORWARD_SHARE = 1 / 3
"""What a forward pass is of a step of training: the backward pass has two products for each of its
own."""


@dataclass(frozen=True)
class StepCost:
    """One optimiser step.

    Args:
        flop: of all ops of forward and backward pass, accumulation included. What runs without
            gradient, such as a teacher, counts once, as it is done once.
        seconds: on this machine, with the crops that it waits for.
    """

    flop: float
    seconds: float


class Costs:
    """Step costs by config; equal ones are counted once."""

    def __init__(self) -> None:
        self._known: dict[str, StepCost] = {}

    def of(self, config: PretrainConfig | FinetuneConfig) -> StepCost:
        """What a step of this config costs; its length and its seed do not matter."""
        training = replace(config.training, steps=1, seed=0, validate_at=())
        alike = replace(config, training=training)
        key = json.dumps([type(config).__name__, to_mapping(alike)])
        if key not in self._known:
            self._known[key] = step_cost(config)
        return self._known[key]


def step_cost(config: PretrainConfig | FinetuneConfig) -> StepCost:
    """Takes one step without numbers to count it, and a few real ones to time it.

    Where the mask ratio changes from step to step, it is a step of the middle one; a guide's
    teacher adds a third of a step, which is a forward pass, in each step that asks it.

    Raises:
        UserError: no store, or a config with which nothing can be trained.
    """
    looks = 0.0
    if isinstance(config, PretrainConfig):
        looks = _teacher_passes(config.objective)
        config = replace(config, objective=_with_middle_ratio(config.objective))
    subject = subject_of(_planned(config))
    training = config.training
    device = choose_device(training.device)
    clock = _clock(device, training.threads)
    precision = choose_precision(training.precision, device)
    crops = max(1, training.batch_size // training.accumulation)
    trace = traced(subject, crops, precision, is_cpu=device.type != "cuda")
    kinds = [replace(subject, build=build) for build in subject.build.kinds]
    with threads(training.threads), float32_matmul(training.float32_matmul):
        each = [_seconds(kind, crops, precision, device, clock) for kind in kinds]
        needs = without_content(subject.build).needs
        # By the wall's clock: waiting for the disk is part of it.
        fed = feed_seconds(config, needs, device, time.perf_counter)
    steps = training.accumulation * (1 + looks * FORWARD_SHARE)
    own = sum(each) / len(each) * steps
    # Worker processes make crops while a step computes; without them it waits for all of them.
    seconds = max(own, fed / config.data.workers) if config.data.workers else own + fed
    return StepCost(trace.flop * steps, seconds)


def feed_seconds(
    config: PretrainConfig | FinetuneConfig,
    needs: BatchNeeds,
    device: torch.device,
    clock: Clock,
) -> float:
    """What the crops of a step take one process: read, cut, augmented, as training would have them.

    The first step, for which volumes are loaded, does not count.

    Args:
        config: whose store, crops and augmentation; without a store it is 0.
        needs: of the task.
        device: of the training.
        clock: by which it is timed.
    """
    if config.data.store is None and not config.data.stores:
        return 0.0
    data = replace(config.data, workers=0, window_cases=None, max_crops_per_visit=None,
                   labels=None, subjects=None)  # fmt: skip
    is_pretraining = isinstance(config, PretrainConfig)
    store = store_of(data, several=is_pretraining)
    cases = (pretraining_cases if is_pretraining else training_cases)(store, data, 0)
    feed = make_feed(
        store,
        cases[:: max(1, len(cases) // FEED_CASES)],
        data=data,
        augmentation=config.augmentation,
        needs=needs,
        batch_size=config.training.batch_size,
        seed=0,
        device=device,
    )
    batches = feed.batches(0, 1 + TIMED_STEPS, accumulation=config.training.accumulation)
    seconds = _median_seconds(lambda _: next(batches), device, clock)
    for _ in batches:  # to its end, where it lets go of the volumes
        pass
    return seconds


def _with_middle_ratio(objective: PretextConfig) -> PretextConfig:
    lowest, highest = ratio_range(objective)
    return replace(objective, mask_ratio=(lowest + highest) / 2, mask_ratio_end=None)


def _teacher_passes(objective: PretextConfig) -> float:
    """Forward passes a step of a guide's own teacher, which a plan leaves out."""
    guide = objective.guide
    return 1 / guide.every if (guide.by, guide.source) == ("loss", "teacher") else 0.0


def _planned(config: PretrainConfig | FinetuneConfig) -> PretrainPlanConfig | FinetunePlanConfig:
    values: dict[str, Any] = {field.name: getattr(config, field.name) for field in fields(config)}
    if isinstance(config, PretrainConfig):
        return PretrainPlanConfig(**values)
    return FinetunePlanConfig(**values)


def _clock(device: torch.device, said: int | None) -> Clock:
    """This process's own time where it has one thread, so that other work does not count."""
    count = said or torch.get_num_threads()
    return time.process_time if device.type == "cpu" and count == 1 else time.perf_counter


def _seconds(
    subject: Subject, crops: int, precision: str, device: torch.device, clock: Clock
) -> float:
    """Of a real step on synthetic crops."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        task = subject.build()
    step = RealStep(task.train().to(device), subject.optim, precision)
    batch = synthetic_batch(subject, crops, task.needs.views).to(device)
    return _median_seconds(lambda number: step(batch, number), device, clock)


def _median_seconds(work: Callable[[int], Any], device: torch.device, clock: Clock) -> float:
    """Of `TIMED_STEPS` times, after one that is not counted."""
    times = []
    for number in range(1 + TIMED_STEPS):
        began = clock()
        work(number)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(clock() - began)
    return sorted(times[1:])[TIMED_STEPS // 2]


def look_seconds(config: FinetuneConfig, step: StepCost) -> float:
    """About how long it takes to judge all validation cases once."""
    if config.data.store is None:
        return 0.0
    store = open_store(config.data.store)
    window = config.inference.window or config.data.crop_size
    windows = 0
    for case in validation_cases(store, config.data):
        x, y, z = (max(pair) for pair in zip(store.entry(case).shape[1:], window, strict=True))
        windows += len(window_starts((x, y, z), window, config.inference.overlap))
    share = math.prod(window) / math.prod(config.data.crop_size)
    return windows * share * step.seconds * FORWARD_SHARE / config.training.batch_size
