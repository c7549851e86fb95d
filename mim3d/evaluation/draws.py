"""Resamples of pre-trainings, replicates and subjects, and the intervals they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

from mim3d.evaluation.estimates import Array, Estimate, Ranges, known
from mim3d.foundation.randomness import generator


@dataclass(frozen=True)
class Draws:
    """Weights of replicates and subjects: row 0 the data as they are, then three sets of resamples.

    Replicates that share a pre-training are one group, and one draw of it: a group is drawn
    first, then as many replicates of it as it has. The first `resamples` rows draw groups,
    replicates and subjects, the next groups and replicates, the last groups alone.

    Attributes:
        replicates: `rows n`, how often each replicate is drawn.
        subjects: for each replicate `rows m`, how often each of its subjects is drawn.
        resamples: in each of the three sets.
        groups: how many there are; `n` where no pre-training is shared.
        subject_count: of all replicates together, each once.
    """

    replicates: Array
    subjects: tuple[Array, ...]
    resamples: int
    groups: int
    subject_count: int

    def curves(self, sums: Sequence[Array], counts: Sequence[Array]) -> Array:
        """Means over drawn replicates of means over the cases of drawn subjects.

        Args:
            sums: for each replicate `m steps`, summed over the cases of a subject.
            counts: for each replicate `m`, cases of a subject.

        Returns:
            `rows steps`.
        """
        total = np.zeros((len(self.replicates), sums[0].shape[1]))
        for place, weights in enumerate(self.subjects):
            mean = (weights @ sums[place]) / (weights @ counts[place])[:, None]
            total += self.replicates[:, place, None] * mean
        curves: Array = total / self.replicates.sum(axis=1, keepdims=True)
        return curves

    def estimate(
        self, ranges: Ranges, *, confidence: float, log: bool = False, pretrainings: int = 0
    ) -> Estimate:
        """The number of row 0 with a stretched percentile interval of the joint resamples.

        Percentiles of a handful of replicates are too narrow: a bootstrap of n replicates has
        (n - 1)/n of their variance and knows nothing of Student's t (Hesterberg 2015,
        doi:10.1080/00031305.2015.1089789, section 4). Deviations from the estimate are stretched
        by what both lack.

        Args:
            ranges: the number in each row.
            confidence: level of the interval.
            log: deviations are of logarithms; for quotients and times.
            pretrainings: how many are behind the number, for its reader.
        """
        tail = (1 - confidence) / 2
        joint = slice(1, 1 + self.resamples)
        scale = np.log if log else np.asarray
        with np.errstate(divide="ignore"):
            low, high = scale(ranges.low), scale(ranges.high)
        stretch = self._stretch(low, high, confidence)
        # Without interpolation: between a number and infinity there is no percentile.
        lower = float(np.quantile(low[joint], tail, method="lower"))
        upper = float(np.quantile(high[joint], 1 - tail, method="higher"))
        ends = (
            _stretched(low[0], min(lower, low[0]), stretch),
            _stretched(high[0], max(upper, high[0]), stretch),
        )
        if log:
            with np.errstate(over="ignore"):
                ends = (float(np.exp(ends[0])), float(np.exp(ends[1])))
        value, bound = known(float(ranges.low[0]), float(ranges.high[0]))
        bounded_below = np.isfinite(ends[0]) and not (log and ends[0] == 0)
        return Estimate(
            value,
            bound,
            ends[0] if bounded_below else None,
            ends[1] if np.isfinite(ends[1]) else None,
            self.replicates.shape[1],
            pretrainings,
        )

    def _stretch(self, low: Array, high: Array, confidence: float) -> float:
        """By how much deviations of percentiles are too small.

        Each level's part of the variance is made unbiased and brings its own degrees of freedom,
        which Satterthwaite's formula puts together. The spread of groups holds that of their
        replicates already, so both levels together are rather too wide than too narrow.
        """
        exact = np.isfinite(low) & np.isfinite(high)
        middle = np.where(exact, (np.where(exact, low, 0) + np.where(exact, high, 0)) / 2, np.nan)
        joint, both, groups = (
            _variance(middle[1 + place * self.resamples :][: self.resamples]) for place in range(3)
        )
        if joint <= 0:
            return 1.0
        n, m = self.replicates.shape[1], self.subject_count
        both = min(both, joint)
        groups = min(groups, both) if self.groups < n else both
        # Variance in the resamples, degrees of freedom, what it must be multiplied with.
        levels = (
            (groups, self.groups - 1, self.groups),
            (both - groups, n - self.groups, n),
            # Subjects are many: neither biased nor short of freedom by much.
            (joint - both, max(m - 1, 1), max(m - 1, 1)),
        )
        parts = [(part * count / free, free) for part, free, count in levels if free > 0]
        total = sum(part for part, _ in parts)
        if total <= 0:
            return 1.0
        freedom = total**2 / sum(part**2 / free for part, free in parts)
        upper = 1 - (1 - confidence) / 2
        return float(np.sqrt(total / joint)) * float(stdtrit(freedom, upper) / ndtri(upper))


def draw(
    replicates: Sequence[int],
    groups: Sequence[int],
    subjects: Sequence[tuple[str, ...]],
    *,
    resamples: int,
    seed: int,
) -> Draws:
    """The same draws for the same names, whatever arm they are for.

    Args:
        replicates: their names.
        groups: `n`, which group each replicate belongs to, counted from 0.
        subjects: of each replicate; one draw serves all that were judged on the same ones.
        resamples: in each set.
        seed: of the draws.
    """
    weights = np.ones((1 + 3 * resamples, len(replicates)))
    random = generator(seed, "replicates", *replicates, "groups", *groups)
    inner = 1 + 2 * resamples
    weights[1:inner] = _two_levels(random, groups, 2 * resamples, whole=False)
    weights[inner:] = _two_levels(random, groups, resamples, whole=True)
    of_set = {names: _of_subjects(names, resamples, seed) for names in set(subjects)}
    return Draws(
        weights,
        tuple(of_set[names] for names in subjects),
        resamples,
        len(set(groups)),
        len(set().union(*subjects)),
    )


def _two_levels(
    random: np.random.Generator, groups: Sequence[int], rows: int, *, whole: bool
) -> Array:
    """How often each replicate is drawn; `whole`: with its group, all of it."""
    count = len(set(groups))
    drawn = random.multinomial(count, np.full(count, 1 / count), size=rows)
    weights = np.zeros((rows, len(groups)))
    for group in range(count):
        members = np.flatnonzero(np.asarray(groups) == group)
        size, times = len(members), drawn[:, group]
        # As many draws of replicates as the drawn groups have members, put together.
        weights[:, members] = (
            times[:, None] if whole else random.multinomial(size * times, np.full(size, 1 / size))
        )
    return weights


def _of_subjects(names: tuple[str, ...], resamples: int, seed: int) -> Array:
    m = len(names)
    random = generator(seed, "subjects", *names)
    weights = np.ones((1 + 3 * resamples, m))
    weights[1 : 1 + resamples] = random.multinomial(m, np.full(m, 1 / m), size=resamples)
    return weights


def _stretched(centre: float, end: float, stretch: float) -> float:
    if not (np.isfinite(centre) and np.isfinite(end)):
        return float(end)
    return float(centre + stretch * (end - centre))


def _variance(values: Array) -> float:
    values = values[np.isfinite(values)]
    return float(values.var()) if values.size > 1 else 0.0
