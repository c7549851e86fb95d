"""Row 24: what a step sees follows from seed, step and place alone."""

from __future__ import annotations

import hashlib
import itertools
import random as python_random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mim3d.config.data import AugmentationConfig, DataConfig
from mim3d.data.batch import BatchNeeds
from mim3d.data.feed import Feed, make_feed
from mim3d.data.store import Store
from mim3d.foundation.randomness import RandomStream, generator
from mim3d.objectives.base import Moment
from tests.reliability.killing import Child, Life, Say
from tests.reliability.proof import Tally, proof
from tests.reliability.small_training import small_store

STEPS = 200
STRETCH = 20
BATCH_SIZE = 8
FEEDS: tuple[dict[str, Any], ...] = (
    {"feed": "store"},
    {"feed": "resident"},
    {"feed": "store", "window_cases": 2, "max_crops_per_visit": 16},
    {"feed": "resident", "window_cases": 2, "max_crops_per_visit": 16},
)
"""The last streams volumes through memory; the plan of two follows from their window."""
WAYS = tuple(itertools.product(range(4), range(len(FEEDS)), (1, 2)))
"""Workers, feed, processes."""
AUGMENTATION = AugmentationConfig(
    flip_axes=("x", "z"), turn_plane=("x", "z"), turn_probability=0.5, affine_probability=0.5,
    rotation_degrees=(10, 10, 10), zoom=0.1, scale_intensity=0.2, gamma=0.3, noise=0.1,
    noise_probability=0.7,
)  # fmt: skip

Digests = dict[tuple[int, int], str]


@proof(rows=(24,), trials="stretches of 20 steps, each with its workers, feed and processes",
       quick=8, full=320, stretch=32)  # fmt: skip
def samples(trials: range, seed: int, folder: Path) -> Tally:
    """Crops, augmentations and mask keys are bit-equal whatever makes them, over 200 steps."""
    tally, store = Tally(), small_store(folder / "store")
    expected: dict[tuple[bool, int], Digests] = {}
    for trial in trials:
        # Every stretch of steps meets every way once: 10 x 32.
        workers, feed, world = WAYS[(trial * 13 + trial // len(WAYS)) % len(WAYS)]
        start = trial // len(WAYS) % (STEPS // STRETCH) * STRETCH
        plan = "window_cases" in FEEDS[feed]
        if (plan, start) not in expected:
            expected[plan, start] = _drawn(store, 2 * plan, 0, start, 0, 1)
        work = partial(_say, store, feed, workers, start, world, seed, trial)
        lives = [child.wait() for child in [Child(partial(work, rank)) for rank in range(world)]]
        fault = next((life.fault for life in lives if life.fault), None)
        if fault is None and _told(lives) != expected[plan, start]:
            fault = "other samples"
        broken = None if fault is None else f"{workers} workers, {FEEDS[feed]}: {fault}"
        tally.add(trial, f"equal, {world} processes", broken)
    return tally


def _told(lives: list[Life]) -> Digests:
    """What all processes drew."""
    words = [word.split() for life in lives for word in life.said]
    return {(int(step), int(place)): digest for step, place, digest in words}


def _say(
    store: Path, feed: int, workers: int, start: int, world: int, seed: int, trial: int, rank: int,
    say: Say,
) -> None:  # fmt: skip
    # Global generators stand anywhere, and are left where they stood.
    draw = generator(seed, trial, rank, "global")
    for set_seed in (python_random.seed, np.random.seed, torch.manual_seed):
        set_seed(int(draw.integers(2**31)))
    before = _generators()
    drawn = _drawn(store, feed, workers, start, rank, world)
    if _generators() != before:
        raise AssertionError("a global generator was drawn from")
    for (step, place), digest in drawn.items():
        say(f"{step} {place} {digest}")


def _generators() -> str:
    state = python_random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    return repr((state, torch.get_rng_state().tolist()))


def _drawn(store: Path, feed: int, workers: int, start: int, rank: int, world: int) -> Digests:
    """A digest of all that is known of each sample, by step and place in the global batch."""
    found: dict[tuple[int, int], Any] = {}
    batches = _feed(store, feed, workers).batches(
        start, start + STRETCH, rank=rank, world=world, accumulation=2
    )
    for step, micro_batches in batches:
        for batch in micro_batches:
            keys = Moment(step, STEPS, RandomStream(0, step)).keys(batch, "mask").tolist()
            for row, place in enumerate(batch.crop_ids.tolist()):
                total = found.setdefault((step, place), hashlib.sha256())
                total.update(f"{batch.case_ids[row]} {keys[row]}".encode())
                # None where nothing in the micro-batch is padding.
                whole = torch.ones_like(batch.voxels[:, 0], dtype=torch.bool)
                valid = whole if batch.valid is None else batch.valid
                for tensor in (batch.voxels, batch.affine, batch.labels, batch.air, valid):
                    assert tensor is not None
                    total.update(tensor[row].contiguous().numpy().tobytes())
    return {key: total.hexdigest()[:24] for key, total in found.items()}


def _feed(store: Path, feed: int, workers: int) -> Feed:
    opened = Store(store)
    data = DataConfig(crop_size=(9, 12, 9), placement="label", overhang=(3, 2, 1),
                      workers=workers, **FEEDS[feed])  # fmt: skip
    return make_feed(opened, opened.cases, data=data, augmentation=AUGMENTATION,
                     needs=BatchNeeds(views=2, labels=True), batch_size=BATCH_SIZE,
                     seed=0)  # fmt: skip
