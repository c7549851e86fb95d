"""Which crop a step draws, and how it is cut out of its case.

The sampling plan is a pure function of (seed, cohort, config): every feed executes the same plan,
in any process and order, and feeds differ in speed only. A crop that is rotated or zoomed is read
with the margin it needs and interpolated once, so that its corners hold voxels and not padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mim3d.config.sections import DataConfig, Triple
from mim3d.data.batch import IGNORE_INDEX
from mim3d.data.blur import blur, reach
from mim3d.data.interpolation import inside, interpolate, lines, nearest, places, stretch
from mim3d.data.nearby import draw_nearby
from mim3d.data.visits import Queue, Visit, VisitPlan
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.randomness import RandomStream

Factors = tuple[float, float, float]
UNSCALED: Factors = (1.0, 1.0, 1.0)
FIXED_STEP = -1
"""The step of crops that never change, as validation uses them."""


class OpenCase(Protocol):
    """The face of a case that crops are cut from: `StoreCase`, or one held in memory."""

    @property
    def case_id(self) -> str:
        """The id it has in its store."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Channels and voxels along x, y, z."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along x, y, z."""

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel to millimetres, `4 4`."""

    def read(
        self, start: Sequence[int], size: Sequence[int], *, labels: bool
    ) -> tuple[NDArray[np.int16], NDArray[np.uint8] | None]:
        """Stored voxels `c x y z` and class indices `x y z` of a box inside the volume."""

    def normalise(
        self, stored: NDArray[np.int16], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Stored voxels `c x y z` in normalised units, by the whole volume's rule; into `out`."""

    @property
    def air(self) -> NDArray[np.float32] | None:
        """Normalised intensity below which a voxel is air, one a channel; None where unknown."""

    def classes_present(self) -> tuple[int, ...]:
        """Classes that the case has voxels of, without the background."""

    def label_voxels(self, index: int) -> NDArray[np.int64]:
        """Some voxels of a class, `n 3`."""

    def body_voxels(self) -> NDArray[np.int64]:
        """Some voxels of the body, `n 3`."""


@dataclass(frozen=True)
class CropPlan:
    """One crop of the sampling plan.

    Args:
        case_id: the case it is cut from.
        start: first voxel of the crop in the volume; outside of it where there is padding.
        size: voxels along x, y, z.
        centre_class: index of the class it was centred on, or None.
    """

    case_id: str
    start: Triple
    size: Triple
    centre_class: int | None = None


@dataclass(frozen=True)
class Crop:
    """One crop, on the CPU.

    Args:
        voxels: `c x y z`, float32, normalised; 0 at padding.
        affine: `4 4`, float64, crop voxel to millimetres of its case.
        labels: `x y z`, uint8 class indices, `IGNORE_INDEX` at padding; or None.
        valid: `x y z`, False at padding; None where there is no padding.
        air: `c`, float32, normalised intensity below which a voxel is air; None where unknown.
    """

    voxels: Tensor
    affine: NDArray[np.float64]
    labels: Tensor | None = None
    valid: Tensor | None = None
    air: Tensor | None = None


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
        start, centre_class = _draw_start(case, config, stream.generator(index, "crop"))
        if view == 0 or self.min_overlap == 1:
            return CropPlan(case_id, start, size, centre_class)
        random = stream.generator(index, f"crop/{view}")
        possible = _possible_starts(case, config)
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
    if min(_triple(config.origin_grid)) < 1:
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
    if all(grid > most for grid, most in zip(_triple(config.origin_grid), reach, strict=True)):
        raise ConfigError(
            f"`data.origin_grid` is wider than the {max(reach):.0f} voxels by which views may "
            f"differ at `objective.contrast.min_overlap {min_overlap}`",
            remedy="take a finer grid, or none, or less overlap",
            code="feed",
        )


def _triple(voxels: int | Triple) -> Triple:
    return (voxels, voxels, voxels) if isinstance(voxels, int) else voxels


def start_range(
    shape: Sequence[int], size: Sequence[int], overhang: Sequence[int] = (0, 0, 0)
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last start of a crop along each axis, both included.

    A crop that is smaller than the volume stays inside it, a larger one holds all of it; both up
    to `overhang`, of which no more is used than leaves half of what could be seen in the crop.
    """
    slack = np.subtract(shape, size)
    reach = np.minimum(overhang, np.minimum(shape, size) // 2)
    return np.minimum(slack, 0) - reach, np.maximum(slack, 0) + reach


def grid_starts(shape: int, size: int, low: int, high: int, grid: int) -> NDArray[np.int64]:
    """Starts along one axis: multiples of the grid where the crop lies inside, and the faces.

    Without the faces the last voxels of a volume would never be seen. Where the crop holds the
    whole volume every start reads the same chunks, so there is no grid.

    Args:
        shape: voxels of the volume.
        size: voxels of the crop.
        low: first start.
        high: last start.
        grid: voxels between starts.
    """
    if shape <= size:
        return np.arange(low, high + 1)
    return np.unique(np.concatenate((np.arange(0, shape - size + 1, grid), [low, high])))


def _possible_starts(case: OpenCase, config: DataConfig) -> list[NDArray[np.int64]]:
    """Every start along each axis, on the grid if there is one."""
    shape, size, grid = case.shape[1:], config.crop_size, config.origin_grid
    low, high = start_range(shape, size, config.overhang)
    if grid is None:
        return [np.arange(first, last + 1) for first, last in zip(low, high, strict=True)]
    axes = zip(shape, size, low.tolist(), high.tolist(), _triple(grid), strict=True)
    return [grid_starts(*axis) for axis in axes]


def _draw_start(
    case: OpenCase, config: DataConfig, random: np.random.Generator
) -> tuple[Triple, int | None]:
    low, high = start_range(case.shape[1:], config.crop_size, config.overhang)
    centres: NDArray[np.int64] | None = None
    centre_class: int | None = None
    if config.placement == "body":
        centres = case.body_voxels()
    elif config.placement == "label" and random.random() < config.label_share:
        present = case.classes_present()
        if present:  # a case without foreground is seen anywhere
            centre_class = int(random.choice(present))
            centres = case.label_voxels(centre_class)
    if config.origin_grid is not None:
        start = np.array([random.choice(starts) for starts in _possible_starts(case, config)])
    elif centres is None or len(centres) == 0:
        start = random.integers(low, high, endpoint=True)
    else:
        centre = centres[random.integers(len(centres))]
        start = np.clip(centre - np.array(config.crop_size) // 2, low, high)
    return (int(start[0]), int(start[1]), int(start[2])), centre_class


def cut_crop(
    case: OpenCase,
    plan: CropPlan,
    *,
    labels: bool = False,
    warp: NDArray[np.float64] | None = None,
    rescale: Factors = UNSCALED,
    out: Tensor | None = None,
) -> Crop:
    """The voxels of a plan, normalised as its whole volume is.

    Args:
        case: the case named in the plan.
        plan: where the crop lies.
        labels: whether the label map is cut too.
        warp: `3 3`, millimetres along the crop's axes to millimetres along the volume's; the
            centre of what the crop sees of the volume stays in place. None leaves voxels as they
            are stored.
        rescale: the factors along x, y, z, part of the warp, by which the crop is read with larger
            voxels than the volume's; above 1 a Gaussian goes before, so that nothing aliases.
        out: `c x y z`, float32; a crop that lies whole and unwarped in the volume is made there.

    Returns:
        The crop; voxels interpolated trilinearly and labels from the nearest voxel under a warp.

    Raises:
        UserError: labels are asked for and the case has none.
    """
    if warp is None:
        crop = _cut_box(case, plan, labels, out)
    else:
        crop = _cut_warped(case, plan, labels, warp, rescale)
    return replace(crop, air=None if case.air is None else torch.from_numpy(case.air))


def _cut_box(case: OpenCase, plan: CropPlan, labels: bool, out: Tensor | None) -> Crop:
    shape, start = np.array(case.shape[1:]), np.array(plan.start)
    first = np.maximum(start, 0)
    last = np.minimum(start + plan.size, shape)
    is_whole = tuple(last - first) == plan.size
    voxels, label_map = _read(case, first, last, labels, out if is_whole else None)
    affine = case.affine @ _translation(start)
    if is_whole:
        return Crop(voxels, affine, label_map)

    inside = tuple(slice(a, b) for a, b in zip(first - start, last - start, strict=True))
    padded = voxels.new_zeros((voxels.shape[0], *plan.size))
    padded[(slice(None), *inside)] = voxels
    valid = torch.zeros(plan.size, dtype=torch.bool)
    valid[inside] = True
    if label_map is not None:
        inner, label_map = label_map, label_map.new_full(plan.size, IGNORE_INDEX)
        label_map[inside] = inner
    return Crop(padded, affine, label_map, valid)


def _cut_warped(
    case: OpenCase, plan: CropPlan, labels: bool, warp: NDArray[np.float64], rescale: Factors
) -> Crop:
    shape = np.array(case.shape[1:])
    matrix = crop_to_volume(case, plan, warp, rescale)
    lowest, highest = _ends(matrix, plan.size)

    # A box is convex: where its corners lie in the volume, all of it does.
    padded = bool((lowest < -0.5).any() or (highest > shape - 0.5).any())
    sigmas = smoothing(rescale)
    further = reach(torch.from_numpy(sigmas)).numpy()
    first = np.clip(np.floor(lowest) - further, 0, shape - 1).astype(np.int64)
    last = np.clip(np.floor(highest) + 2 + further, first + 1, shape).astype(np.int64)
    voxels, label_map = _read(case, first, last, labels)
    if further.any():
        voxels = blur(voxels[None], None, [sigmas.tolist()])[0]

    # A zoom alone keeps axes apart: a tenth of the time of interpolating in three dimensions.
    is_zoom = bool((matrix[:3, :3] == np.diag(np.diag(matrix[:3, :3]))).all())
    where = lines(matrix, plan.size) if is_zoom else places(matrix, plan.size)
    crop = Crop(
        (stretch if is_zoom else interpolate)(voxels, where, first),
        case.affine @ matrix,
        None if label_map is None else nearest(label_map, where, first),
        inside(where, shape) if padded else None,
    )
    if crop.valid is not None:
        crop.voxels.masked_fill_(~crop.valid, 0.0)
        if crop.labels is not None:
            crop.labels.masked_fill_(~crop.valid, IGNORE_INDEX)
    return crop


def smoothing(rescale: Factors) -> NDArray[np.float64]:
    """Deviation of the Gaussian that goes before reading with larger voxels, `3`, in voxels.

    A Gaussian of a voxel's width at half its height stands for the voxel; what lacks from the
    volume's to one that is f times as large has variance (f^2 - 1) / (8 ln 2) (Cardoso et al.,
    MICCAI 2015). Along the volume's axes, though a warp may turn the crop's away from them.
    """
    larger = np.maximum(np.array(rescale), 1.0)
    deviation: NDArray[np.float64] = np.sqrt((larger**2 - 1) / (8 * np.log(2)))
    return deviation


def crop_to_volume(
    case: OpenCase, plan: CropPlan, warp: NDArray[np.float64], rescale: Factors = UNSCALED
) -> NDArray[np.float64]:
    """Crop voxel to volume voxel under a warp, `4 4`.

    The warp is in millimetres: with S = diag(spacing) the linear part is S^-1 warp S, hence a
    rotation is rigid on anisotropic voxels too. A crop that is read at another scale reaches no
    further beyond the volume than it did, if it fits; else it holds all that it could see.
    """
    shape, start, size = np.array(case.shape[1:]), np.array(plan.start), np.array(plan.size)
    spacing = np.array(case.spacing_mm)
    seen = (np.maximum(start, 0) + np.minimum(start + size, shape) - 1) / 2
    matrix = np.eye(4)
    matrix[:3, :3] = warp * spacing / spacing[:, None]
    matrix[:3, 3] = seen - matrix[:3, :3] @ (seen - start)
    if rescale != UNSCALED:
        lowest, highest = _ends(matrix, plan.size)
        half = np.abs(matrix[:3, :3]).sum(axis=1) / 2  # of the box around a voxel of the crop
        up = np.minimum(start, 0) - 0.5 - (lowest - half)
        down = np.maximum(start + size, shape) - 0.5 - (highest + half)
        matrix[:3, 3] += np.clip(0, np.minimum(up, down), np.maximum(up, down))
    return matrix


def _ends(
    matrix: NDArray[np.float64], size: Triple
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest place in the volume of a crop's voxels along each axis."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(size) - 1)
    places = corners @ matrix[:3, :3].T + matrix[:3, 3]
    return places.min(axis=0), places.max(axis=0)


def _read(
    case: OpenCase,
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    labels: bool,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    stored, label_map = case.read(first.tolist(), (last - first).tolist(), labels=labels)
    if out is None:
        voxels = torch.from_numpy(case.normalise(stored))
    else:
        case.normalise(stored, out.numpy())
        voxels = out
    if not labels:
        return voxels, None
    if label_map is None:
        raise UserError(
            f"case `{case.case_id}` has no label map but labels are needed",
            remedy="leave it out of the lists that are trained on with labels",
            code="no-label",
        )
    return voxels, torch.from_numpy(np.ascontiguousarray(label_map))


def _translation(start: NDArray[np.int64]) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, 3] = start
    return matrix
