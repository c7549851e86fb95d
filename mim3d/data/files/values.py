"""The rule of values: stored numbers become voxels, and what is no number is counted and contained.

Everything happens in the one buffer that the stream was read into, a slab at a time, so that a
volume needs no more memory than the larger of its stored and its final form.

Intensities: integers stay as they are where nothing scales them; everything else becomes float32
after the arithmetic in float64. Non-finite values and magnitudes above 1e9 are replaced by the
smallest or largest value within; more than half of them are an error, save where they are nothing
but the surroundings that a scanner or a mask left empty. Labels: every value must lie within 0.001
of an allowed integer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim3d.data.volume import Note
from mim3d.foundation.errors import VolumeError

LARGEST = 1e9
TINY = 1e-30
ROUNDING = 1e-3
LARGEST_LABEL = 65535
SLAB = 1 << 16
"""Voxels settled at once: their float64 stay in the cache, and the peak near the one buffer."""
INTEGERS: tuple[type[np.integer[Any]], ...] = (np.uint8, np.uint16, np.uint32)
SIGNED: tuple[type[np.integer[Any]], ...] = (np.int8, np.int16, np.int32)


@dataclass(frozen=True)
class Scaling:
    """Stored number times slope plus intercept; None everywhere means none."""

    slope: float
    intercept: float


Values = Callable[[int, int], NDArray[Any]]


def kept_dtype(stored: np.dtype[Any], scaling: Scaling | None) -> np.dtype[Any]:
    """The type that intensities of a stored type get in memory."""
    if scaling is not None or stored.kind == "f":
        return np.dtype(np.float32)
    if stored.itemsize == 8:
        # Contained to 1e9, so that half of the width is enough.
        return np.dtype(f"{stored.kind}4")
    return stored.newbyteorder("=")


def buffer_for(count: int, stored: np.dtype[Any], kept: np.dtype[Any]) -> NDArray[np.uint8]:
    """Memory for `count` voxels in their stored and their kept form, one after the other.

    Raises:
        VolumeError: there is not as much memory.
    """
    size = count * max(stored.itemsize, kept.itemsize)
    try:
        return np.empty(size, dtype=np.uint8)
    except MemoryError:
        raise VolumeError(
            f"its {size / 2**20:.0f} MiB of voxels do not fit into memory",
            remedy="free some memory or lower `--read.max_gib`",
            code="memory",
        ) from None


def stored_part(buffer: NDArray[np.uint8], count: int, stored: np.dtype[Any]) -> NDArray[np.uint8]:
    """Where the stored bytes belong: at the end, so that converting forwards never overtakes."""
    return buffer[len(buffer) - count * stored.itemsize :]


def settle_intensities(
    buffer: NDArray[np.uint8],
    shape: tuple[int, ...],
    stored: np.dtype[Any],
    scaling: Scaling | None,
) -> tuple[NDArray[Any], NDArray[np.bool_] | None, list[Note]]:
    """Converts a filled buffer to intensities in place.

    Args:
        buffer: from `buffer_for`, the stored bytes in their place.
        shape: sizes of the stored axes, slowest first.
        stored: type and byte order in the file.
        scaling: slope and intercept, or None.

    Returns:
        The voxels, flat, over the buffer's memory; which of them were replaced, None where none
        was; and what was odd.

    Raises:
        VolumeError: more than half of the voxels are no usable numbers.
    """
    count = math.prod(shape)
    raw = stored_part(buffer, count, stored).view(stored)
    kept = kept_dtype(stored, scaling)
    out = buffer[: count * kept.itemsize].view(kept)
    native = stored.newbyteorder("=")

    def values(start: int, stop: int) -> NDArray[Any]:
        part = raw[start:stop]
        if scaling is None:
            return part.astype(native, copy=False)
        with np.errstate(over="ignore", invalid="ignore"):
            return part.astype(np.float64) * scaling.slope + scaling.intercept

    bad, low, high = _range_within(values, count, stored, scaling)
    if 2 * bad > count and not (bad < count and _is_surroundings(values, shape)):
        raise VolumeError(
            f"{100 * bad / count:.0f} % of its voxels are not finite or beyond 1e9",
            remedy="this is no usable image: get it again from its source",
            code="not-finite",
        )
    unusable = np.empty(count, dtype=bool) if bad else None
    if bad or kept != stored or scaling is not None:
        for start, stop in _slabs(count):
            part = values(start, stop)
            if unusable is not None:
                unusable[start:stop] = _contain(part, low, high)
            out[start:stop] = part
    return out, unusable, _notes_on(bad, count, low, high)


def settle_labels(
    buffer: NDArray[np.uint8],
    count: int,
    stored: np.dtype[Any],
    scaling: Scaling | None,
    *,
    allowed: Collection[int] | None,
    ignore: int | None,
    place: Callable[[int], str],
) -> NDArray[Any]:
    """Converts a filled buffer to labels in place, in the smallest type that holds them.

    Args:
        buffer: from `buffer_for` with `int32` as the kept type.
        count: number of voxels.
        stored: type and byte order in the file.
        scaling: slope and intercept, or None.
        allowed: the classes of the data set, or None where it does not name them.
        ignore: one more value that may occur, whatever it is.
        place: names a voxel by its flat index, for the message.

    Raises:
        VolumeError: a value is no label; names the first one and its place.
    """
    raw = stored_part(buffer, count, stored).view(stored)
    out = buffer[: count * 4].view(np.int32)
    table = None if allowed is None else np.array(sorted({*map(int, allowed)}), dtype=np.int64)
    low = high = 0
    for start, stop in _slabs(count):
        part = raw[start:stop]
        exact: NDArray[Any] = part.astype(stored.newbyteorder("="))
        if scaling is not None or stored.kind == "f":
            exact = exact.astype(np.float64)
            if scaling is not None:
                with np.errstate(over="ignore", invalid="ignore"):
                    exact = exact * scaling.slope + scaling.intercept
        wrong = _no_label(exact, table, ignore)
        if wrong.any():
            first = int(np.argmax(wrong))
            raise _label_error(exact[first], place(start + first), table)
        whole = np.rint(exact).astype(np.int32) if exact.dtype.kind == "f" else exact
        out[start:stop] = whole
        low, high = min(low, int(whole.min())), max(high, int(whole.max()))
    kinds = SIGNED if low < 0 else INTEGERS
    smallest = next(k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max)
    small = buffer[: count * np.dtype(smallest).itemsize].view(smallest)
    for start, stop in _slabs(count):
        small[start:stop] = out[start:stop].astype(smallest)
    return small


def _slabs(count: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, SLAB):
        yield start, min(start + SLAB, count)


def _range_within(
    values: Values, count: int, stored: np.dtype[Any], scaling: Scaling | None
) -> tuple[int, float, float]:
    """How many values are unusable, and the smallest and largest of the others.

    Small integers are all usable: of them only whether they differ is looked at.
    """
    safe = scaling is None and stored.kind != "f" and stored.itemsize < 4
    bad, low, high = 0, np.inf, -np.inf
    for start, stop in _slabs(count):
        part = values(start, stop)
        if not safe:
            within = (part >= -LARGEST) & (part <= LARGEST)
            missing = part.size - int(np.count_nonzero(within))
            bad += missing
            if missing:
                part = part[within]
        if part.size:
            low, high = min(low, float(part.min())), max(high, float(part.max()))
        if safe and low < high:
            break
    return bad, low, high


def _is_surroundings(values: Values, shape: tuple[int, ...]) -> bool:
    """Whether NaN encloses the usable voxels along two axes and is at most half of their box.

    So it is where everything outside of the body or the reconstructed circle was set to NaN; a
    volume with missing slabs or scattered holes is not of this kind.
    """
    missing = np.empty(math.prod(shape), dtype=bool)
    for start, stop in _slabs(missing.size):
        part = values(start, stop)
        missing[start:stop] = np.isnan(part)
        if not (missing[start:stop] | (np.abs(part) <= LARGEST)).all():
            return False
    grid = missing.reshape(shape)
    box, enclosed = [], 0
    for axis in range(grid.ndim):
        others = tuple(other for other in range(grid.ndim) if other != axis)
        used = np.flatnonzero(~grid.all(axis=others))
        first, last = int(used[0]), int(used[-1])
        enclosed += first > 0 and last < grid.shape[axis] - 1
        box.append(slice(first, last + 1))
    return enclosed >= 2 and float(grid[tuple(box)].mean()) <= 0.5


def _contain(part: NDArray[Any], low: float, high: float) -> NDArray[np.bool_]:
    """Replaces what is no usable number; returns where that was."""
    with np.errstate(invalid="ignore"):
        too_high = part > LARGEST
        within = (part >= -LARGEST) & ~too_high
    part[too_high] = high
    # NaN and everything below: what lies outside of the scanner's field is dark.
    part[~(within | too_high)] = low
    unusable: NDArray[np.bool_] = ~within
    return unusable


def _notes_on(bad: int, count: int, low: float, high: float) -> list[Note]:
    notes = []
    if bad:
        text = f"{bad} of {count} voxels were not finite or beyond 1e9 and were replaced"
        notes.append(Note("values-replaced", text))
    if low == high or max(abs(low), abs(high)) < TINY:
        notes.append(Note("constant", "all voxels have the same value"))
    return notes


def _no_label(
    exact: NDArray[Any], table: NDArray[np.int64] | None, ignore: int | None
) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        whole = np.rint(exact) if exact.dtype.kind == "f" else exact
        fits = (whole >= 0) & (whole <= LARGEST_LABEL)
        if exact.dtype.kind == "f":
            fits &= np.abs(exact - whole) <= ROUNDING
        if table is not None:
            fits &= np.isin(whole, table)
        if ignore is not None:
            fits |= (whole == ignore) & (np.abs(exact - whole) <= ROUNDING)
    wrong: NDArray[np.bool_] = ~fits
    return wrong


def _label_error(value: Any, place: str, table: NDArray[np.int64] | None) -> VolumeError:
    expected = f"whole numbers from 0 to {LARGEST_LABEL}"
    if table is not None:
        known = ", ".join(map(str, table[:20].tolist())) + (", …" if len(table) > 20 else "")
        expected = f"the classes {known}"
    return VolumeError(
        f"its value {value:.9g} at voxel {place} is no label: {expected} are expected",
        remedy="correct the label map, or name the value among the labels of `dataset.json`",
        code="label-value",
    )
