"""From a layer to voxels, by the guarded readers, and the last few kept in memory."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim3d.config.read import ReadConfig
from mim3d.data.classes import IGNORE_INDEX, ClassTable
from mim3d.data.files import ReadWarning, archive_of, read_geometry, read_label, read_volume
from mim3d.data.files.nifti import image_of_pair
from mim3d.data.store import open_store
from mim3d.data.volume import Volume
from mim3d.foundation.errors import UserError
from mim3d.workflows.view.catalogue import Layer
from mim3d.workflows.view.roots import Roots
from mim3d.workflows.view.tables import colours_by_value

KEPT_BYTES = 2**30
FEW_VALUES = 64
"""Whole numbers from 0 that a file may hold and be a label map; greys have more."""


@dataclass(frozen=True, eq=False)
class Labels:
    """A label map as the page gets it.

    Attributes:
        indices: `x y z`, uint8: places in `classes`; 255 where nothing counts.
        volume: the grid.
        classes: of this map.
        counts: voxels of each class.
    """

    indices: NDArray[np.uint8]
    volume: Volume
    classes: ClassTable
    counts: tuple[int, ...]


class Reader:
    """Reads layers; one call at a time.

    Args:
        roots: what may be read.
        read: limits of the readers.
    """

    def __init__(self, roots: Roots, read: ReadConfig) -> None:
        self._roots = roots
        self._read = read
        self._kept: OrderedDict[tuple[Path, str | None, bool], Volume] = OrderedDict()

    def header(self, layer: Layer) -> dict[str, Any]:
        """What the page says of an image before it is shown: channels, size, spacing, remarks."""
        self._check(layer)
        if layer.stored is not None:
            entry = open_store(layer.path).entry(layer.stored)
            channels, *shape = entry.shape
            spacing, remarks = entry.spacing_mm, ["prepared: as it stands in the store"]
        else:
            with _quietly():
                geometry = read_geometry(layer.path, self._read)
            channels, shape, spacing = geometry.channels, list(geometry.shape), geometry.spacing_mm
            remarks = [note.text for note in geometry.notes]
        names = layer.channel_names
        if len(names) != channels:
            names = ("",) if channels == 1 else tuple(f"channel {n}" for n in range(channels))
        return {"channels": names, "shape": shape, "spacing_mm": spacing, "notes": remarks}

    def image(self, layer: Layer) -> Volume:
        """The voxels of an image, all channels."""
        return self._volume(layer, is_label=False)

    def labels(self, layer: Layer) -> Labels:
        """A label map by the classes that stand beside it, else by the values that occur.

        Raises:
            UserError: it cannot be read, or holds more values than a page can tell apart.
        """
        volume = self._volume(layer, is_label=True)
        values = volume.voxels[0]
        table = _completed(layer.classes, values)
        indices = table.to_index(values)
        counts = np.bincount(indices.ravel(order="K"), minlength=IGNORE_INDEX + 1)
        return Labels(indices, volume, table, tuple(counts[: table.count].tolist()))

    def _volume(self, layer: Layer, *, is_label: bool) -> Volume:
        self._check(layer)
        key = (layer.path, layer.stored, is_label)
        if key not in self._kept:
            with _quietly():
                self._kept[key] = self._opened(layer, is_label=is_label)
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and _bytes(self._kept) > KEPT_BYTES:
            self._kept.popitem(last=False)
        return self._kept[key]

    def _opened(self, layer: Layer, *, is_label: bool) -> Volume:
        if layer.stored is not None:
            return _from_store(layer, is_label=is_label)
        if not is_label:
            return read_volume(layer.path, self._read)
        ignore = None if layer.classes is None else layer.classes.ignore_value
        return read_label(layer.path, ignore=ignore, read=self._read)

    def _check(self, layer: Layer) -> None:
        """Looks again at everything that will be opened: links may have changed since."""
        self._roots.check(archive_of(layer.path) or layer.path)
        if layer.stored is not None:
            for path in (layer.path / "cases").glob(f"{layer.stored}.*"):
                self._roots.check(path)
        elif layer.path.is_dir():
            for path in layer.path.iterdir():
                self._roots.check(path)
        elif (partner := image_of_pair(layer.path)) is not None and partner.is_symlink():
            self._roots.check(partner)


def looks_like_labels(path: Path, read: ReadConfig) -> bool:
    """Whether a file of unknown kind holds few whole numbers, 0 among them; False if unreadable."""
    try:
        with _quietly():
            if read_geometry(path, read).channels != 1:
                return False
            voxels = read_volume(path, read).voxels
    except UserError:
        return False
    sample = voxels.ravel(order="K")[:: max(1, voxels.size // 2**21)]
    values = np.unique(sample)
    is_whole = bool(np.isfinite(values).all() and (values == np.round(values)).all())
    is_label = is_whole and values[0] == 0 and values[-1] < 2**16 and values.size > 1
    return bool(is_label and (values.size <= FEW_VALUES or _are_organs(sample, values)))


def _are_organs(sample: NDArray[Any], values: NDArray[Any]) -> bool:
    """Whether many whole numbers are still classes: neighbours agree, as those of greys do not."""
    return values.size <= IGNORE_INDEX and float(np.mean(sample[1:] == sample[:-1])) > 0.9


def _from_store(layer: Layer, *, is_label: bool) -> Volume:
    store = open_store(layer.path)
    assert layer.stored is not None
    with store.open(layer.stored) as case:
        whole = case.shape[1:]
        if not is_label:
            return Volume.from_array(case.read_intensities((0, 0, 0), whole), case.affine)
        _, indices = case.read((0, 0, 0), whole)
        if indices is None or store.classes is None:
            raise UserError(f"`{layer.stored}` has no label map in the store", code="no-label")
        return Volume.from_array(store.classes.to_value(indices)[None], case.affine)


def _completed(said: ClassTable | None, values: NDArray[Any]) -> ClassTable:
    """The classes that were said, and a class of its own for each further value.

    The colour of a value that nobody named follows from the value alone: it is the same in the
    label map, in the prediction that lacks other classes, and in the next case.
    """
    occurring = {0, *(int(value) for value in np.unique(values))}
    if said is None:
        return ClassTable.from_values(occurring, colours=colours_by_value(occurring, ()))
    more = occurring - {*said.values, said.ignore_value}
    if not more:
        return said
    names = dict(zip(said.values, said.names, strict=True))
    names |= {value: f"label {value} (not in the list)" for value in more}
    colours = dict(zip(said.values, said.colours, strict=True)) | colours_by_value(
        more, said.colours
    )
    return ClassTable.from_values(names, names, said.ignore_value, colours)


def _bytes(kept: OrderedDict[Any, Volume]) -> int:
    return sum(volume.voxels.nbytes for volume in kept.values())


@contextmanager
def _quietly() -> Iterator[None]:
    """What was odd about a file is said on the page, not in the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReadWarning)
        yield
