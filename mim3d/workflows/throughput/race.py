"""A fair race: contestants that take turns in one process, a clock, and ratios repeat by repeat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mim3d.workflows.throughput.clock import elapsed

SHIPPED = "MONAI as shipped"
TUNED = "MONAI tuned"
"""What the names of the two other sides begin with: the references of S and T."""


@dataclass(frozen=True)
class Contestant:
    """One way to do a job.

    Args:
        name: for the table.
        call: does the job once; is told how many times it was called before.
        equality: how its result compares with MONAI's.
        calls: between two looks at the clock.
    """

    name: str
    call: Callable[[int], Any]
    equality: str
    calls: int = 1


@dataclass(frozen=True)
class Job:
    """What contestants do, their results compared already.

    Args:
        stage: of a run.
        what: sizes and networks.
        contestants: the other side's first.
        is_warm: whether comparing has run every network in every precision already.
        other: whom we race against.
    """

    stage: str
    what: str
    contestants: Sequence[Contestant]
    is_warm: bool = False
    other: str = "MONAI"


@dataclass(frozen=True)
class Row:
    """The times of one contestant, and how many times as long the other side took in a repeat.

    Args:
        stage: as in `Job`.
        what: as in `Job`.
        contestant: its name.
        equality: how its result compares with MONAI's.
        ms: milliseconds of a call, one a repeat.
        s: the other side as shipped / this, one a repeat; empty for that itself.
        t: the other side tuned / this, one a repeat; empty for the other side.
    """

    stage: str
    what: str
    contestant: str
    equality: str
    ms: list[float]
    s: list[float]
    t: list[float]


def race(job: Job, repeats: int, device: torch.device) -> list[Row]:
    """Times all contestants, whose order is reversed every other repeat; the first goes untimed."""
    for one in () if job.is_warm else job.contestants:
        seconds(one, 0, device)
    times: dict[str, list[float]] = {one.name: [] for one in job.contestants}
    for repeat in range(repeats):
        for one in job.contestants if repeat % 2 == 0 else reversed(job.contestants):
            times[one.name].append(1e3 * seconds(one, repeat, device) / one.calls)
    shipped, tuned = f"{job.other} as shipped", f"{job.other} tuned"
    return [
        Row(
            job.stage,
            job.what,
            one.name,
            one.equality,
            times[one.name],
            s=[] if one.name.startswith(shipped) else ratios(times, shipped, one.name),
            t=[] if one.name.startswith((shipped, tuned)) else ratios(times, tuned, one.name),
        )
        for one in job.contestants
    ]


def seconds(one: Contestant, repeat: int, device: torch.device) -> float:
    """What the calls of one repeat take, by the common clock."""
    first = 1 + repeat * one.calls

    def calls() -> None:
        for number in range(first, first + one.calls):
            one.call(number)

    return elapsed(calls, device)


def ratios(times: dict[str, list[float]], reference: str, name: str) -> list[float]:
    """The time of the contestant called `reference…` / the named one's, repeat by repeat."""
    theirs = [found for key, found in times.items() if key.startswith(reference)]
    return (
        [other / own for other, own in zip(theirs[0], times[name], strict=True)] if theirs else []
    )


class Disagreement(Exception):
    """The contestants do not give the same: a ratio between them is worth nothing."""


def require(same: bool, what: str) -> None:
    """Raises `Disagreement` unless the results are the same."""
    if not same:
        raise Disagreement(f"the contestants do not agree, so they are not timed: {what}")
