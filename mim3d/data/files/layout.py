"""What a header parser hands on: how the voxels lie in the file, and the one way to read them.

NIfTI, NRRD and MetaImage differ in their headers only. Each parser ends in a `Layout`; from there
on one path reads the stream to its end, settles the values and turns the axes to RAS+.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim3d.data.files import values
from mim3d.data.files.deflate import StreamCut
from mim3d.data.files.geometry import Grid, nearest_ras, ras_affine
from mim3d.data.files.streams import PlainStream, Stream, more_data
from mim3d.data.volume import NiftiFields, Note, Origin, Volume
from mim3d.foundation.errors import VolumeError


@dataclass(frozen=True)
class Axes:
    """Which of the stored axes are space and which is the channel.

    Attributes:
        dims: sizes of the stored axes, fastest first, ones dropped; three are space.
        channel: the place of the channel axis in `dims`, or None.
    """

    dims: tuple[int, ...]
    channel: int | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along the three axes of space, in the file's order."""
        space = [size for axis, size in enumerate(self.dims) if axis != self.channel]
        return (space[0], space[1], space[2])

    @property
    def channels(self) -> int:
        """Number of channels."""
        return 1 if self.channel is None else self.dims[self.channel]

    @property
    def count(self) -> int:
        """Number of voxels times channels."""
        return math.prod(self.dims)


@dataclass(frozen=True)
class Layout:
    """Everything a header says that is needed to read its voxels.

    Attributes:
        stored: the type of a voxel with its byte order.
        axes: sizes and meaning of the stored axes.
        dims: the sizes as the header has them.
        grid: where the voxels lie.
        scaling: slope and intercept, or None.
        notes: what was odd about the header, the grid's notes aside.
        nifti: geometry fields of a NIfTI header, to be written again.
        modality: what a DICOM series says it is (`CT`, `MR`, …); empty elsewhere.
    """

    stored: np.dtype[Any]
    axes: Axes
    dims: tuple[int, ...]
    grid: Grid
    scaling: values.Scaling | None = None
    notes: tuple[Note, ...] = ()
    nifti: NiftiFields | None = None
    modality: str = ""

    @property
    def stored_bytes(self) -> int:
        """Bytes of the voxels in the file, uncompressed."""
        return self.axes.count * self.stored.itemsize

    def origin(self) -> Origin:
        """The way back to the file's grid."""
        axes, flips = nearest_ras(self.grid.affine)
        return Origin(
            self.axes.shape,
            axes,
            flips,
            self.grid.affine,
            self.dims,
            self.grid.has_orientation,
            self.nifti,
        )


def positive_sizes(sizes: list[int]) -> None:
    """Refuses sizes that no volume has.

    Raises:
        VolumeError: a size is zero or negative.
    """
    if min(sizes, default=0) < 1:
        listed = " x ".join(map(str, sizes[:8]))
        raise VolumeError(f"its header has the impossible size {listed}", code="size")


def plain_axes(sizes: list[int]) -> Axes:
    """The rule of axes for formats without named axes: three of space, a fourth for channels.

    Trailing ones are dropped, a fifth axis is the channel where the fourth is one.

    Args:
        sizes: fastest first.

    Raises:
        VolumeError: impossible sizes, or more axes than can be told apart.
    """
    positive_sizes(sizes)
    full = sizes + [1] * (3 - len(sizes))
    space, more = tuple(full[:3]), [size for size in full[3:] if size > 1]
    if not more:
        return Axes(space, None)
    if len(more) > 1 or any(size > 1 for size in full[5:]):
        raise VolumeError(
            f"it has {len(sizes)} axes ({' x '.join(map(str, sizes))}), at most one of channels"
            " is possible",
            remedy="split it into volumes of three or four axes",
            code="axes",
        )
    return Axes((*space, more[0]), 3)


def check_size(layout: Layout, most: int, compressed: bool, max_bytes: int) -> None:
    """Compares the declared size with the limit and with what the file can hold.

    Args:
        layout: from the header.
        most: the most bytes the stream can still give.
        compressed: whether `most` is only an upper bound.
        max_bytes: the limit of the config.

    Raises:
        VolumeError: the declaration is too large, or the file too short for it.
    """
    needed = layout.stored_bytes
    kept = values.kept_dtype(layout.stored, layout.scaling).itemsize * layout.axes.count
    if max(needed, kept) > max_bytes:
        raise VolumeError(
            f"its header declares {max(needed, kept) / 2**30:.1f} GiB of voxels,"
            f" the limit is {max_bytes / 2**30:g} GiB",
            remedy="raise `--read.max_gib` if the volume is really as large",
            code="too-large",
        )
    if needed > most and compressed:
        raise VolumeError(
            f"cut short: its header declares {needed} bytes of voxels, more than it can hold",
            remedy="copy or download the file again",
            code="more-declared",
        )
    if needed > most:
        raise too_short(most, needed)


def too_short(found: int, needed: int) -> VolumeError:
    """The error for a file that ends before its last voxel."""
    return VolumeError(
        f"cut short: {100 * found / needed:.3g} % of its voxels are there"
        f" ({found} of {needed} bytes)",
        remedy="copy or download the file again",
        code="cut-short",
    )


