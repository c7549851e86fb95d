"""Which crop a step draws.

The sampling plan is a pure function of (seed, cohort, config): every feed executes the same plan,
in any process and order, and feeds differ in speed only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from mim3d.config.data import DataConfig, Triple
from mim3d.data.crop_starts import draw_start, possible_starts, triple
from mim3d.data.crops import CropPlan, OpenCase
from mim3d.data.nearby import draw_nearby
from mim3d.data.visits import Queue, Visit, VisitPlan
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.randomness import RandomStream

FIXED_STEP = -1
"""The step of crops that never change, as validation uses them."""


class SamplingPlan:
    """Which case and which place every sample of a run is cut from.

    Cases come in shuffled passes over the cohort, so every case is seen equally often, or over its
    strata (`visits.Queue`); sample `index` of step `step` is number `step * batch_size + index` of
    that sequence. With
    `window_cases` it is visits of several crops that come in such passes (`visits.VisitPlan`). The
    place is drawn from (seed, step, index, "crop"), that of a further view v near it from (seed,
    step, index, "crop/v").

    Args:
        cases: ids of the cohort; their order does not matter.
        config: crop size, placement, overhang, grid and window.
        seed: the run's.
        batch_size: crops of one step over all devices.
        open_case: gives the case of an id.
        min_overlap: share of its voxels that a further view has in common with the first.
        strata: cases of each part of the cohort that is drawn from equally often; empty is one.

    Raises:
        ConfigError: numbers of window, grid or overlap that cannot be.
    """

    def __init__(
        self,
        cases: Sequence[str],
        config: DataConfig,
        *,
        seed: int,
        batch_size: int,
        open_case: Callable[[str], OpenCase],
        min_overlap: float = 1.0,
        strata: Sequence[Sequence[str]] = (),
    ) -> None:
        self.cases = tuple(sorted(cases))
        self.config = config
        self.seed = seed
        self.batch_size = batch_size
        self.open_case = open_case
        self.min_overlap = min_overlap
        _check_grid(config)
        _check_overlap(config, min_overlap)
        window = _checked_window(config, len(self.cases))
        numbers = {case_id: number for number, case_id in enumerate(self.cases)}
        parts = [sorted(numbers[case_id] for case_id in stratum) for stratum in strata]
        self._queue = Queue([part for part in parts if part] or [range(len(self.cases))], seed)
        self.visits = (
            None
            if window is None
            else VisitPlan(len(cases), *window, batch_size, seed, self._queue)
        )

    def case_id(self, step: int, index: int) -> str:
        """The case of one sample. Needs no file."""
        return self.cases[self._case(step, index)]

    def visit(self, step: int, index: int) -> Visit:
        """The stay in memory that a sample is drawn from; without a window a case has one."""
        if self.visits is None:
            return Visit(self._case(step, index), 0)
        return self.visits.visit(step, index)

    def case_of(self, visit: Visit) -> str:
        """The case of a visit."""
        return self.cases[visit.slot if self.visits is None else self.visits.case(visit)]

    def _case(self, step: int, index: int) -> int:
        if self.visits is not None and step != FIXED_STEP:
            return self.visits.case(self.visits.visit(step, index))
        # Fixed crops have passes of their own, before the first of the run.
        number = -1 - index if step == FIXED_STEP else step * self.batch_size + index
        return self._queue.case(number)

    def size(self, step: int, index: int) -> Triple:
        """Voxels of one sample's crop: the sizes take turns; fixed crops have the one of them."""
        sizes = self.config.crop_sizes
        if step == FIXED_STEP or not sizes:
            return self.config.crop_size
        return sizes[index % len(sizes)]

    def parts(self, share: range) -> list[range]:
        """The samples of a share that have one size together."""
        turns = max(1, len(self.config.crop_sizes))
        return [share[turn::turns] for turn in range(min(turns, len(share)))]

    def draw(self, step: int, index: int, view: int = 0) -> CropPlan:
        """The crop of one sample, or of a view of it.

        Args:
            step: step of the run, or `FIXED_STEP`.
            index: place in the global batch of the step.
            view: number of the view; the first is the same however many there are.
        """
        case_id = self.case_id(step, index)
        case, size = self.open_case(case_id), self.size(step, index)
        config = replace(self.config, crop_size=size) if self.config.crop_sizes else self.config
        stream = RandomStream(self.seed, step)
        start, centre_class = draw_start(case, config, stream.generator(index, "crop"))
        if view == 0 or self.min_overlap == 1:
            return CropPlan(case_id, start, size, centre_class)
        random = stream.generator(index, f"crop/{view}")
        possible = possible_starts(case, config)
        return CropPlan(case_id, draw_nearby(start, size, possible, self.min_overlap, random), size)


def _checked_window(config: DataConfig, cases: int) -> tuple[int, int] | None:
    window, most = config.window_cases, config.max_crops_per_visit
    if window is None and most is None:
        return None
    if window is None or most is None:
        missing, given = ("window_cases", "max_crops_per_visit")[:: 1 if window is None else -1]
        raise ConfigError(f"`data.{given}` needs `data.{missing}`", code="feed")
    if not 1 <= window <= cases:
        raise ConfigError(
            f"`data.window_cases` must be between 1 and the number of cases, {cases}, not {window}",
            remedy="leave it out to draw from all cases at a time",
            code="feed",
        )
    if most < 1:
        raise ConfigError(f"`data.max_crops_per_visit` must be at least 1, not {most}", code="feed")
    return window, most


def _check_grid(config: DataConfig) -> None:
    if config.origin_grid is None:
        return
    if min(triple(config.origin_grid)) < 1:
        raise ConfigError("`data.origin_grid` must be positive", code="feed")
    if config.placement != "uniform":
        raise ConfigError(
            f"`data.origin_grid` needs `data.placement uniform`, not `{config.placement}`: crops "
            "around a voxel begin where it lies",
            code="feed",
        )


def _check_overlap(config: DataConfig, min_overlap: float) -> None:
    if not 0 <= min_overlap <= 1:
        raise ConfigError(
            f"`objective.contrast.min_overlap` must lie between 0 and 1, not {min_overlap}",
            code="feed",
        )
    if config.origin_grid is None or min_overlap == 1:
        return
    reach = [(1 - min_overlap) * side for side in config.crop_size]
    if all(grid > most for grid, most in zip(triple(config.origin_grid), reach, strict=True)):
        raise ConfigError(
            f"`data.origin_grid` is wider than the {max(reach):.0f} voxels by which views may "
            f"differ at `objective.contrast.min_overlap {min_overlap}`",
            remedy="take a finer grid, or none, or less overlap",
            code="feed",
        )
