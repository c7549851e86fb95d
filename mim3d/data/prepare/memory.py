"""How many cases can be prepared at once: what their headers declare against the free memory."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np

from mim3d.config.read import ReadConfig
from mim3d.config.verbs import PrepareConfig
from mim3d.data.cohort import Case
from mim3d.data.files import Geometry, read_geometry
from mim3d.foundation.errors import UserError
from mim3d.foundation.machine import available_bytes
from mim3d.foundation.memory import gigabytes
from mim3d.foundation.reporting import Reporter

PROCESS = 400 << 20
"""Bytes of a process with its libraries, before a case comes."""
LABELLED = 16
"""Bytes a voxel beside the intensities while a label map is looked through (measured: 13)."""
LEAST_SPARE = 2 << 30
"""Address space a process has at least beyond the largest case: mapped is not used."""


def need_bytes(case: Case, spacing_mm: tuple[float, float, float] | None, read: ReadConfig) -> int:
    """The most memory that preparing a case takes, by what its headers declare.

    Measured with 8- to 64-bit volumes of one and four channels, with and without labels and
    resampling: 0.6 to 0.97 of what this says.

    Returns:
        0 where the headers cannot be read: the case will be refused before it takes any.
    """
    try:
        grids = [read_geometry(path, read) for path in case.images]
    except (UserError, OSError):
        # The process that prepares it will meet the same and say so.
        return 0
    first, channels = grids[0], sum(grid.channels for grid in grids)
    width = max(np.dtype(grid.dtype).itemsize for grid in grids)
    labelled = 0 if case.label is None else LABELLED
    reading = math.prod(first.shape) * (channels * (2 * width + 2) + labelled)
    if spacing_mm is None:
        return reading
    kept = math.prod(first.shape) * (channels * width + (labelled > 0))
    return max(reading, kept + _resampled_voxels(first, spacing_mm) * (9 * channels + 10))


def _resampled_voxels(grid: Geometry, spacing_mm: tuple[float, float, float]) -> int:
    sides = zip(grid.shape, grid.spacing_mm, spacing_mm, strict=True)
    return math.prod(max(1, round(size * old / new)) for size, old, new in sides)


def fitting_processes(
    needs: Sequence[int], wanted: int, free: int | None
) -> tuple[int, int | None, str | None]:
    """How many processes the memory allows, whichever cases they have at the same time.

    Args:
        needs: bytes of each case.
        wanted: processes asked for, or cores.
        free: bytes, None where the system does not say.

    Returns:
        Processes, at least 1; the address space that each may take beyond its start, None where
        there is nothing to go by; and what a person should know, or None.
    """
    if free is None or wanted < 1:
        return wanted, None, None
    largest = sorted(needs, reverse=True)
    count = wanted
    while count > 1 and sum(largest[:count]) + count * PROCESS > free:
        count -= 1
    most = largest[0] if largest else 0
    spare = max(free // count, most + LEAST_SPARE)
    told = None
    if most + PROCESS > free:
        told = (
            f"the largest case needs up to {gigabytes(most + PROCESS)} and {gigabytes(free)} of "
            "memory are free: what does not fit will be refused"
        )
    elif count < wanted:
        told = (
            f"{count} process(es) instead of {wanted}: the largest case needs up to "
            f"{gigabytes(most + PROCESS)} and {gigabytes(free)} of memory are free"
        )
    return count, spare, told


def processes_for(
    due: Sequence[Case], cases: int, config: PrepareConfig, reporter: Reporter
) -> tuple[int, int | None]:
    """How many processes prepare, and the address space that each may take.

    Args:
        due: cases that are to be prepared: those that are kept take no memory.
        cases: how many there are in all.
        config: settings.
        reporter: where too little memory is told.
    """
    settings = config.prepare
    wanted = settings.workers
    if wanted is None:
        affinity = getattr(os, "sched_getaffinity", None)
        wanted = len(affinity(0)) if affinity else os.cpu_count() or 1
    wanted = min(wanted, cases)
    if wanted == 0:
        return 0, None
    needs = [_need(case, config, reporter) for case in due]
    count, spare, told = fitting_processes(needs, wanted, available_bytes())
    if told is not None:
        reporter.warn(told)
    return count, spare


def _need(case: Case, config: PrepareConfig, reporter: Reporter) -> int:
    try:
        return need_bytes(case, config.prepare.spacing_mm, config.read)
    except Exception as error:
        # One case must not take the cohort with it.
        reporter.warn(f"what memory `{case.case_id}` needs cannot be told: a bug in mim3d "
                      f"({type(error).__name__})")  # fmt: skip
        return 0