def read_intensities(layout: Layout, stream: Stream, max_bytes: int) -> Volume:
    """Reads a stream to its end and gives the volume in RAS+.

    Raises:
        VolumeError: stream, size or values are not as they should be.
    """
    kept = values.kept_dtype(layout.stored, layout.scaling)
    buffer, found = _read_stored(layout, stream, kept, max_bytes)
    flat, unusable, odd = values.settle_intensities(
        buffer, layout.axes.dims[::-1], layout.stored, layout.scaling
    )
    return _oriented(layout, flat, [*found, *odd], unusable)


def read_labels(
    layout: Layout,
    stream: Stream,
    max_bytes: int,
    *,
    allowed: Collection[int] | None,
    ignore: int | None,
) -> Volume:
    """Reads a stream to its end and gives the label map in RAS+, one channel of integers.

    Raises:
        VolumeError: stream or size are not as they should be, or a value is no label.
    """
    if layout.axes.channels > 1:
        raise VolumeError(
            f"a label map has one channel, this has {layout.axes.channels}",
            remedy="merge one-hot channels into one map of whole numbers (the argmax over them)",
            code="one-hot",
        )
    buffer, found = _read_stored(layout, stream, np.dtype(np.int32), max_bytes)

    def place(index: int) -> str:
        i, rest = index % layout.axes.shape[0], index // layout.axes.shape[0]
        return f"({i}, {rest % layout.axes.shape[1]}, {rest // layout.axes.shape[1]})"

    flat = values.settle_labels(
        buffer,
        layout.axes.count,
        layout.stored,
        layout.scaling,
        allowed=allowed,
        ignore=ignore,
        place=place,
    )
    return _oriented(layout, flat, found)


def _read_stored(
    layout: Layout, stream: Stream, kept: np.dtype[Any], max_bytes: int
) -> tuple[NDArray[np.uint8], list[Note]]:
    check_size(layout, stream.most(), not isinstance(stream, PlainStream), max_bytes)
    count = layout.axes.count
    buffer = values.buffer_for(count, layout.stored, kept)
    target = values.stored_part(buffer, count, layout.stored)
    try:
        found = stream.fill(target.data)
    except StreamCut as cut:
        raise too_short(cut.given, len(target)) from None
    if found < len(target):
        # The stream ended in good order; a damaged one has raised by now.
        raise too_short(found, len(target))
    rest = stream.finish(len(target))
    if rest.zeros and not _is_padding(layout, target, rest.zeros):
        raise more_data(len(target) + rest.zeros, len(target), at_least=False)
    return buffer, rest.notes()


def _is_padding(layout: Layout, target: NDArray[np.uint8], zeros: int) -> bool:
    """Whether zeros behind the voxels can be no voxels that the header leaves out.

    They may be where they make up whole slices, or where the voxels end in zeros themselves, as
    around a brain: then a header with other sizes, or one that begins elsewhere, looks the same.
    """
    is_slices = any(zeros % (len(target) // size) == 0 for size in layout.axes.dims)
    return not is_slices and bool(target[-layout.stored.itemsize :].any())


def _oriented(
    layout: Layout,
    flat: NDArray[Any],
    notes: list[Note],
    unusable: NDArray[np.bool_] | None = None,
) -> Volume:
    """The volume in RAS+ of voxels in the file's order."""
    origin = layout.origin()
    affine = ras_affine(layout.grid.affine, layout.axes.shape, origin.axes, origin.flips)
    every = (*layout.notes, *layout.grid.notes, *notes)
    turned = None if unusable is None else _turned(layout, origin, unusable)
    return Volume(_turned(layout, origin, flat), affine, every, origin=origin, unusable=turned)


def _turned(layout: Layout, origin: Origin, flat: NDArray[Any]) -> NDArray[Any]:
    """Turns an array in the file's order to `c x y z` in RAS+ without a second copy."""
    against = {axis for axis, flip in zip(origin.axes, origin.flips, strict=True) if flip}
    stored = list(layout.axes.dims)
    space = [axis for axis in range(len(stored)) if axis != layout.axes.channel]
    slowest_first = flat.reshape(stored[::-1])
    last = len(stored) - 1
    flip_in_place(slowest_first, {last - space[axis] for axis in against})
    array = slowest_first.T
    if layout.axes.channel is None:
        array = array[None]
    else:
        array = np.moveaxis(array, layout.axes.channel, 0)
    return array.transpose(0, *(axis + 1 for axis in origin.axes))


def flip_in_place(array: NDArray[Any], axes: set[int]) -> None:
    """Mirrors a C-contiguous array along some axes with the memory of one slab.

    A copy in the other direction would double the peak; this keeps it at one volume.
    """
    if not axes or array.size == 0:
        return
    if 0 not in axes and (array.ndim > 3 or array.shape[0] == 1):
        for part in array:
            flip_in_place(part, {axis - 1 for axis in axes})
        return
    inner = tuple(
        slice(None, None, -1) if axis in axes else slice(None) for axis in range(1, array.ndim)
    )
    size = array.shape[0]
    for low in range(size // 2 if 0 in axes else 0):
        kept = array[low][inner].copy()
        array[low] = array[size - 1 - low][inner]
        array[size - 1 - low] = kept
    rest = range(size) if 0 not in axes else range(size // 2, size - size // 2)
    for middle in rest:
        array[middle] = array[middle][inner].copy()
