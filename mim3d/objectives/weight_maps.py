"""A map over every case that training fills in by and by: how much each place weighs.

Maps lie in the coordinates of the *volume*, in cells as large as a patch. What is known of a
crop's tokens is written, and read for the next crop, through the crop's affine, so that it follows
crops, flips, turns, rotations and changes of scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from mim3d.data.batch import CropBatch
from mim3d.foundation.errors import UserError
from mim3d.models.gathering import world
from mim3d.objectives.base import Moment
from mim3d.tokens.grid import TokenGrid, Triple

FIXED_POINT = 2.0**32
"""Sums are taken in whole numbers of its inverse: then their order, and with it the number of
processes and the device, changes no bit of them."""
SNAP = 2.0**20
"""Places are rounded to its inverse, in cells, so that a mirrored centre of a cell is one."""
KNOWN = 1e-3
"""Evidence below which a place counts as never seen."""


@dataclass(frozen=True)
class VolumeGrid:
    """How the voxels of a case lie.

    Args:
        shape: voxels along x, y, z.
        affine: `4 4`, voxel to millimetres.
    """

    shape: Triple
    affine: NDArray[np.float64]


class Reading(NamedTuple):
    """What maps say of a crop's tokens."""

    values: Tensor
    """`b n`, float32; 0 where nothing is known."""
    known: Tensor
    """`b n` bool, whether anything was written near by."""


class _Cells(NamedTuple):
    """Places among the cells, for linear interpolation between eight of them."""

    cell: Tensor
    """`m 8`, int64, among the cells of all cases."""
    share: Tensor
    """`m 8`, float64, of the place; they sum to 1."""


