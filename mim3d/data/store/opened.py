"""One case of a store to read from, in any process."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim3d.data.intensity import Normalisation
from mim3d.data.store.checked import CheckedFile
from mim3d.data.store.entry import StoreEntry
from mim3d.data.store.layout import case_path
from mim3d.data.store.writing import intensities

Triple = tuple[int, int, int]


class StoreCase:
    """A case that can be read from in any process; the file is opened at the first read.

    Args:
        folder: the store.
        entry: the case's line in the manifest.
        class_values: values of the store's classes, background first, or None without labels.
        verified: ids of the cases whose checksum this process has compared; others are compared
            before the first read and added. None compares nothing.
    """

    def __init__(
        self,
        folder: Path,
        entry: StoreEntry,
        class_values: tuple[int, ...] | None,
        verified: set[str] | None,
    ) -> None:
        self.case_id = entry.case_id
        self.shape: tuple[int, int, int, int] = entry.shape
        self.spacing_mm = entry.spacing_mm
        self.has_label = entry.has_label
        self._path = case_path(folder, entry.case_id)
        self._entry = entry
        self._class_values = class_values
        self._verified = verified
        self._file: CheckedFile | None = None
        self._process = -1

    def __enter__(self) -> StoreCase:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_process": -1}

    def close(self) -> None:
        """Closes the file; reading opens it again."""
        if self._file is not None and self._process == os.getpid():
            self._file.close()
        self._file = None

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4), stored voxel to millimetres, RAS+."""
        return np.array(self._opened.header["affine"], np.float64)

    @property
    def normalisation(self) -> tuple[Normalisation, ...]:
        """One a channel, measured on the whole volume."""
        return self._opened.normalisation

    @property
    def body_voxels(self) -> NDArray[np.int64]:
        """(n, 3) coordinates drawn from the body, at most 2,000."""
        return self._opened.array("body_voxels").astype(np.int64)

    def label_voxels(self, index: int) -> NDArray[np.int64]:
        """(n, 3) coordinates drawn from one class of the store, at most 2,000; empty if absent."""
        place = self._own_index(index)
        if place is None:
            return np.empty((0, 3), np.int64)
        starts = self._opened.array("label_starts")
        part = self._opened.array("label_voxels")[starts[place] : starts[place + 1]]
        return part.astype(np.int64)

    def classes_present(self) -> tuple[int, ...]:
        """Indices of the store's classes that this case has voxels of, background included."""
        if not self.has_label or self._class_values is None:
            return ()
        counts = dict(zip(self._opened.class_values,
                          np.diff(self._opened.array("label_starts")), strict=True))  # fmt: skip
        return tuple(i for i, v in enumerate(self._class_values) if counts.get(v, 0) > 0)

    def read(
        self, start: Triple, size: Triple, labels: bool = True
    ) -> tuple[NDArray[np.int16], NDArray[np.uint8] | None]:
        """A box of stored voxels and of class indices.

        Args:
            start: first voxel along x, y, z.
            size: voxels along x, y, z; the box lies within the volume.
            labels: whether labels are read, where there are any.

        Returns:
            `c x y z` int16, and `x y z` uint8 or None.
        """
        inside = zip(start, size, self.shape[1:], strict=True)
        if not all(s >= 0 and n > 0 and s + n <= whole for s, n, whole in inside):
            raise ValueError(f"a box of {size} at {start} does not lie within {self.shape[1:]}")
        voxels = self._opened.box("voxels", (0, *start), (self.shape[0], *size))
        if not (labels and self.has_label):
            return voxels, None
        own = self._opened.box("labels", start, size)
        table = self._to_store_index()
        return voxels, own if table is None else table.take(own)

    def read_intensities(self, start: Triple, size: Triple) -> NDArray[np.float32]:
        """`c x y z`, float32, in the file's own units."""
        voxels, _ = self.read(start, size, labels=False)
        header = self._opened.header
        return intensities(voxels, tuple(header["scale"]), tuple(header["offset"]))

    def read_normalised(self, start: Triple, size: Triple) -> NDArray[np.float32]:
        """`c x y z`, float32, normalised."""
        own = self.read_intensities(start, size)
        pairs = zip(self.normalisation, own, strict=True)
        return np.stack([normalisation.apply(channel) for normalisation, channel in pairs])

    def scaling(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Scale and offset of each channel: intensity = voxel * scale + offset."""
        header = self._opened.header
        return tuple(header["scale"]), tuple(header["offset"])

    @property
    def _opened(self) -> CheckedFile:
        if self._file is None or self._process != os.getpid():
            # After a fork the parent's handle is dropped, never closed: its state is the parent's.
            verify = self._verified is not None and self.case_id not in self._verified
            opened = CheckedFile(self._path, self._entry, verify)
            if self.has_label and not set(opened.class_values) <= set(
                opened.class_values if self._class_values is None else self._class_values
            ):
                opened.close()
                raise opened.damaged("its classes are not the store's")
            self._file = opened
            self._process = os.getpid()
            if self._verified is not None:
                self._verified.add(self.case_id)
        return self._file

    def _own_index(self, index: int) -> int | None:
        """The place of a store's class among the classes this file counts."""
        if not self.has_label or self._class_values is None:
            return None
        value, own = self._class_values[index], self._opened.class_values
        return own.index(value) if value in own else None

    def _to_store_index(self) -> NDArray[np.uint8] | None:
        """Table from this file's indices to the store's; None where they are the same."""
        own = self._opened.class_values
        classes = self._class_values or own
        if own == classes[: len(own)]:
            return None
        table = np.arange(256, dtype=np.uint8)
        table[: len(own)] = [classes.index(value) for value in own]
        return table
