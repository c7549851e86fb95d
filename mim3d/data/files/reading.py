"""The one door for files of volumes: `read_volume`, `read_label`, `read_pair`, `read_geometry`."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mim3d.config.read import ReadConfig
from mim3d.data.files import archive_rows, dicom, meta_image, nifti, nrrd
from mim3d.data.files.geometry import corners, ras_affine
from mim3d.data.files.kinds import Kind, kind_of
from mim3d.data.files.layout import Layout, check_size, read_intensities, read_labels
from mim3d.data.files.streams import PlainStream, Stream
from mim3d.data.volume import Note, Origin, Volume, from_file_order, spacing_of, to_file_order
from mim3d.foundation.errors import VolumeError

PathLike = str | os.PathLike[str]
Opened = Callable[[Path, ReadConfig], contextlib.AbstractContextManager[tuple[Layout, Stream]]]

OPENERS: dict[Kind, Opened] = {
    Kind.NIFTI: nifti.opened,
    Kind.NRRD: nrrd.opened,
    Kind.META: meta_image.opened,
    Kind.DICOM: dicom.opened,
    Kind.ARCHIVE: archive_rows.opened,
}
DEFAULT = ReadConfig()
SAME_GRID = 0.05
"""The largest distance of an image's and its label map's corner, in voxels."""


class ReadWarning(UserWarning):
    """Something odd about a file that was settled by a rule; also among the volume's notes."""


@dataclass(frozen=True)
class Geometry:
    """What a header says about a volume, its voxels unread.

    Attributes:
        shape: voxels along x, y, z of RAS+.
        channels: number of channels.
        spacing_mm: voxel size along x, y, z.
        affine: (4, 4) to millimetres, RAS+.
        dtype: the type of a voxel in the file, by NumPy's name.
        modality: what a DICOM series says it is (`CT`, `MR`, …); empty elsewhere.
        notes: what is odd about the header.
        orientation: where the axes of the file run to, as `LPS`; `unknown` where it does not say.
    """

    shape: tuple[int, int, int]
    channels: int
    spacing_mm: tuple[float, float, float]
    affine: NDArray[np.float64]
    dtype: str
    modality: str
    notes: tuple[Note, ...]
    orientation: str = "unknown"


def read_volume(path: PathLike, read: ReadConfig = DEFAULT) -> Volume:
    """Reads a volume and checks all of it before a voxel is handed out.

    NIfTI (1, 2, pairs, `.gz`), Analyze, NRRD, MetaImage, and DICOM (a folder or a file), told by
    content; and rows of a NumPy archive, by their path (`archive_rows`). The rules stand in
    `geometry`, `values` and `streams`.

    Args:
        path: a file, either file of a pair, or a folder that holds one DICOM series.
        read: limits and choices.

    Returns:
        Voxels `c x y z` in RAS+; what was odd is in `notes` and given as `ReadWarning`s.

    Raises:
        VolumeError: it cannot be read, is damaged, or breaks a rule.
    """
    with _at(path):
        with _opened(Path(path), read) as (layout, stream, notes):
            volume = read_intensities(layout, stream, read.max_bytes)
        return _announced(replace(volume, notes=(*notes, *volume.notes)), path)


def read_label(
    path: PathLike,
    values: Collection[int] | None = None,
    ignore: int | None = None,
    read: ReadConfig = DEFAULT,
) -> Volume:
    """Reads a label map: one channel of whole numbers in the smallest unsigned type.

    Args:
        path: as for `read_volume`.
        values: the classes of the data set; others are an error. None allows 0 to 65535.
        ignore: one more value that may occur; a negative one makes the type signed.
        read: limits and choices.

    Raises:
        VolumeError: as `read_volume`, and for any value that is no label.
    """
    with _at(path):
        with _opened(Path(path), read) as (layout, stream, notes):
            volume = read_labels(layout, stream, read.max_bytes, allowed=values, ignore=ignore)
        return _announced(replace(volume, notes=(*notes, *volume.notes)), path)


def read_pair(
    image: PathLike,
    label: PathLike,
    trust_image_grid: bool = False,
    values: Collection[int] | None = None,
    ignore: int | None = None,
    read: ReadConfig = DEFAULT,
) -> tuple[Volume, Volume]:
    """Reads an image and its label map and makes sure that they lie on one grid.

    Args:
        image: as for `read_volume`.
        label: as for `read_label`.
        trust_image_grid: lays a label map that has no orientation of its own on the image's
            voxels, in the order in which both files store them.
        values: as for `read_label`.
        ignore: as for `read_label`.
        read: limits and choices.

    Returns:
        Image and label map of equal shape; corners within 0.05 voxel of each other.

    Raises:
        VolumeError: as both readers, and for two grids; the message has the distance in mm.
    """
    volume = read_volume(image, read)
    labels = read_label(label, values, ignore, read)
    if trust_image_grid and not labels.origin.has_orientation:
        return volume, _laid_on(volume, labels, label)
    check_same_grid(volume, labels, where=os.fspath(label))
    return volume, labels


