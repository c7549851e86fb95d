"""A few cases prepared in a temporary folder: what headers do not say, and what all will cost."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mim3d.config.verbs import PrepareConfig
from mim3d.data.cohort import Cohort
from mim3d.data.prepare import prepare_store
from mim3d.data.store import open_store
from mim3d.foundation.reporting import Silent
from mim3d.workflows.inspect.headers import CaseHeaders, Problem

START_SECONDS = 3.0
"""For a process to load what it needs before its first case."""
WARM_UP = 20_000_000
"""Voxels up to which the smallest case is prepared once without being timed."""
MOST_TRIES = 3
"""Times that further cases are tried where none could be prepared."""
SIDECAR = 8 << 10
"""Bytes of a case beside its voxels."""


@dataclass(frozen=True)
class Trial:
    """What became of the cases that were tried.

    Attributes:
        cases: how many could be prepared.
        modalities: one a channel, as most of them; empty where none could.
        classes: names of the labels in them.
        problems: what was refused, and why.
        notes: what was odd, by code, with the number of cases.
        seconds: what they took.
        voxels: that they have.
        stored: bytes that they take in the store.
    """

    cases: int = 0
    modalities: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    notes: tuple[tuple[str, int], ...] = ()
    seconds: float = 0.0
    voxels: int = 0
    stored: int = 0


@dataclass(frozen=True)
class Estimate:
    """What preparing all usable cases will take.

    Attributes:
        seconds: on this machine, with as many processes as `prepare` takes.
        processes: that.
        stored: bytes of the store.
        tried: cases that were tried for it.
    """

    seconds: float
    processes: int
    stored: float
    tried: int


def try_some(
    cohort: Cohort, headers: Sequence[CaseHeaders], config: PrepareConfig, count: int
) -> Trial:
    """Prepares the cases of about median size as `prepare` would, in a folder that is removed.

    Args:
        cohort: of all cases.
        headers: of all cases.
        config: how they are prepared.
        count: how many to try.
    """
    usable = sorted((one for one in headers if one.images and not _is_refused(one)),
                    key=lambda one: (one.voxels, one.case.case_id))  # fmt: skip
    if not usable or count < 1:
        return Trial()
    if usable[0].voxels < WARM_UP:
        # What is loaded with the first case is no part of what the next one takes.
        _tried(cohort, usable[:1], config)
    middle = max(0, (len(usable) - count) // 2)
    ordered = [*usable[middle:], *usable[:middle]]
    refused: tuple[Problem, ...] = ()
    for start in range(0, min(len(ordered), MOST_TRIES * count), count):
        trial = _tried(cohort, ordered[start : start + count], config)
        refused += trial.problems
        if trial.cases:
            return replace(trial, problems=refused)
    return Trial(problems=refused)


def _tried(cohort: Cohort, some: Sequence[CaseHeaders], config: PrepareConfig) -> Trial:
    # Split and names of cases change nothing of them.
    plain = replace(config.prepare, workers=0, split=None, case_ids="stem", keep_paths=False)
    part = replace(cohort, cases=tuple(one.case for one in some), found=(), remarks=())
    with tempfile.TemporaryDirectory(prefix="mim3d-inspect-") as folder:
        began = time.monotonic()
        settings = replace(config, prepare=plain, shard=None)
        done = prepare_store(part, Path(folder) / "store", settings, Silent())
        seconds = time.monotonic() - began
        problems = tuple(Problem(r.case_id, r.code, r.reason, r.remedy) for r in done.refused)
        if not done.prepared:
            return Trial(problems=problems)
        store = open_store(done.store)
        voxels = {one.case.case_id: one.voxels for one in some}
        return Trial(
            len(done.prepared),
            store.modalities,
            () if store.classes is None else store.classes.names,
            problems,
            tuple(store.fingerprint["notes"].items()),
            seconds,
            sum(voxels[case_id] for case_id in done.prepared),
            int(store.fingerprint["bytes"]),
        )


def estimated(headers: Sequence[CaseHeaders], trial: Trial, workers: int | None) -> Estimate | None:
    """What all usable cases will take, by their voxels; None where nothing could be tried."""
    usable = [one for one in headers if one.images and not _is_refused(one)]
    if not trial.cases or not trial.voxels:
        return None
    voxels = sum(one.voxels for one in usable)
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    processes = min(cores if workers is None else max(1, workers), len(usable))
    seconds = voxels / trial.voxels * trial.seconds / processes + START_SECONDS
    stored = voxels / trial.voxels * trial.stored + SIDECAR * len(usable)
    return Estimate(seconds, processes, stored, trial.cases)


def _is_refused(one: CaseHeaders) -> bool:
    return any(problem.refuses for problem in one.problems)
