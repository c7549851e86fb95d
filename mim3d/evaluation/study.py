"""A convergence benchmark as numbers: curves, time to a target, speed-up, area, final Dice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mim3d.evaluation.convergence import Kind, Record
from mim3d.evaluation.estimates import Draws, Estimate, Ranges, first_reached, mean_height
from mim3d.evaluation.intervals import group_by_subject
from mim3d.foundation.errors import UserError
from mim3d.foundation.randomness import generator

Array = NDArray[np.float64]
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
class Study:
    """All records of a benchmark.

    Two arms are compared on the replicates that both have (and the reference, where its best
    Dice is the target); dead runs are in none. Resamples draw replicates and subjects, the same
    for all arms; what depends on the reference is computed anew in each.

    Attributes:
        records: one a fine-tuning, dead ones included.
        reference: arm whose best Dice sets the targets.
        resamples: of the bootstrap.
        confidence: level of the intervals.
        seed: of the bootstrap.

    Raises:
        UserError: a run is there twice, or runs that should be compared were judged at other
            steps or on other cases.
    """

    records: tuple[Record, ...]
    reference: str = "scratch"
    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        seen: dict[tuple[str, str, int], Record] = {}
        for record in self.records:
            key = (record.arm, record.labels, record.replicate)
            if key in seen:
                raise UserError("two records of the same run", where=record.name, code="twice")
            seen[key] = record
        for labels in self.labels:
            self._check(labels)

    @cached_property
    def arms(self) -> tuple[str, ...]:
        """Arms in the order of their first record."""
        return tuple(dict.fromkeys(record.arm for record in self.records))

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Label fractions, fewest subjects first."""
        most: dict[str, int] = {}
        for record in self.records:
            most[record.labels] = max(record.subjects, most.get(record.labels, 0))
        return tuple(sorted(most, key=lambda labels: (most[labels], labels)))

    @cached_property
    def dead(self) -> tuple[Record, ...]:
        """Runs that are listed and not averaged in."""
        return tuple(record for record in self.records if record.why_dead is not None)

    @cached_property
    def _alive(self) -> dict[tuple[str, str], dict[int, Record]]:
        table: dict[tuple[str, str], dict[int, Record]] = {}
        for record in sorted(self.records, key=lambda record: record.replicate):
            if record.why_dead is None:
                table.setdefault((record.arm, record.labels), {})[record.replicate] = record
        return table

    def runs(self, arm: str, labels: str) -> dict[int, Record]:
        """The sound runs of an arm at a label fraction, by replicate."""
        return self._alive.get((arm, labels), {})

    def present(self, labels: str) -> tuple[str, ...]:
        """Arms with at least one sound run at a label fraction."""
        return tuple(arm for arm in self.arms if self.runs(arm, labels))

    def kind(self, arm: str) -> Kind:
        """What the arm's pre-training asks."""
        return next(record.kind for record in self.records if record.arm == arm)

    def shared(self, labels: str, *arms: str) -> tuple[int, ...]:
        """Replicates that all of the arms have."""
        sets = [set(self.runs(arm, labels)) for arm in arms]
        return tuple(sorted(set.intersection(*sets))) if sets else ()

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
        return self._estimate(labels, (arm,), lambda curves: Ranges.exact(curves[0][:, -1]))

    def difference(self, arm: str, other: str, labels: str) -> Estimate | None:
        """Dice of `arm` at its last step less that of `other`."""
        return self._estimate(
            labels,
            (arm, other),
            lambda curves: Ranges.exact(curves[0][:, -1] - curves[1][:, -1]),
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
        return self._estimate(
            labels,
            (arm,),
            lambda curves: Ranges.exact(mean_height(steps, curves[0], *span, log=log)),
        )

    def time(
        self, arm: str, labels: str, target: float = HEADLINE, *, beside: tuple[str, ...] = ()
    ) -> Estimate | None:
        """Steps until the mean curve reaches `target` of the reference's best Dice.

        On the replicates that the reference and the arms `beside` have too.
        """
        arms = (arm, *beside, self.reference)
        return self._estimate(
            labels, arms, lambda curves: self._times(labels, arms, curves, target)[0], log=True
        )

    def factor(
        self, arm: str, other: str, labels: str, target: float = HEADLINE
    ) -> Estimate | None:
        """How many times as many steps `other` needs to the target as `arm` does."""
        arms = (arm, other, self.reference)

        def quotients(curves: Sequence[Array]) -> Ranges:
            of_arm, of_other, _ = self._times(labels, arms, curves, target)
            return of_other.over(of_arm)

        return self._estimate(labels, arms, quotients, log=True)

    def best_contrastive(self, labels: str, target: float = HEADLINE) -> str | None:
        """The contrastive arm that reaches the target first; of those that never do, the best.

        Chosen once, on the data as they are: the luck of the chosen counts against whoever is
        compared with it.
        """
        ranked = []
        for arm in self.present(labels):
            time = self.time(arm, labels, target) if self.kind(arm) == "contrastive" else None
            final = self.final(arm, labels)
            if time is not None and final is not None and time.value is not None:
                arrives = time.bound != ">"
                height = -(final.value or 0.0)
                ranked.append((not arrives, time.value if arrives else height, height, arm))
        return min(ranked)[-1] if ranked else None

    def _times(
        self, labels: str, arms: Sequence[str], curves: Sequence[Array], target: float
    ) -> list[Ranges]:
        """Time to the target of each arm; the last of the arms is the reference."""
        goals = target * curves[-1].max(axis=1)
        return [
            first_reached(self._steps(arm, labels), curve, goals)
            for arm, curve in zip(arms, curves, strict=True)
        ]

    def _estimate(
        self,
        labels: str,
        arms: Sequence[str],
        number: Callable[[Sequence[Array]], Ranges],
        *,
        log: bool = False,
    ) -> Estimate | None:
        """A number of the resampled curves of some arms, on the replicates they share."""
        replicates = self.shared(labels, *arms)
        if not replicates:
            return None
        curves = [self._resampled(arm, labels, replicates) for arm in arms]
        draws = self._draws(labels, replicates)
        return draws.estimate(number(curves), confidence=self.confidence, log=log)

    def _resampled(self, arm: str, labels: str, replicates: tuple[int, ...]) -> Array:
        """Mean curves of all draws, `rows steps`."""
        key = (arm, labels, replicates)
        if key not in self._curves:
            grouped = [_by_subject(self.runs(arm, labels)[place]) for place in replicates]
            sums, counts = zip(*grouped, strict=True)
            self._curves[key] = self._draws(labels, replicates).curves(sums, counts)
        return self._curves[key]

    def _draws(self, labels: str, replicates: tuple[int, ...]) -> Draws:
        """The draws of these replicates: the same for every arm."""
        key = (labels, replicates)
        if key not in self._weights:
            subjects = [self._subjects(labels, replicate) for replicate in replicates]
            n, rows = len(replicates), 1 + 2 * self.resamples
            random = generator(self.seed, "replicates", *replicates)
            weights = np.ones((rows, n))
            weights[1:] = random.multinomial(n, np.full(n, 1 / n), size=rows - 1)
            # One draw of subjects for all replicates that were judged on the same ones.
            of_set = {names: self._subject_draws(names) for names in set(subjects)}
            self._weights[key] = Draws(
                weights,
                tuple(of_set[names] for names in subjects),
                self.resamples,
                len(set().union(*subjects)),
            )
        return self._weights[key]

    def _subject_draws(self, names: tuple[str, ...]) -> Array:
        m = len(names)
        random = generator(self.seed, "subjects", *names)
        weights = np.ones((1 + 2 * self.resamples, m))
        drawn = random.multinomial(m, np.full(m, 1 / m), size=self.resamples)
        weights[1 : 1 + self.resamples] = drawn
        return weights

    @cached_property
    def _curves(self) -> dict[tuple[str, str, tuple[int, ...]], Array]:
        return {}

    @cached_property
    def _weights(self) -> dict[tuple[str, tuple[int, ...]], Draws]:
        return {}

    def _subjects(self, labels: str, replicate: int) -> tuple[str, ...]:
        runs = (self.runs(arm, labels).get(replicate) for arm in self.arms)
        record = next(run for run in runs if run is not None)
        return tuple(sorted(set(record.case_subjects)))

    def _steps(self, arm: str, labels: str) -> Array:
        return np.array(next(iter(self.runs(arm, labels).values())).steps, float)

    def _span(self, labels: str) -> tuple[float, float] | None:
        grids = [self._steps(arm, labels) for arm in self.present(labels)]
        if not all((grid > 0).any() for grid in grids) or not grids:
            return None
        start = max(float(grid[grid > 0][0]) for grid in grids)
        stop = min(float(grid[-1]) for grid in grids)
        return (start, stop) if start <= stop else None

    def _check(self, labels: str) -> None:
        """Sound runs of one arm share their steps, those of one replicate their cases."""
        judged: dict[int, Record] = {}
        for arm in self.present(labels):
            runs = list(self.runs(arm, labels).values())
            for record in runs:
                if record.steps != runs[0].steps:
                    raise UserError(
                        "judged at other steps than the arm's other runs",
                        where=record.name,
                        remedy="remove the record and its run, and make them again",
                        code="other-steps",
                    )
                first = judged.setdefault(record.replicate, record)
                pairs = set(zip(record.cases, record.case_subjects, strict=True))
                if pairs != set(zip(first.cases, first.case_subjects, strict=True)):
                    raise UserError(
                        f"judged on other cases than {first.name}",
                        where=record.name,
                        remedy="runs of one replicate need the same cases to be compared",
                        code="other-cases",
                    )


def _by_subject(record: Record) -> tuple[Array, Array]:
    """Sums over the cases of each subject, `m steps`, and counts, `m`."""
    values = np.array(record.dice).T
    sums, counts = group_by_subject(values, record.case_subjects)
    return sums, counts[:, 0]
