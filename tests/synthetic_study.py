"""Learning curves with a known answer, as records of a convergence benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from mim3d.evaluation.convergence import Kind, Pretraining, Record
from mim3d.foundation.randomness import generator

STEPS = (0, 10, 20, 40, 80, 160, 320, 640)
KINDS: dict[str, Kind] = {"scratch": "scratch", "mae": "masked", "simclr": "contrastive"}


def rising(steps: np.ndarray, *, speed: float = 1.0, top: float = 0.85) -> np.ndarray:
    """Saturating growth: `top` times 1 - exp(-speed * steps / 60)."""
    return top * (1 - np.exp(-speed * steps / 60))


def pretraining(arm: str, seed: int = 0, dead: str | None = None) -> Pretraining:
    return Pretraining(f"{arm}-seed{seed}", arm, seed, 1000, 6.4e12, 600.0, dead, {"rank": 40.0})


def record(
    arm: str,
    curve: Callable[[np.ndarray], np.ndarray],
    *,
    replicate: int = 0,
    labels: str = "0.1",
    subjects: int = 20,
    cases: int = 30,
    per_subject: int = 1,
    noise: float = 0.0,
    run_noise: float = 0.0,
    seed: int = 0,
    steps: Sequence[int] = STEPS,
    dead: str | None = None,
) -> Record:
    """A run: the curve, raised per subject (the same for all arms), per run, and case by case."""
    difficulty = generator(seed, "subject", labels).normal(0, 0.03, cases // per_subject)
    draw = generator(seed, "replicate", replicate, labels).normal(0, run_noise)
    own = generator(seed, "run", arm, replicate, labels)
    shift = draw + own.normal(0, run_noise) + np.repeat(difficulty, per_subject) * (noise > 0)
    shift = shift + own.normal(0, noise, cases)
    height = curve(np.array(steps, float))[:, None]
    dice = np.clip(height * (1 + shift), 0, 1)
    kind = KINDS.get(arm, "other")
    return Record(
        arm=arm, labels=labels, subjects=subjects, replicate=replicate, fold=None,
        steps=tuple(steps), cases=tuple(f"case_{place:02d}" for place in range(cases)),
        case_subjects=tuple(f"subject_{place // per_subject:02d}" for place in range(cases)),
        dice=tuple(tuple(map(float, row)) for row in dice), zeroed=0.4, seconds=64.0,
        flop=6.4e11, lr=1e-3, kind=kind,
        pretraining=None if kind == "scratch" else pretraining(arm, replicate), dead=dead,
    )  # fmt: skip


def from_seed(run: Record, seed: int) -> Record:
    """The run as one that starts from the arm's pre-training of that seed."""
    return replace(run, pretraining=pretraining(run.arm, seed))


def without_curve(run: Record, why: str) -> Record:
    """The run as one that broke down."""
    return replace(run, steps=(), cases=(), case_subjects=(), dice=(), zeroed=None,
                   zeroed_cases=None, dead=why)  # fmt: skip


SLOW = partial(rising, speed=0.5)
"""Half the speed of `rising`; on a grid that doubles, the same curve one point later."""
L = "0.1"
"""The label fraction of `record`."""


def runs(
    arm: str, curve: object = rising, replicates: int = 3, **settings: object
) -> tuple[Record, ...]:
    """An arm's replicates, which differ in their noise alone."""
    make = partial(record, arm, curve, **settings)  # type: ignore[arg-type]
    return tuple(make(replicate=place) for place in range(replicates))
