"""Which case each sample is drawn from, where a window of the cohort is in memory at a time.

The queue of cases is the same with and without a window: shuffled passes over the cohort, or over
its stores in turn. A window has `window_cases` slots. A slot holds one case for a visit of
`max_crops_per_visit` crops, then takes the next of the queue. Visits begin at different times, so
that cases come and go evenly. All of it follows from (seed, cohort, config, step, index).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mim3d.foundation.randomness import generator


class Visit(NamedTuple):
    """One stay of a case in memory.

    Args:
        slot: of the window.
        number: visits of that slot before it.
    """

    slot: int
    number: int


class Queue:
    """The order in which cases come: shuffled passes over all of them, without an end.

    With several strata each pass is over the strata, one case of each, and every stratum has
    shuffled passes of its own. Hence any so many cases that follow each other hold equally many of
    every stratum, up to one, and within it every case comes equally often.

    Args:
        strata: the numbers of the cases of each; one stratum is the whole cohort.
        seed: the run's.
    """

    def __init__(self, strata: Sequence[Sequence[int]], seed: int) -> None:
        self._strata = tuple(tuple(stratum) for stratum in strata)
        self._seed = seed

    def case(self, number: int) -> int:
        """The case at a place of the queue; places before the first are passes of their own."""
        if len(self._strata) == 1:
            passed, place = divmod(number, len(self._strata[0]))
            return self._strata[0][int(order(self._seed, passed, len(self._strata[0]))[place])]
        passed, place = divmod(number, len(self._strata))
        which = int(_turns(self._seed, passed, len(self._strata))[place])
        cases = self._strata[which]
        own, place = divmod(passed, len(cases))
        return cases[int(_own_order(self._seed, own, which, len(cases))[place])]


class VisitPlan:
    """The visits of a run.

    The places of a batch and the slots of the window are divided into as many groups as divide
    both: a group of places draws from its own slots. Hence a device that works through a share of
    every batch needs a share of the window, whatever their number, and no sample depends on it.

    Args:
        cases: number of cases of the cohort.
        window: slots, at most as many as cases.
        most: crops of a visit, at most.
        batch_size: crops of one step over all devices.
        seed: the run's.
        queue: the order of cases; None is shuffled passes over all.
    """

    def __init__(
        self,
        cases: int,
        window: int,
        most: int,
        batch_size: int,
        seed: int,
        queue: Queue | None = None,
    ) -> None:
        self.cases = cases
        self.window = window
        self.most = most
        self.groups = math.gcd(window, batch_size)
        self._slots = window // self.groups
        self._places = batch_size // self.groups
        self._seed = seed
        self._queue = queue or Queue((range(cases),), seed)

    def visit(self, step: int, index: int) -> Visit:
        """The visit that a sample is drawn from; each has at most `most` of them."""
        group, place = divmod(index, self._places)
        # In a round every slot of the group gives one crop, in an order of its own.
        done, place = divmod(step * self._places + place, self._slots)
        local = int(_round(self._seed, done, group, self._slots)[place])
        slot = local * self.groups + group
        return Visit(slot, (done + self._head_start(slot)) // self.most)

    def case(self, visit: Visit) -> int:
        """Which case of the cohort it is, by the visit's place in the queue."""
        return self._queue.case(visit.number * self.window + visit.slot)

    def last_step(self, visit: Visit) -> int:
        """The step of the visit's last crop."""
        rounds = (visit.number + 1) * self.most - self._head_start(visit.slot)
        return (rounds * self._slots - 1) // self._places

    def largest_need(self, steps: int, shares: range) -> int:
        """Visits that some consecutive steps can touch, at most.

        Args:
            steps: how many.
            shares: places of the batch that one device works through.
        """
        groups = range(shares.start // self._places, (shares.stop - 1) // self._places + 1)
        slots = [local * self.groups + g for g in groups for local in range(self._slots)]
        # Rounds that so many samples can touch; at each change some slots begin a new visit.
        changes = (max(steps * self._places, 2) - 2) // self._slots + 1
        begins = np.array([-self._head_start(slot) % self.most for slot in slots])
        counts = np.bincount(begins, minlength=self.most)
        whole, rest = divmod(changes, self.most)
        total = np.cumsum(np.concatenate(([0], counts, counts)))
        new = int((total[rest:] - total[: len(total) - rest]).max()) if rest else 0
        return len(slots) * (1 + whole) + new

    def _head_start(self, slot: int) -> int:
        """Crops that the slot's first visit is short of, so that not all of them end at once."""
        return slot * self.most // self.window


@lru_cache(maxsize=8)
def order(seed: int, passed: int, count: int) -> NDArray[np.int64]:
    """The order of the cohort in one of its shuffled passes."""
    return generator(seed, passed, "pass").permutation(count)


@lru_cache(maxsize=64)
def _own_order(seed: int, passed: int, stratum: int, count: int) -> NDArray[np.int64]:
    """The order of one stratum in one of its shuffled passes."""
    return generator(seed, passed, stratum, "stratum").permutation(count)


@lru_cache(maxsize=4096)
def _turns(seed: int, passed: int, strata: int) -> NDArray[np.int64]:
    return generator(seed, passed, "strata").permutation(strata)


@lru_cache(maxsize=4096)
def _round(seed: int, done: int, group: int, count: int) -> NDArray[np.int64]:
    return generator(seed, done, group, "round").permutation(count)
