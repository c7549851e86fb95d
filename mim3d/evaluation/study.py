"""A convergence benchmark as numbers: curves, time to a target, speed-up, area, final Dice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from mim3d.evaluation.convergence import Record
from mim3d.evaluation.draws import Draws, draw
from mim3d.evaluation.estimates import Array, Estimate, Ranges, first_reached, mean_height
from mim3d.evaluation.intervals import group_by_subject
from mim3d.evaluation.runs import Cell, Runs

TARGETS = (0.80, 0.90, 0.95)
HEADLINE = 0.90
"""Of the best Dice of the reference: the target of the headline's speed-up."""


@dataclass(frozen=True)
class Curve:
    """Dice against steps of one arm at one label fraction.

    Attributes:
        steps: judged steps.
        mean: over replicates of means over cases.
        low: lowest replicate.
        high: highest replicate.
        replicates: their names.
    """

    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    replicates: tuple[int, ...]


@dataclass(frozen=True)
class Study(Runs):
    """The numbers of all records of a benchmark.

    Two arms are compared on the replicates that both have (and the partner, where its best
    Dice is the target); dead runs are in none. Resamples draw pre-trainings, replicates and
    subjects, the same for all arms; what depends on the partner is computed anew in each.

    Attributes:
        records: one a fine-tuning, dead ones included.
        reference: arm whose best Dice sets the targets, unless a record names another partner.
        resamples: of the bootstrap.
        confidence: level of the intervals.
        seed: of the bootstrap.

    Raises:
        UserError: a run is there twice, an arm names two partners, or runs that should be
            compared were judged at other steps or on other cases.
    """

    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0

    def curve(self, arm: str, labels: str) -> Curve | None:
        """Mean curve and its band over replicates; None without a sound run."""
        runs = self.runs(arm, labels)
        if not runs:
            return None
        each = np.array([np.mean(record.dice, axis=1) for record in runs.values()])
        steps = next(iter(runs.values())).steps
        rows = (each.mean(axis=0), each.min(axis=0), each.max(axis=0))
        mean, low, high = (tuple(map(float, row)) for row in rows)
        return Curve(steps, mean, low, high, tuple(runs))

    def final(self, arm: str, labels: str) -> Estimate | None:
        """Dice at the arm's last step."""
        return self.estimate(
            ((arm, labels),),
            lambda curves: Ranges.exact(curves[0][:, -1]),
            what="final",
            within=(0.0, 1.0),
        )

    def difference(self, arm: str, other: str, labels: str) -> Estimate | None:
        """Dice of `arm` at its last step less that of `other`."""
        return self.estimate(
            ((arm, labels), (other, labels)),
            lambda curves: Ranges.exact(curves[0][:, -1] - curves[1][:, -1]),
            what="difference",
            within=(-1.0, 1.0),
        )

    def area(self, arm: str, labels: str, *, log: bool) -> Estimate | None:
        """Mean height of the curve over the steps that all arms were judged at, 0 to 1.

        From the latest first judged step above 0 to the earliest last step of all arms at the
        label fraction, so that no arm is favoured by its grid.
        """
        span = self._span(labels)
        if span is None:
            return None
        steps = self._steps(arm, labels)
        return self.estimate(
            ((arm, labels),),
            lambda curves: Ranges.exact(mean_height(steps, curves[0], *span, log=log)),
            what=f"area, {log}",
            within=(0.0, 1.0),
        )

    def time(
        self, arm: str, labels: str, target: float = HEADLINE, *, beside: str | None = None
    ) -> Estimate | None:
        """Steps until the mean curve reaches `target` of the partner's best Dice.

        With `beside`, on the replicates of that arm too, and to its targets.
        """
        beside = arm if beside is None else beside
        arms = (arm, beside, self.partner(beside))
        found = self.estimate(
            tuple((one, labels) for one in arms),
            lambda curves: self.times(labels, arms, curves, target)[0],
            what=f"time, {target}",
            log=True,
        )
        return found if found is None else found.seen(*self._judged(arm, labels))

    def factor(
        self, arm: str, other: str, labels: str, target: float = HEADLINE
    ) -> Estimate | None:
        """How many times as many steps `other` needs to the target of `arm` as `arm` does."""
        arms = (arm, other, self.partner(arm))

        def quotients(curves: Sequence[Array]) -> Ranges:
            of_arm, of_other, _ = self.times(labels, arms, curves, target)
            return of_other.over(of_arm)

        cells = tuple((one, labels) for one in arms)
        found = self.estimate(cells, quotients, what=f"factor, {target}", log=True)
        if found is None or found.value is None:
            return found
        first, last = self._judged(arm, labels)
        first_of_other, last_of_other = self._judged(other, labels)
        return found.seen(first_of_other / last, last_of_other / first)

    def best_contrastive(
        self, labels: str, target: float = HEADLINE, *, partner: str | None = None
    ) -> str | None:
        """The contrastive arm that is ahead of most others; of equals the one with most replicates.

        Of two arms that one is ahead that reaches the target first, of those that never do the
        higher, on the replicates that both have: none is the best for having run the easier ones
        alone. Chosen once, on the data as they are: the luck of the chosen counts against whoever
        is compared with it. Among those that are compared with `partner`, or the reference.
        """
        arms = self.contrastive(labels, partner or self.reference)
        times = {arm: self.time(arm, labels, target) for arm in arms}
        ahead = {arm: 0 for arm, time in times.items() if time and time.value is not None}
        for one, other in combinations(ahead, 2):
            first = self._place(one, other, labels, target)
            second = self._place(other, one, labels, target)
            if first is not None and second is not None and first != second:
                ahead[one if first < second else other] += 1
        ranked = [(count, len(self.runs(arm, labels)), arm) for arm, count in ahead.items()]
        return max(ranked)[-1] if ranked else None

    def _place(
        self, arm: str, beside: str, labels: str, target: float
    ) -> tuple[bool, float, float] | None:
        """Sorts an arm before another that arrives later, or never and ends lower."""
        time = self.time(arm, labels, target, beside=beside)
        higher = self.difference(arm, beside, labels)
        if time is None or time.value is None or higher is None or higher.value is None:
            return None
        never = time.bound == ">"
        return never, 0.0 if never else time.value, -higher.value

    def times(
        self, labels: str, arms: Sequence[str], curves: Sequence[Array], target: float
    ) -> list[Ranges]:
        """Steps to the target of each arm in each row of its curves, `rows steps`.

        The last of the arms is the one that sets the target.
        """
        goals = target * curves[-1].max(axis=1)
        return [
            first_reached(self._steps(arm, labels), curve, goals)
            for arm, curve in zip(arms, curves, strict=True)
        ]

    def estimate(
        self,
        cells: tuple[Cell, ...],
        number: Callable[[Sequence[Array]], Ranges],
        *,
        what: str,
        log: bool = False,
        within: tuple[float, float] | None = None,
    ) -> Estimate | None:
        """A number of resampled mean curves, on the replicates that all of the cells have.

        Args:
            cells: arms at label fractions.
            number: of their curves, `rows steps` each, row by row.
            what: a name of its own for the number: what was found once is kept.
            log: whether the interval is one of logarithms; for quotients and times.
            within: what the number can be; a widened interval ends there.

        Returns:
            None where no replicate is shared, or one was judged on different subjects.
        """
        key = (cells, what)
        if key not in self._found:
            found = self._estimated(cells, number, log)
            self._found[key] = found if found is None or within is None else found.within(*within)
        return self._found[key]

    def _estimated(
        self, cells: tuple[Cell, ...], number: Callable[[Sequence[Array]], Ranges], log: bool
    ) -> Estimate | None:
        replicates = self.shared(*cells)
        judged = {tuple(self._subjects(cell, one) for one in replicates) for cell in cells}
        if not replicates or len(judged) > 1:
            return None
        groups = self._groups(cells, replicates)
        draws = self._draws(replicates, groups, *judged)
        trained = any(self.pretrainings(*cell) for cell in cells)
        return draws.estimate(
            number([self._resampled(cell, replicates, groups, draws) for cell in cells]),
            confidence=self.confidence,
            log=log,
            pretrainings=len(set(groups)) if trained else 0,
        )

    def _groups(self, cells: Sequence[Cell], replicates: Sequence[int]) -> tuple[int, ...]:
        """Which replicates hang together by a pre-training of any of the arms, from 0."""
        group = list(range(len(replicates)))
        for cell in cells:
            first: dict[str, int] = {}
            for place, replicate in enumerate(replicates):
                before = self.runs(*cell)[replicate].pretraining
                if before is not None:
                    mate = group[first.setdefault(before.run, place)]
                    group = [mate if one == group[place] else one for one in group]
        numbers = {one: number for number, one in enumerate(dict.fromkeys(group))}
        return tuple(numbers[one] for one in group)

    def _resampled(
        self, cell: Cell, replicates: tuple[int, ...], groups: tuple[int, ...], draws: Draws
    ) -> Array:
        """Mean curves of all draws, `rows steps`."""
        key = (cell, replicates, groups)
        if key not in self._curves:
            grouped = [_by_subject(self.runs(*cell)[place]) for place in replicates]
            sums, counts = zip(*grouped, strict=True)
            self._curves[key] = draws.curves(sums, counts)
        return self._curves[key]

    def _draws(
        self,
        replicates: tuple[int, ...],
        groups: tuple[int, ...],
        subjects: tuple[tuple[str, ...], ...],
    ) -> Draws:
        """The draws of these replicates: the same for every arm."""
        key = (replicates, groups, subjects)
        if key not in self._weights:
            self._weights[key] = draw(
                replicates, groups, subjects, resamples=self.resamples, seed=self.seed
            )
        return self._weights[key]

    @cached_property
    def _found(self) -> dict[tuple[tuple[Cell, ...], str], Estimate | None]:
        return {}

    @cached_property
    def _curves(self) -> dict[tuple[Cell, tuple[int, ...], tuple[int, ...]], Array]:
        return {}

    @cached_property
    def _weights(
        self,
    ) -> dict[tuple[tuple[int, ...], tuple[int, ...], tuple[tuple[str, ...], ...]], Draws]:
        return {}

    def _subjects(self, cell: Cell, replicate: int) -> tuple[str, ...]:
        return tuple(sorted(set(self.runs(*cell)[replicate].case_subjects)))

    def _steps(self, arm: str, labels: str) -> Array:
        return np.array(next(iter(self.runs(arm, labels).values())).steps, float)

    def _judged(self, arm: str, labels: str) -> tuple[float, float]:
        """The first judged step after 0, and the last."""
        steps = self._steps(arm, labels)
        return float(next((step for step in steps if step > 0), steps[-1])), float(steps[-1])

    def _span(self, labels: str) -> tuple[float, float] | None:
        grids = [self._steps(arm, labels) for arm in self.present(labels)]
        if not all((grid > 0).any() for grid in grids) or not grids:
            return None
        start = max(float(grid[grid > 0][0]) for grid in grids)
        stop = min(float(grid[-1]) for grid in grids)
        return (start, stop) if start <= stop else None


def _by_subject(record: Record) -> tuple[Array, Array]:
    """Sums over the cases of each subject, `m steps`, and counts, `m`."""
    values = np.array(record.dice).T
    sums, counts = group_by_subject(values, record.case_subjects)
    return sums, counts[:, 0]
