"""Row 15: metrics that cannot flatter, over random cohorts of small label maps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, generate_binary_structure
from scipy.spatial.distance import cdist

from mim3d.evaluation.cases import Score, score_case
from mim3d.evaluation.overlap import Structure
from mim3d.evaluation.results import MEAN, METRICS, Results
from mim3d.evaluation.surface import Spacing
from mim3d.foundation.randomness import generator
from tests.reliability.proof import Tally, proof

STRUCTURES = (Structure("organ", (1,)), Structure("rare", (4,)), Structure("pair", (2, 7)))
TOLERANCE_MM = 1.5
ROUNDING = 1e-9
SINGLE = 1e-4
"""Millimetres that float32 distances of a few hundred millimetres may be off by."""


@dataclass(frozen=True, eq=False)
class Pair:
    """One case: `x y z` label maps on one grid; None is a prediction that is not there."""

    reference: NDArray[np.uint8]
    prediction: NDArray[np.uint8] | None
    spacing_mm: Spacing

    @property
    def diagonal_mm(self) -> float:
        """Of the image."""
        sides = zip(self.reference.shape, self.spacing_mm, strict=True)
        return math.sqrt(sum((n * mm) ** 2 for n, mm in sides))


@proof(
    rows=(15,),
    trials="random cohorts of one to five cases on grids of other sizes, every way of spoiling one",
    quick=200,
    full=10_000,
    stretch=500,
)
def metrics_never_flatter(trials: range, seed: int, folder: Path) -> Tally:
    """Deleting a prediction or a structure of it never improves any aggregate.

    Mean and both ends of the interval, for each structure and for their mean, with n, missed and
    hallucinated counted and no NaN; scores equal a slow oracle's, and MONAI's every tenth time.
    """
    tally = Tally()
    for trial in trials:
        cohort = _cohort(seed, trial)
        scored = _scored(cohort)
        found = _differs(cohort, scored, against_monai=trial % 10 == 0) or _nan_or_miscount(scored)
        before = _results(scored).summary()
        for where, spoiled in () if found else _spoilings(cohort):
            # Only a deletion changes what others than the spoiled case are charged: nothing does.
            after = _results(_scored(spoiled)).summary()
            found = found or _improvement(before, after, where)
        tally.add(trial, "never better" if found is None else "better or wrong", found)
    return tally


def _cohort(seed: int, trial: int) -> list[Pair]:
    random = generator(seed, trial, "metric cohort")
    return [_pair(random) for _ in range(int(random.integers(1, 6)))]


def _pair(random: np.random.Generator) -> Pair:
    shape = tuple(random.integers(4, 11, 3).tolist())
    x, y, z = (random.uniform(0.3, 3.0, 3) * random.choice((0.3, 1.0, 20.0))).tolist()
    reference, prediction = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for value in (1, 2, 7, 4):
        in_reference, in_prediction = random.random(2) < (0.6 if value != 4 else 0.25)
        box = _box(random, shape)
        if in_reference:
            reference[box] = value
        if in_prediction:
            is_near = in_reference and random.random() < 0.7
            prediction[box if is_near else _box(random, shape)] = value
            speck = tuple(random.integers(0, shape).tolist())
            prediction[speck] = value if random.random() < 0.3 else prediction[speck]
    is_there = random.random() < 0.9
    return Pair(reference, prediction if is_there else None, (x, y, z))


def _box(random: np.random.Generator, shape: Sequence[int]) -> tuple[slice, ...]:
    starts = [int(random.integers(0, size)) for size in shape]
    return tuple(slice(s, s + int(random.integers(1, 5))) for s in starts)


def _spoilings(cohort: list[Pair]) -> Iterator[tuple[str, list[Pair]]]:
    """The cohort without one prediction, or without one structure that it rightly predicts."""
    for number, pair in enumerate(cohort):
        guess = pair.prediction
        if guess is None:
            continue
        yield f"case {number} deleted", _with(cohort, number, replace(pair, prediction=None))
        for structure in STRUCTURES:
            mine, theirs = (np.isin(side, structure.values) for side in (pair.reference, guess))
            if mine.any() and theirs.any():
                emptied = replace(pair, prediction=np.where(theirs, 0, guess).astype(np.uint8))
                yield f"case {number} without {structure.name}", _with(cohort, number, emptied)


def _with(cohort: list[Pair], number: int, pair: Pair) -> list[Pair]:
    return [*cohort[:number], pair, *cohort[number + 1 :]]


def _scored(cohort: list[Pair]) -> list[list[Score]]:
    largest = max(pair.diagonal_mm for pair in cohort)
    return [
        score_case(
            pair.reference, pair.prediction, pair.spacing_mm, STRUCTURES, case_id=f"case {number}",
            nsd_tolerance_mm=TOLERANCE_MM, largest_mm=largest,
        )
        for number, pair in enumerate(cohort)
    ]  # fmt: skip


def _results(scored: list[list[Score]]) -> Results:
    names = tuple(structure.name for structure in STRUCTURES)
    return Results(names, tuple(score for case in scored for score in case), resamples=20)


def _improvement(before: dict, after: dict, where: str) -> str | None:  # type: ignore[type-arg]
    for name, metrics in before.items():
        for metric, was in metrics.items():
            now = after[name][metric]
            for end in ("mean", "low", "high"):
                old, new = getattr(was, end), getattr(now, end)
                if old is None:
                    continue
                gain = None if new is None else (old - new if metric == "hd95_mm" else new - old)
                if gain is None or gain > ROUNDING:
                    return f"{where}: {end} of {metric} of {name} went from {old} to {new}"
            if now.missed < was.missed:
                return f"{where}: fewer missed in {name}"
    return None


def _nan_or_miscount(scored: list[list[Score]]) -> str | None:
    """The summary against sums written out."""
    summary = _results(scored).summary()
    means: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for place, structure in enumerate(STRUCTURES):
        scores = [case[place] for case in scored]
        counted = [score for score in scores if score.counted_as != "absent"]
        for metric in METRICS:
            found = summary[structure.name][metric]
            values = [getattr(score, metric) for score in counted]
            mean = math.fsum(values) / len(values) if values else None
            means[metric] += [] if mean is None else [mean]
            if not _same(found.mean, mean) or found.n != len(values):
                return f"{metric} of {structure.name}: mean {found.mean} of n {found.n}, not {mean}"
            missed = sum(score.counted_as == "missed" for score in scores)
            if found.missed != missed or found.absent != len(scores) - len(counted):
                return f"{structure.name}: wrong counts {found}"
    for metric, values in means.items():
        mean = math.fsum(values) / len(values) if values else None
        if not _same(summary[MEAN][metric].mean, mean):
            return f"mean of {metric} is {summary[MEAN][metric].mean}, not {mean}"
    return None


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isfinite(one) and math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)


def _differs(cohort: list[Pair], scored: list[list[Score]], *, against_monai: bool) -> str | None:
    """Where both sides hold a structure: against the oracle; elsewhere against the table."""
    for pair, scores in zip(cohort, scored, strict=True):
        for structure, score in zip(STRUCTURES, scores, strict=True):
            ours = np.isin(pair.reference, structure.values)
            theirs = None if pair.prediction is None else np.isin(pair.prediction, structure.values)
            found = (score.dice, score.hd95_mm, score.nsd)
            if theirs is None or not (ours.any() and theirs.any()):
                is_absent = theirs is not None and not ours.any() and not theirs.any()
                worst = score.hd95_mm if theirs is None and not ours.any() else pair.diagonal_mm
                expected = (None, None, None) if is_absent else (0.0, worst, 0.0)
            elif against_monai:
                expected = _monai(ours, theirs, pair.spacing_mm)
            else:
                expected = _oracle(ours, theirs, pair.spacing_mm)
            if not all(_near(one, other) for one, other in zip(found, expected, strict=True)):
                return f"{structure.name} of {score.case_id}: {found}, the oracle says {expected}"
    return None


def _near(one: float | None, other: float | None) -> bool:
    return one is other if one is None or other is None else abs(one - other) <= SINGLE


Numbers = tuple[float, float, float]


def _oracle(ours: NDArray[np.bool_], theirs: NDArray[np.bool_], spacing_mm: Spacing) -> Numbers:
    """All distances between all voxels of the two surfaces."""
    sides = [np.argwhere(_surface(side)) * np.array(spacing_mm) for side in (ours, theirs)]
    distances = cdist(*sides)
    forward, backward = distances.min(axis=1), distances.min(axis=0)
    far = max(float(np.percentile(one, 95)) for one in (forward, backward))
    # As single numbers: a distance of exactly the tolerance must not hang on the last bit.
    within = [np.float32(one) <= np.float32(TOLERANCE_MM) for one in (forward, backward)]
    near = float(np.concatenate(within).mean())
    return 2 * float((ours & theirs).sum()) / float(ours.sum() + theirs.sum()), far, near


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    inside = binary_erosion(np.pad(mask, 1), generate_binary_structure(3, 1))
    return np.asarray(mask & ~inside[1:-1, 1:-1, 1:-1])


def _monai(ours: NDArray[np.bool_], theirs: NDArray[np.bool_], spacing_mm: Spacing) -> Numbers:
    # Inside, so that the other proofs need not wait for it.
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

    truth, guess = (torch.from_numpy(side)[None, None].float() for side in (ours, theirs))
    said = {"include_background": True, "spacing": spacing_mm}
    far = compute_hausdorff_distance(guess, truth, percentile=95, **said)  # type: ignore[arg-type]
    near = compute_surface_dice(guess, truth, [TOLERANCE_MM], **said)  # type: ignore[arg-type]
    return float(compute_dice(guess, truth)), float(far), float(near)
