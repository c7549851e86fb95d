"""Rows of a NumPy archive, each a volume, as MedMNIST's are: `train_images`, `n x y z`.

A row goes by a path below its archive, `adrenal.npz/train_00017`, so that it can stand wherever a
file of a volume can.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mim3d.config.read import ReadConfig
from mim3d.data.files.archives import Archive, Array
from mim3d.data.files.dicom_paths import series_of
from mim3d.data.files.geometry import Grid
from mim3d.data.files.layout import Axes, Layout, positive_sizes
from mim3d.data.files.streams import Rest
from mim3d.data.volume import Note
from mim3d.foundation.errors import VolumeError

ENDING = ".npz"
ROW = re.compile(r"([A-Za-z][A-Za-z0-9]*)_([0-9]{5,9})")
"""The last part of a row's path: its list and its number from 0."""
COLOURS = 3
NO_GRID = Note("no-grid", "an array says neither voxel size nor orientation: taken as 1 mm, RAS+")


def row_path(archive: Path, part: str, number: int) -> Path:
    """The path of a row of `<part>_images`."""
    return archive / f"{part}_{number:05d}"


def archive_of(path: Path) -> Path | None:
    """The archive that a path is a row of, whether or not it is there; None for other paths."""
    archive = path.parent
    is_row = archive.suffix.lower() == ENDING and ROW.fullmatch(path.name) is not None
    return archive if is_row and not archive.is_dir() else None


def is_there(path: Path) -> bool:
    """Whether a file or folder exists, of a row its archive, of one of several series its folder.

    Also where a share does not answer.
    """
    return series_of(path) is not None or os.path.exists(archive_of(path) or path)


def row_layout(array: Array) -> Layout:
    """What a row is: `x y z`, `x y` one voxel thick, or `x y 3` of three colours.

    Raises:
        VolumeError: its rows are none of these.
    """
    shape = array.shape[1:]
    if len(shape) not in (2, 3):
        raise VolumeError(
            f"the rows of `{array.name}` have {len(shape)} axes: volumes have three, x y z, "
            "pictures x y, or x y 3 in colour",
            remedy="save one volume a row",
            code="axes",
        )
    positive_sizes(list(shape))
    if len(shape) == 2:
        axes = Axes((*shape, 1), None)
    elif shape[2] == COLOURS:
        axes = Axes((*shape[:2], 1, COLOURS), 3)
    else:
        axes = Axes(shape, None)
    stored = array.dtype if array.dtype.kind != "b" else np.dtype("u1")
    # What is written for a row says so: RAS+ is what it was taken for.
    return Layout(stored, axes, shape, Grid(np.eye(4), True, (NO_GRID,)))


class RowStream:
    """The voxels of one row, as `streams.Stream`, x fastest as in every other format.

    A prediction is written in the order of its file, and is to have the shape of the row.
    """

    def __init__(self, archive: Archive, name: str, number: int) -> None:
        self._archive = archive
        self._where = (name, number)
        self._left = archive.arrays[name].row_bytes

    def fill(self, target: memoryview) -> int:
        """As `Stream.fill`."""
        array = self._archive.arrays[self._where[0]]
        row = np.frombuffer(self._archive.row(*self._where), array.dtype)
        content = row.reshape(array.shape[1:]).tobytes(order="F")
        done = min(len(target), self._left)
        start = len(content) - self._left
        target[:done] = content[start : start + done]
        self._left -= done
        return done

    def finish(self, wanted: int) -> Rest:
        """As `Stream.finish`: other rows follow, so nothing is looked for."""
        del wanted
        return Rest()

    def most(self) -> int:
        """As `Stream.most`."""
        return self._left


@contextlib.contextmanager
def opened(path: Path, config: ReadConfig) -> Iterator[tuple[Layout, RowStream]]:
    """Opens a row.

    Raises:
        VolumeError: the archive cannot be used, or has no such row.
    """
    del config
    archive, name, number = _located(path)
    yield row_layout(archive.arrays[name]), RowStream(archive, name, number)


def row_content(path: Path) -> bytes:
    """What a row's key is made of: its type, its shape and its numbers.

    Raises:
        VolumeError: the archive cannot be used, or has no such row.
    """
    archive, name, number = _located(path)
    array = archive.arrays[name]
    return f"{array.dtype.str} {array.shape[1:]}\n".encode() + archive.row(name, number)


class _Last(threading.local):
    """The archive that this thread read from last, and what its file was then.

    Rows are asked for one by one and in order. A stream in deflate has one direction: opened anew
    for each of 1,188 rows of 64 cubed, half of them would be unpacked each time (0.4 s a row).
    """

    state: object = None
    archive: Archive | None = None


_last = _Last()


def _located(path: Path) -> tuple[Archive, str, int]:
    """The open archive, the array and the number of a row."""
    file, matched = archive_of(path), ROW.fullmatch(path.name)
    assert file is not None
    assert matched is not None
    try:
        stat = os.stat(file)
    except FileNotFoundError:
        raise VolumeError("there is no such file", code="missing") from None
    state = (os.getpid(), file.resolve(), stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if _last.archive is None or _last.state != state:
        _last.archive = None  # closes the older one first
        _last.archive, _last.state = Archive(file), state
    array = _last.archive.arrays.get(f"{matched[1]}_images")
    if array is None or int(matched[2]) >= array.shape[0]:
        raise VolumeError("its archive has no such row", code="missing")
    return _last.archive, array.name, int(matched[2])