class WeightMaps(nn.Module):
    """Running means over steps of numbers that belong to places of cases.

    A cell's mean moves by `1 - momentum` for each token that lies on it, by less for one that lies
    between cells; it is free of the zero it starts from (as Adam's moments, arXiv:1412.6980). A
    place outside of the volume counts as the nearest inside.

    Stores `sums` and `evidence` (`cells` of all cases), both 0 at first: `sums / evidence` is the
    mean, and evidence grows from 0 to 1. With `refresh_epochs` also `read_sums`, `read_evidence`
    and `period`, the copy that is read and when it was taken.

    Args:
        grids: of every case that crops can come from.
        cell: voxels of a cell along x, y, z; a token's.
        momentum: decay of the mean, 0 to below 1.
        refresh_epochs: times that as many crops as there are cases are seen before reading gets a
            new copy; 0 reads what is known now.
        is_relative: whether numbers are divided by their mean over all crops of a step.
    """

    sums: Tensor
    evidence: Tensor
    _to_cells: Tensor
    _counts: Tensor
    _starts: Tensor
    _room: Tensor

    def __init__(
        self,
        grids: Mapping[str, VolumeGrid],
        cell: Triple,
        *,
        momentum: float = 0.8,
        refresh_epochs: float = 0.0,
        is_relative: bool = False,
    ) -> None:
        super().__init__()
        self._place_of = {case_id: place for place, case_id in enumerate(grids)}
        self.momentum = momentum
        self.refresh_epochs = refresh_epochs
        self.is_relative = is_relative
        counts = np.array([_counts_of(grid.shape, cell) for grid in grids.values()], np.int64)
        ends = np.cumsum(counts.prod(axis=1))
        self._layout = {
            case_id: (int(end - np.prod(each)), (int(each[0]), int(each[1]), int(each[2])))
            for case_id, end, each in zip(grids, ends, counts, strict=True)
        }
        to_cells = np.stack([_to_cells(grid, cell) for grid in grids.values()])
        self.register_buffer("_to_cells", torch.from_numpy(to_cells), persistent=False)
        self.register_buffer("_counts", torch.from_numpy(counts), persistent=False)
        starts = torch.from_numpy(ends - counts.prod(axis=1))
        self.register_buffer("_starts", starts, persistent=False)
        cells = int(ends[-1])
        self.register_buffer("sums", torch.zeros(cells))
        self.register_buffer("evidence", torch.zeros(cells))
        room = torch.zeros(cells, dtype=torch.int64)
        self.register_buffer("_room", room, persistent=False)
        if refresh_epochs > 0:
            self.register_buffer("read_sums", torch.zeros(cells))
            self.register_buffer("read_evidence", torch.zeros(cells))
            self.register_buffer("period", torch.zeros((), dtype=torch.int64))
        self._noted: tuple[int, list[Tensor], int] | None = None

    @torch.no_grad()
    def note(
        self,
        batch: CropBatch,
        grid: TokenGrid,
        values: Tensor,
        moment: Moment,
        *,
        index: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """Adds what a micro-batch told, in training only; `update` takes it in.

        Args:
            batch: whose crops.
            grid: of their tokens.
            values: `b q`; what is not finite counts nothing.
            moment: a step that was begun before and never updated is forgotten.
            index: `b q`, int64, which tokens; none is all of the grid.
            weights: `b q`, how much each counts, 0 to 1; none is 1.
        """
        if not self.training:
            return
        cases = self._cases(batch)
        places = self._places(batch, grid, cases)
        if index is not None:
            places = places.gather(1, index[..., None].expand(-1, -1, 3))
        values = values.double()
        weights = torch.ones_like(values) if weights is None else weights.double()
        weights = torch.where(values.isfinite(), weights, 0.0)
        case = cases[:, None].expand(values.shape).double()
        rows = torch.stack([case, *places.unbind(-1), values.nan_to_num(), weights], dim=-1)
        before: list[Tensor] = []
        crops = 0
        if self._noted is not None and self._noted[0] == moment.step:
            _, before, crops = self._noted
        self._noted = (moment.step, [*before, rows.flatten(0, 1)], crops + len(values))

    @torch.no_grad()
    def update(self) -> None:
        """Takes in what all processes noted in a step; each of them must call, once a step."""
        if self._noted is None:
            return
        (step, noted, crops), self._noted = self._noted, None
        rows = _of_all_processes(torch.cat(noted))
        case, places, values, weights = rows[:, 0].long(), rows[:, 1:4], rows[:, 4], rows[:, 5]
        if self.is_relative:
            mean = _summed(values * weights) / _summed(weights).clamp_min(1 / FIXED_POINT)
            values = values / torch.where(mean > 0, mean, 1.0)
        cells = self._around(places, case)
        each = cells.share * weights[:, None]

        index = cells.cell.flatten()
        weight, total = self._added(index, each), self._added(index, each * values[:, None])
        mean = total / weight.clamp_min(1 / FIXED_POINT)
        # Rows that touch a cell together find the same, so it does not matter which is written.
        kept = self.momentum**weight
        sums, evidence = self.sums[index].double(), self.evidence[index].double()
        self.sums[index] = (kept * sums + (1 - kept) * mean).float()
        self.evidence[index] = (kept * evidence + (1 - kept)).float()
        self._refresh((step + 1) * crops * world())

    @torch.no_grad()
    def read(self, batch: CropBatch, grid: TokenGrid) -> Reading:
        """What is known of a crop's tokens, at their centres.

        Args:
            batch: the crops.
            grid: of their tokens.

        Raises:
            UserError: a case is none of those there are maps for.
        """
        cases = self._cases(batch)
        places = self._places(batch, grid, cases)
        b, n, _ = places.shape
        cells = self._around(places.flatten(0, 1), cases.repeat_interleave(n))
        sums, evidence = self._read()
        known = (evidence[cells.cell] * cells.share).sum(dim=-1)
        total = (sums[cells.cell] * cells.share).sum(dim=-1)
        is_known = known >= KNOWN
        values = torch.where(is_known, total / known.clamp_min(KNOWN), 0.0)
        return Reading(values.float().reshape(b, n), is_known.reshape(b, n))

    def map_of(self, case_id: str) -> Reading:
        """The map of a case as reading finds it, both parts `gx gy gz`."""
        start, counts = self._layout[case_id]
        stop = start + int(np.prod(counts))
        sums, evidence = (part[start:stop].reshape(counts) for part in self._read())
        known = evidence >= KNOWN
        return Reading(torch.where(known, sums / evidence.clamp_min(KNOWN), 0.0), known)

    @torch.no_grad()
    def fill(self, case_id: str, values: Tensor) -> None:
        """Sets the map of a case, `gx gy gz`, as if it were known for certain."""
        start, counts = self._layout[case_id]
        cells = slice(start, start + int(np.prod(counts)))
        for sums, evidence in self._copies():
            sums[cells] = values.reshape(-1).to(sums)
            evidence[cells] = 1.0

    def counts_of(self, case_id: str) -> Triple:
        """Cells of a case's map along x, y, z."""
        return self._layout[case_id][1]

    def _added(self, index: Tensor, numbers: Tensor) -> Tensor:
        """For each entry of `index` the sum of the numbers of all that name the same cell."""
        room = self._room.index_add_(0, index, (numbers * FIXED_POINT).round().long().flatten())
        total = room[index].double() / FIXED_POINT
        room[index] = 0  # not all of it: a step touches few of the cells
        return total

    def _copies(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield self.sums, self.evidence
        if self.refresh_epochs > 0:
            yield self._read()

    def _read(self) -> tuple[Tensor, Tensor]:
        if self.refresh_epochs > 0:
            return self.get_buffer("read_sums"), self.get_buffer("read_evidence")
        return self.sums, self.evidence

    def _refresh(self, crops_seen: int) -> None:
        """Copies what is known for reading, when a new period begins."""
        if self.refresh_epochs == 0:
            return
        period = int(crops_seen / (self.refresh_epochs * len(self._place_of)))
        # Without asking the device: what it holds is compared there.
        is_new = self.get_buffer("period") < period
        for read, known in zip(self._read(), (self.sums, self.evidence), strict=True):
            read.copy_(torch.where(is_new, known, read))
        self.get_buffer("period").fill_(period)

    def _cases(self, batch: CropBatch) -> Tensor:
        """Place of each crop's case among the maps, `b` int64."""
        unknown = [case_id for case_id in batch.case_ids if case_id not in self._place_of]
        if unknown:
            raise UserError(
                f"there is no weight map for the case `{unknown[0]}`",
                remedy="a run's maps are of the cases it trains on; start a new run",
                code="no-map",
            )
        places = torch.tensor([self._place_of[case_id] for case_id in batch.case_ids])
        return places.to(self.sums.device, non_blocking=True)

    def _places(self, batch: CropBatch, grid: TokenGrid, cases: Tensor) -> Tensor:
        """Centres of the tokens among the cells of their case's map, `b n 3` float64."""
        to_cells = self._to_cells[cases] @ batch.affine.double()
        # A voxel's index is that of its centre.
        centres = grid.centres_voxel(to_cells.device).double() - 0.5
        return centres @ to_cells[:, :3, :3].transpose(1, 2) + to_cells[:, None, :3, 3]

    def _around(self, places: Tensor, cases: Tensor) -> _Cells:
        """The eight cells around places `m 3` of cases `m`."""
        counts = self._counts[cases]
        places = ((places * SNAP).round() / SNAP).clamp_min(0).minimum(counts - 1.0)
        low = places.floor()
        part, first = places - low, low.long()
        index = self._starts[cases][:, None]
        share = torch.ones_like(places[:, :1])
        for axis, stride in enumerate((counts[:, 1] * counts[:, 2], counts[:, 2], None)):
            lower, last = first[:, axis, None], counts[:, axis, None] - 1
            both = torch.cat([lower, (lower + 1).minimum(last)], dim=1)
            both = both if stride is None else both * stride[:, None]
            shares = torch.stack([1 - part[:, axis], part[:, axis]], dim=1)
            index = (index[:, :, None] + both[:, None]).flatten(1)
            share = (share[:, :, None] * shares[:, None]).flatten(1)
        return _Cells(index, share)


def _counts_of(shape: Triple, cell: Triple) -> Triple:
    x, y, z = (-(-side // edge) for side, edge in zip(shape, cell, strict=True))
    return x, y, z


def _to_cells(grid: VolumeGrid, cell: Triple) -> NDArray[np.float64]:
    """From millimetres to places among cells, `4 4`; cell 0 is the voxels 0 to `cell - 1`."""
    edges = np.array(cell, np.float64)
    from_voxels = np.diag([*(1 / edges), 1.0])
    from_voxels[:3, 3] = 0.5 / edges - 0.5
    matrix: NDArray[np.float64] = from_voxels @ np.linalg.inv(grid.affine)
    return matrix


def _summed(numbers: Tensor) -> Tensor:
    """Their sum, a scalar, whatever their order."""
    return (numbers * FIXED_POINT).round().long().sum().double() / FIXED_POINT


def _of_all_processes(rows: Tensor) -> Tensor:
    """The rows of all processes, `m 6`, in the order of their ranks; each may have another m."""
    if world() == 1:
        return rows
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(world())]
    dist.all_gather(counts, count)
    lengths = torch.cat(counts).tolist()
    # Rows that fill up have weight 0.
    filled = rows.new_zeros((max(lengths), rows.shape[1]))
    filled[: len(rows)] = rows
    parts = [torch.empty_like(filled) for _ in lengths]
    dist.all_gather(parts, filled)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])