def check_same_grid(image: Volume, labels: Volume, where: str | None = None) -> None:
    """Refuses two volumes on different grids.

    Raises:
        VolumeError: another shape, or a corner farther away than 0.05 voxel of the image.
    """
    remedy = "resample the label map to the image's grid with a tool you trust"
    if image.origin.has_orientation and not labels.origin.has_orientation:
        remedy = "if its voxels are the image's, add `--prepare.trust_image_grid true`"
    if image.shape != labels.shape:
        raise VolumeError(
            f"image and label map lie on different grids: {_grid_text(image)} and"
            f" {_grid_text(labels)}",
            where=where,
            remedy=remedy,
            code="grids-differ",
        )
    apart = (labels.affine - image.affine) @ corners(image.shape)
    voxels = np.linalg.solve(image.affine[:3, :3], apart[:3])
    if float(np.sqrt((voxels**2).sum(axis=0)).max()) > SAME_GRID:
        far = float(np.sqrt((apart[:3] ** 2).sum(axis=0)).max())
        raise VolumeError(
            f"image and label map lie up to {far:.3g} mm apart",
            where=where,
            remedy=remedy,
            code="grids-differ",
        )


def read_geometry(path: PathLike, read: ReadConfig = DEFAULT) -> Geometry:
    """What the header says, for planning and inspection; no voxel is read or checked.

    Raises:
        VolumeError: the header breaks a rule or declares more than the file can hold.
    """
    with _at(path), _opened(Path(path), read) as (layout, stream, notes):
        check_size(layout, stream.most(), not isinstance(stream, PlainStream), read.max_bytes)
        origin = layout.origin()
        affine = ras_affine(layout.grid.affine, origin.file_shape, origin.axes, origin.flips)
        x, y, z = (origin.file_shape[axis] for axis in origin.axes)
        every = (*notes, *layout.notes, *layout.grid.notes)
        return Geometry(
            (x, y, z),
            layout.axes.channels,
            spacing_of(affine),
            affine,
            layout.stored.newbyteorder("=").name,
            layout.modality,
            every,
            _orientation(origin),
        )


def _orientation(origin: Origin) -> str:
    if not origin.has_orientation:
        return "unknown"
    letters = ["", "", ""]
    for place, (axis, is_flipped) in enumerate(zip(origin.axes, origin.flips, strict=True)):
        letters[axis] = ("LPI" if is_flipped else "RAS")[place]
    return "".join(letters)


@contextlib.contextmanager
def _opened(path: Path, read: ReadConfig) -> Iterator[tuple[Layout, Stream, list[Note]]]:
    kind, notes = kind_of(path)
    with OPENERS[kind](path, read) as (layout, stream):
        yield layout, stream, notes


@contextlib.contextmanager
def _at(path: PathLike) -> Iterator[None]:
    """Puts the path, as the user gave it, into errors that do not have one."""
    try:
        # Damaged headers hold absurd numbers: the rules judge what overflows, no warning does.
        with np.errstate(all="ignore"):
            yield
    except VolumeError as error:
        error.where = error.where or os.fspath(path)
        raise
    except OSError as error:
        reason = error.strerror or "the device failed"
        raise VolumeError(
            f"it cannot be read: {reason}", where=os.fspath(path), code="unreadable"
        ) from None
    except MemoryError:
        raise VolumeError(
            "there is not enough memory to read it",
            where=os.fspath(path),
            remedy="free some memory or lower `--read.max_gib`",
            code="memory",
        ) from None


def _laid_on(image: Volume, labels: Volume, path: PathLike) -> Volume:
    stored = to_file_order(labels.voxels, labels.origin)
    if stored.shape[1:] != image.origin.file_shape:
        raise VolumeError(
            f"image and label map have different shapes in their files: {_grid_text(image)} and"
            f" {_grid_text(labels)}",
            where=os.fspath(path),
            code="grids-differ",
        )
    return replace(
        labels,
        voxels=np.ascontiguousarray(from_file_order(stored, image.origin)),
        affine=image.affine,
        origin=image.origin,
    )


def _grid_text(volume: Volume) -> str:
    shape = " x ".join(map(str, volume.shape))
    return f"{shape} at {' x '.join(f'{size:.3g}' for size in volume.spacing_mm)} mm"


def _announced(volume: Volume, path: PathLike) -> Volume:
    for note in volume.notes:
        warnings.warn(f"{os.fspath(path)}: {note.text}", ReadWarning, stacklevel=3)
    return volume
