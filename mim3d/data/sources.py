"""Cases as crops are cut from them: read from their files, or held in memory as they are stored."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mim3d.config.data import DataConfig
from mim3d.data.batched import VolumeFacts, Volumes
from mim3d.data.intensity import Normalisation
from mim3d.data.room import remedy
from mim3d.data.store import Store, StoreCase
from mim3d.data.store.writing import intensities
from mim3d.foundation.errors import ConfigError, ResourceError
from mim3d.foundation.machine import available_bytes

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
        self._case = case
        self._windows = windows
        self._voxels: NDArray[np.int16] | None = None
        self._labels: NDArray[np.uint8] | None = None
        self._centres: dict[int | None, NDArray[np.int64]] = {}
        self._facts: VolumeFacts | None = None

    # What needs the file is read when it is asked for: many plans need the shape alone.

    @cached_property
    def affine(self) -> NDArray[np.float64]:
        """`4 4`, voxel to millimetres."""
        return self._case.affine

    @cached_property
    def air(self) -> NDArray[np.float32] | None:
        """`c`, normalised intensity below which a voxel is air; where all is body, no voxel is."""
        thresholds = [rule.air_normalised for rule in self._rules]
        # Crops of such a case share batches with those that have air.
        return np.array([-np.inf if t is None else t for t in thresholds], np.float32)

    def read_facts(self) -> VolumeFacts:
        """What a pass over a whole batch needs of this case; read once, then kept."""
        if self._facts is None:
            rows = (
                (scale, offset, rule.low, rule.high, rule.shift, rule.width)
                for scale, offset, rule in zip(*self._scaling, self._rules, strict=True)
            )
            rule = np.array(list(rows), np.float64).T
            self._facts = VolumeFacts(self.case_id, self.shape[1:], self.affine, rule, self.air)
        return self._facts

    @cached_property
    def _scaling(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self._case.scaling()

    @cached_property
    def _rules(self) -> tuple[Normalisation, ...]:
        return tuple(
            rule if window is None else rule.with_window(*window)
            for rule, window in zip(self._case.normalisation, self._windows, strict=True)
        )

    @cached_property
    def _present(self) -> tuple[int, ...]:
        return tuple(index for index in self._case.classes_present() if index > 0)

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

    def normalise(
        self, stored: NDArray[np.int16], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Stored voxels `c x y z` in normalised units, by the whole volume's rule."""
        values = intensities(stored, *self._scaling, out)
        for channel, rule in zip(values, self._rules, strict=True):
            rule.apply_in_place(channel)
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
        # All that is asked of the file later is read before it is closed.
        self.read_facts()
        self.body_voxels()
        for index in self._present:
            self.label_voxels(index)
        self._case.close()

    def read_slab(
        self, first: int, count: int, *, labels: bool
    ) -> tuple[NDArray[np.int16], NDArray[np.uint8] | None]:
        """Stored voxels `c x y z` and class indices of some planes along x."""
        return self.read((first, 0, 0), (count, *self.shape[2:]), labels=labels)

    def within(self, volumes: Volumes, begin: int) -> CaseSource:
        """The same case, its voxels from flat memory where they begin at `begin`."""
        channels, *space = self.shape
        count = math.prod(space)
        self.read_facts()  # once here, then known to every copy
        same = copy.copy(self)
        voxels = volumes.voxels[begin * channels : (begin + count) * channels]
        same._voxels = voxels.view(self.shape).numpy()
        if volumes.labels is not None:
            same._labels = volumes.labels[begin : begin + count].view(space).numpy()
        return same

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
        self._window_hu = data.window_hu
        if data.window_hu is not None and not any(
            "ct" in store.modalities_of(case_id) for case_id in store.cases
        ):
            raise ConfigError(
                "`data.window_hu` is set but the store holds no CT",
                where=str(store.path),
                remedy="leave it out: other modalities are normalised by their own values",
                code="window",
            )
        self._store = store
        self._labels = labels
        self._open: OrderedDict[tuple[str, bool], CaseSource] = OrderedDict()
        self._resident: dict[str, CaseSource] = {}
        self._facts: dict[str, VolumeFacts] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": OrderedDict()}

    def open(self, case_id: str) -> CaseSource:
        """The case of an id; of those that are read from files, the last few stay open."""
        return self._kept(case_id, verify=True)

    def outline(self, case_id: str) -> CaseSource:
        """The case of an id, for what is drawn and not cut: its file is not read to the end."""
        return self._kept(case_id, verify=False)

    def fresh(self, case_id: str) -> CaseSource:
        """The case of an id for a thread that reads all of it; its facts are noted."""
        source = CaseSource(self._store.open(case_id), self._windows(case_id))
        self._facts[case_id] = source.read_facts()
        return source

    def facts(self, case_id: str) -> VolumeFacts:
        """What a pass over a batch needs of a case beside its voxels."""
        if case_id not in self._facts:
            self._facts[case_id] = self.outline(case_id).read_facts()
        return self._facts[case_id]

    def _kept(self, case_id: str, *, verify: bool) -> CaseSource:
        if case_id in self._resident:
            return self._resident[case_id]
        key = (case_id, verify)
        if key not in self._open:
            opened = self._store.open(case_id, verify)
            self._open[key] = CaseSource(opened, self._windows(case_id))
            if len(self._open) > OPEN_CASES:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(key)
        return self._open[key]

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
                remedy=remedy(on_gpu=False),
                code="memory",
            )
        for case_id in missing:
            source = CaseSource(self._store.open(case_id), self._windows(case_id))
            source.load(labels=self._labels)
            self._resident[case_id] = source

    def _windows(self, case_id: str) -> tuple[tuple[float, float] | None, ...]:
        """The window of each channel of a case; None takes the one noted in its store."""
        return tuple(
            self._window_hu if modality == "ct" else None
            for modality in self._store.modalities_of(case_id)
        )

    def _bytes(self, case_id: str) -> int:
        entry = self._store.entry(case_id)
        labels = 1 if self._labels and entry.has_label else 0
        return (2 * entry.shape[0] + labels) * math.prod(entry.shape[1:])
