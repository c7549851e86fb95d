"""The sliding window: a network that sees boxes gives a map of the whole volume.

Where windows overlap the network's outputs (logits) are averaged, weighted by the place within the
window, as in MONAI's `sliding_window_inference`: same windows, same weights, same result.

Windows advance along one axis, and only the rows that later windows still touch are held: a ring
as deep as one window, in which weighted sums of logits are added up. Finished rows leave it as a
`Slab`. Whoever wants labels takes the largest sum of each voxel (dividing by the weights would not
change which one it is) and needs no map of the whole volume but the labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mim3d.config.inference import InferenceConfig
from mim3d.foundation.errors import ShapeError, check_shape
from mim3d.inference.relief import Relief
from mim3d.inference.windows import (
    Sweep,
    Triple,
    WindowCount,
    check_inference,
    in_parts,
    plan_sweep,
    window_weights,
)

Spacing = tuple[float, float, float]
Swaps = Sequence[tuple[int, int]]
Progress = Callable[[int, int], None]


class Predictor(Protocol):
    """What the window is slid over."""

    def __call__(self, voxels: Tensor, spacing_mm: Tensor, valid: Tensor | None, /) -> Tensor:
        """Logits `b k x y z` of voxels `b c x y z` with spacing `b 3` and valid `b x y z`."""


@dataclass(frozen=True, eq=False)
class Slab:
    """Rows that no later window touches: views of the ring, to be read before the next is taken.

    Attributes:
        first: its first row of the volume along the sweep's axis.
        sums: `k x y z`, weighted sums of logits; 0 where no window ran.
        mass: `x y z`, sums of the weights; None if not asked for.
    """

    first: int
    sums: Tensor
    mass: Tensor | None = None

    def mean(self, background: Tensor | None = None) -> Tensor:
        """Mean logits `k x y z`, written over the sums.

        Args:
            background: `k`, logits of voxels where no window ran; None where there are none.
        """
        assert self.mass is not None  # asked for by whoever wants means
        if background is None:
            return self.sums.div_(self.mass)
        untouched = (self.mass == 0).float()
        mean = self.sums.div_(self.mass + untouched)
        return mean.addcmul_(background[:, None, None, None], untouched)


def slide(
    voxels: Tensor,
    predictor: Predictor,
    config: InferenceConfig,
    *,
    window: Triple,
    spacing_mm: Spacing,
    swaps: Swaps = (),
    progress: Progress | None = None,
) -> Tensor:
    """The predictor's logits for a whole volume; no window is skipped.

    A volume smaller than the window is padded with zeros on both sides, marked as not valid.

    Args:
        voxels: `c x y z` on the device on which to add up.
        predictor: from windows to logits.
        config: overlap, weights, flips and windows a batch; its `window` is not read.
        window: voxels of a window.
        spacing_mm: voxel size along x, y, z.
        swaps: pairs of output channels that change places when x is mirrored (left, right).
        progress: told how many windows of how many are done.

    Returns:
        `k x y z`, float32, on the same device.

    Raises:
        ConfigError: the config names an impossible window.
        ShapeError: the predictor's output does not lie on its input's grid.
    """
    check_shape(voxels, "c x y z", "slide")
    check_inference(config)
    x, y, z = voxels.shape[1:]
    sweep = plan_sweep((x, y, z), window, config.overlap)
    logits: Tensor | None = None
    for slab in slabs(
        voxels, predictor, config, sweep, spacing_mm=spacing_mm, swaps=swaps, with_mass=True,
        progress=progress,
    ):  # fmt: skip
        if logits is None:
            logits = slab.sums.new_empty((len(slab.sums), x, y, z))
        rows = slab.sums.shape[1 + sweep.axis]
        logits.narrow(1 + sweep.axis, slab.first, rows).copy_(slab.mean())
    assert logits is not None  # there is always one window
    return logits


def slabs(
    voxels: Tensor,
    predictor: Predictor,
    config: InferenceConfig,
    sweep: Sweep,
    *,
    spacing_mm: Spacing,
    swaps: Swaps = (),
    as_seen: Callable[[Tensor], Tensor] | None = None,
    with_mass: bool = False,
    progress: Progress | None = None,
    relief: Relief | None = None,
) -> Iterator[Slab]:
    """Weighted sums of logits, in slabs of rows along `sweep.axis` from the first to the last.

    Nothing in here waits for the device. Where memory runs out, `relief` takes less and the same
    windows run again; sums that were added up stay.

    Args:
        voxels: `c x y z`, on the device on which to add up; of any type that `as_seen` takes.
        predictor: from windows to logits.
        config: weights, flips and windows a batch.
        sweep: the windows, planned for the volume's shape.
        spacing_mm: voxel size along x, y, z.
        swaps: pairs of output channels that change places when x is mirrored (left, right).
        as_seen: from windows `b c x y z` of `voxels` to what the predictor sees; None is as is.
        with_mass: whether the weights are added up too.
        progress: told how many windows of how many are done.
        relief: windows at once, and where sums lie; None takes the config's number and the
            voxels' device.

    Raises:
        ShapeError: the predictor's output does not lie on its input's grid.
        ResourceError: memory does not suffice for a single window.
    """
    relief = relief or Relief(voxels.device, config.windows_per_batch)
    voxels, valid = filled_up(voxels, sweep)
    spacing = torch.tensor(spacing_mm, dtype=torch.float32).to(relief.device)
    ring: _Ring | None = None
    done = 0
    while done < len(sweep.starts):
        starts = sweep.starts[done : done + max(1, relief.at_once >> len(config.mirrored))]
        try:
            crops, known = window_crops(voxels, valid, sweep, starts, as_seen, relief.device)
            logits = mirrored(
                predictor, crops, spacing.expand(len(starts), 3), known, config.mirrored, swaps,
                at_once=relief.at_once,
            ).to(relief.sums_on)  # fmt: skip
            ring = ring or _Ring(sweep, config.weights, logits, with_mass=with_mass)
        except Exception as error:
            relief.after(error)
            voxels = voxels.to(relief.sums_on)
            valid = None if valid is None else valid.to(relief.sums_on)
            if ring is not None:
                ring.move(relief.sums_on)
            continue
        del crops, known
        for start, output in zip(starts, logits, strict=True):
            yield from ring.release(start[sweep.axis])
            ring.add(start, output)
        del logits, output  # the next batch takes their place, not one beside it
        done += len(starts)
        if progress is not None:
            progress(done, len(sweep.starts))
    assert ring is not None  # there is always one window
    yield from ring.release(sweep.size[sweep.axis])


def window_crops(
    voxels: Tensor,
    valid: Tensor | None,
    sweep: Sweep,
    starts: Sequence[Triple],
    as_seen: Callable[[Tensor], Tensor] | None,
    device: torch.device,
) -> tuple[Tensor, Tensor | None]:
    """Windows `b c x y z` as the predictor sees them, and which of their voxels are valid."""
    boxes = [sweep.box(start) for start in starts]
    crops = torch.stack([voxels[(slice(None), *box)] for box in boxes]).to(device)
    crops = crops if as_seen is None else as_seen(crops)
    if valid is None:
        return crops, None
    known = torch.stack([valid[box] for box in boxes]).to(device)
    return crops.masked_fill(~known[:, None], 0), known


class _Ring:
    """Rows that windows still touch; row r of the padded volume lies at r modulo the depth.

    Args:
        sweep: the windows.
        kind: of the weights.
        logits: of the first windows, which tell the number of outputs and the device.
        with_mass: whether the weights are added up too.
    """

    def __init__(self, sweep: Sweep, kind: str, logits: Tensor, *, with_mass: bool) -> None:
        self.sweep = sweep
        self.depth = sweep.window[sweep.axis]
        self.first = 0
        shape = list(sweep.size)
        shape[sweep.axis] = self.depth
        # One window alone counts the same everywhere.
        kind = "constant" if sweep.count == WindowCount(1) else kind
        self.weights = window_weights(sweep.window, kind).to(logits.device)
        self.sums = torch.zeros((logits.shape[1], *shape), device=logits.device)
        self.mass = torch.zeros(shape, device=logits.device) if with_mass else None

    def add(self, start: Triple, logits: Tensor) -> None:
        """Adds the weighted logits `k x y z` of the window that begins there."""
        axis = self.sweep.axis
        box = list(self.sweep.box(start))
        place = start[axis] % self.depth
        # The part up to the end of the ring, then the part that goes round.
        for low, stop, shift in ((place, self.depth, -place), (0, place, self.depth - place)):
            if stop == low:
                continue
            box[axis] = slice(low, stop)
            part = [slice(None)] * 3
            part[axis] = slice(low + shift, stop + shift)
            weights = self.weights[tuple(part)]
            self.sums[(slice(None), *box)].addcmul_(logits[(slice(None), *part)], weights)
            if self.mass is not None:
                self.mass[tuple(box)] += weights

    def move(self, device: torch.device) -> None:
        """Goes on with its sums on another device."""
        self.weights, self.sums = self.weights.to(device), self.sums.to(device)
        self.mass = None if self.mass is None else self.mass.to(device)

    def release(self, until: int) -> Iterator[Slab]:
        """The rows before `until`, without those that only pad; their places become free."""
        axis = self.sweep.axis
        while self.first < until:
            place = self.first % self.depth
            stop = place + min(until - self.first, self.depth - place)
            inside = list(self.sweep.inside)
            low = max(inside[axis].start - self.first, 0)
            high = min(inside[axis].stop - self.first, stop - place)
            if high > low:
                first = self.first + low - inside[axis].start
                inside[axis] = slice(place + low, place + high)
                mass = None if self.mass is None else self.mass[tuple(inside)]
                yield Slab(first, self.sums[(slice(None), *inside)], mass)
            self.sums.narrow(1 + axis, place, stop - place).zero_()
            if self.mass is not None:
                self.mass.narrow(axis, place, stop - place).zero_()
            self.first += stop - place


def mirrored(
    predictor: Predictor,
    voxels: Tensor,
    spacing_mm: Tensor,
    valid: Tensor | None,
    flips: Sequence[str],
    swaps: Swaps = (),
    *,
    at_once: int | None = None,
) -> Tensor:
    """Mean logits over all combinations of mirrored axes, each mirrored back; float32.

    Args:
        predictor: from windows to logits.
        voxels: `b c x y z`.
        spacing_mm: `b 3`.
        valid: `b x y z` or None.
        flips: axes out of x, y, z; empty predicts once.
        swaps: pairs of output channels that change places when x is mirrored.
        at_once: windows and mirrored windows that pass the predictor together, at least b; None is
            all of them.
    """
    count = len(voxels)
    combinations = list(mirror_combinations(flips))
    together = len(combinations) if at_once is None else max(1, at_once // count)
    total: Tensor | None = None
    for some in in_parts(combinations, together):
        axes = [[-3 + "xyz".index(axis) for axis in chosen] for chosen in some]
        crops = torch.cat([voxels.flip(a) for a in axes]) if flips else voxels
        known = None if valid is None else torch.cat([valid.flip(a) for a in axes])
        logits = predictor(crops, spacing_mm.repeat(len(some), 1), known).float()
        if logits.ndim != 5 or logits.shape[2:] != crops.shape[2:]:
            raise ShapeError(
                f"a window of {tuple(crops.shape)} gave logits of {tuple(logits.shape)}, "
                "expected `b k x y z` on the same grid"
            )
        for chosen, turned, part in zip(some, axes, logits.chunk(len(some)), strict=True):
            back = part.flip(turned) if turned else part
            if "x" in chosen and swaps:
                back = back[:, _exchanged(back.shape[1], swaps)]
            total = back if total is None else total + back
    assert total is not None  # the unmirrored combination is always there
    return total.div_(len(combinations)) if flips else total


def mirror_combinations(axes: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Every choice of the axes, none first."""
    for count in range(len(axes) + 1):
        yield from itertools.combinations(axes, count)


def _exchanged(channels: int, swaps: Swaps) -> list[int]:
    order = list(range(channels))
    for left, right in swaps:
        order[left], order[right] = right, left
    return order


def filled_up(voxels: Tensor, sweep: Sweep) -> tuple[Tensor, Tensor | None]:
    """Voxels of at least the window's size, and which of them are valid; None is all."""
    if not sweep.is_padded:
        return voxels, None
    edges = [
        (side.start, size - side.stop) for side, size in zip(sweep.inside, sweep.size, strict=True)
    ]
    flat = [width for edge in reversed(edges) for width in edge]
    valid = torch.zeros(sweep.size, dtype=torch.bool, device=voxels.device)
    valid[sweep.inside] = True
    return F.pad(voxels, flat), valid
