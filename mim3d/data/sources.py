"""Cases as crops are cut from them: read from their files, or held in memory as they are stored."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mim3d.config.sections import DataConfig
from mim3d.data.store import Store, StoreCase
from mim3d.data.store.writing import intensities
from mim3d.foundation.errors import ConfigError, ResourceError

OPEN_CASES = 128
"""Files a process keeps open. Opening and checking one costs as much as a small crop; each may hold
two megabytes of unpacked chunks."""


class CaseSource:
    """One case with the normalisation of this run; what `crops.OpenCase` asks for.

    Args:
        case: the case in its store.
        windows: a window for each channel that does not take the one noted in the store.
    """

    def __init__(self, case: StoreCase, windows: tuple[tuple[float, float] | None, ...]) -> None:
        self.case_id = case.case_id
        self.shape = case.shape
        self.spacing_mm = case.spacing_mm
        self.affine = case.affine
        self._case = case
        self._scaling = case.scaling()
        self._rules = tuple(
            rule if window is None else rule.with_window(*window)
            for rule, window in zip(case.normalisation, windows, strict=True)
        )
        thresholds = [rule.air_normalised for rule in self._rules]
        known = [threshold for threshold in thresholds if threshold is not None]
        complete = len(known) == len(thresholds)
        self.air = np.array(known, np.float32) if complete else None
        self._present = tuple(index for index in case.classes_present() if index > 0)
        self._voxels: NDArray[np.int16] | None = None
        self._labels: NDArray[np.uint8] | None = None
        self._centres: dict[int | None, NDArray[np.int64]] = {}

    def read(
        self, start: Sequence[int], size: Sequence[int], *, labels: bool
    ) -> tuple[NDArray[np.int16], NDArray[np.uint8] | None]:
        """Stored voxels `c x y z` and class indices `x y z` of a box inside the volume."""
        x, y, z = start
        nx, ny, nz = size
        if self._voxels is None:
            return self._case.read((x, y, z), (nx, ny, nz), labels=labels)
        box = (slice(x, x + nx), slice(y, y + ny), slice(z, z + nz))
        label_map = self._labels[box] if labels and self._labels is not None else None
        return self._voxels[(slice(None), *box)], label_map

    def normalise(self, stored: NDArray[np.int16]) -> NDArray[np.float32]:
        """Stored voxels `c x y z` in normalised units, by the whole volume's rule."""
        values = intensities(stored, *self._scaling)
        for channel, rule in zip(values, self._rules, strict=True):
            channel[...] = rule.apply(channel)
        return values

    def classes_present(self) -> tuple[int, ...]:
        """Classes that the case has voxels of, without the background."""
        return self._present

    def label_voxels(self, index: int) -> NDArray[np.int64]:
        """Some voxels of a class, `n 3`."""
        if index not in self._centres:
            self._centres[index] = self._case.label_voxels(index)
        return self._centres[index]

    def body_voxels(self) -> NDArray[np.int64]:
        """Some voxels of the body, `n 3`."""
        if None not in self._centres:
            self._centres[None] = self._case.body_voxels
        return self._centres[None]

    def load(self, *, labels: bool) -> None:
        """Takes all voxels into memory, as they are stored, and closes the file."""
        x, y, z = self.shape[1:]
        self._voxels, self._labels = self._case.read((0, 0, 0), (x, y, z), labels=labels)
        self.body_voxels()
        for index in self._present:
            self.label_voxels(index)
        self._case.close()

    def close(self) -> None:
        """Closes the file; reading opens it again."""
        self._case.close()


class Sources:
    """The cases of one feed, opened when they are needed.

    Args:
        store: where they lie.
        data: `feed` and `window_hu`.
        labels: whether label maps are needed.

    Raises:
        ConfigError: a window in HU for a store without CT.
    """

    def __init__(self, store: Store, data: DataConfig, *, labels: bool) -> None:
        if data.window_hu is not None and "ct" not in store.modalities:
            raise ConfigError(
                "`data.window_hu` is set but the store holds no CT",
                where=str(store.path),
                remedy="leave it out: other modalities are normalised by their own values",
                code="window",
            )
        self._windows = tuple(
            data.window_hu if modality == "ct" else None for modality in store.modalities
        )
        self._store = store
        self._labels = labels
        self._open: OrderedDict[str, CaseSource] = OrderedDict()
        self._resident: dict[str, CaseSource] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": OrderedDict()}

    def open(self, case_id: str) -> CaseSource:
        """The case of an id; of those that are read from files, the last few stay open."""
        if case_id in self._resident:
            return self._resident[case_id]
        if case_id not in self._open:
            self._open[case_id] = CaseSource(self._store.open(case_id), self._windows)
            if len(self._open) > OPEN_CASES:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(case_id)
        return self._open[case_id]

    def load(self, case_ids: Iterable[str]) -> None:
        """Takes whole cases into memory.

        Raises:
            ResourceError: they need more memory than there is.
        """
        missing = [case_id for case_id in case_ids if case_id not in self._resident]
        need, free = sum(map(self._bytes, missing)), available_bytes()
        if free is not None and need > free:
            raise ResourceError(
                f"`data.feed resident` needs {need / 2**30:.1f} GiB for {len(missing)} volumes "
                f"and {free / 2**30:.1f} GiB of memory are free",
                remedy="set `--data.feed store`, which reads each crop from disk",
                code="memory",
            )
        for case_id in missing:
            source = CaseSource(self._store.open(case_id), self._windows)
            source.load(labels=self._labels)
            self._resident[case_id] = source

    def _bytes(self, case_id: str) -> int:
        entry = self._store.entry(case_id)
        labels = 1 if self._labels and entry.has_label else 0
        return (2 * entry.shape[0] + labels) * math.prod(entry.shape[1:])


def available_bytes() -> int | None:
    """Memory that a process can take without swapping, or None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None
