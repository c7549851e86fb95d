"""A case's HDF5 file, opened only if it is what a store writes.

HDF5 can name other files (external links, external storage, virtual sets), hold Python objects and
declare sizes without end. A store's file has six plain data sets at most, of known names, types,
shapes and filters; anything else is refused before it is read.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mim3d.data.intensity import Normalisation
from mim3d.data.store.entry import StoreEntry
from mim3d.data.store.layout import CHUNK, FORMAT
from mim3d.data.store.writing import SAMPLED_VOXELS
from mim3d.foundation.digests import file_digest
from mim3d.foundation.documents import parsed
from mim3d.foundation.errors import ResourceError, UserError

BLOSC, LZF, SHUFFLE = 32001, 32000, 2
"""HDF5's numbers of the filters a store uses."""
MOST_COMPRESSED = 4096
"""Bytes of voxels that one byte of a file may stand for; chunks of zeros take one for 250."""
MAX_HEADER = 2**20
"""Bytes of a case's JSON header."""
TYPES: dict[str, np.dtype[Any]] = {
    "header": np.dtype("u1"),
    "voxels": np.dtype("<i2"),
    "labels": np.dtype("u1"),
    "body_voxels": np.dtype("<u2"),
    "label_voxels": np.dtype("<u2"),
    "label_starts": np.dtype("<i8"),
}


class CheckedFile:
    """An open HDF5 file that passed all checks.

    Args:
        path: the file.
        entry: what the manifest says about it.
        verify: whether the checksum of the whole file is compared.

    Raises:
        UserError: it is missing, damaged, of another version, or no such file.
    """

    def __init__(self, path: Path, entry: StoreEntry, verify: bool) -> None:
        self._path = path
        self._shape = entry.shape[1:]
        if not path.is_file() or path.is_symlink():
            raise self.damaged("it is missing")
        if path.stat().st_size != entry.bytes:
            raise self.damaged(f"it has {path.stat().st_size:,} bytes instead of {entry.bytes:,}")
        declared = 3 * math.prod(entry.shape)
        if declared > MOST_COMPRESSED * entry.bytes + 2**20:
            raise self.damaged(f"{entry.bytes:,} bytes cannot hold a volume of {entry.shape}")
        if verify and file_digest(path) != entry.sha256:
            raise self.damaged("its checksum is wrong")
        try:
            # No locks: readers only, and many of them on network file systems.
            self._file = h5py.File(path, "r", locking=False)
        except (OSError, RuntimeError):
            raise self.damaged("it is no HDF5 file") from None
        try:
            self._sets = self._checked_sets(entry)
            self.header = self._checked_header(entry)
            self.normalisation = tuple(map(Normalisation.from_json, self.header["normalisation"]))
            self.class_values = tuple(map(int, self.header["class_values"] or ()))
        except (OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            self._file.close()
            raise self.damaged(f"{error}"[:200].partition("\n")[0]) from None
        except UserError:
            self._file.close()
            raise
        self._small: dict[str, NDArray[Any]] = {}
        self._spaces = {name: data.id.get_space() for name, data in self._sets.items()}
        self._size: tuple[int, ...] | None = None
        self._memory: Any = None

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def array(self, name: str) -> NDArray[Any]:
        """A small data set, kept after the first reading."""
        if name not in self._small:
            try:
                found = self._sets[name][()]
            except (OSError, RuntimeError):
                raise self.damaged(f"`{name}` cannot be read") from None
            self._check_places(name, found)
            self._small[name] = found
        return self._small[name]

    def _check_places(self, name: str, found: NDArray[Any]) -> None:
        """Refuses voxels outside of the volume, and parts of a list that do not follow on."""
        if name == "label_starts":
            count = self._sets["label_voxels"].shape[0]
            rises = len(found) == len(self.class_values) + 1 and bool((np.diff(found) >= 0).all())
            if not (rises and found[0] == 0 and found[-1] == count):
                raise self.damaged("its lists of labelled voxels do not fit its classes")
        elif name in ("body_voxels", "label_voxels") and (found >= self._shape).any():
            raise self.damaged(f"`{name}` lie outside of the volume")

    def box(self, name: str, start: tuple[int, ...], size: tuple[int, ...]) -> NDArray[Any]:
        """A box of a data set. The low-level call saves an eighth over slicing."""
        out: NDArray[Any] = np.empty(size, TYPES[name])
        space = self._spaces[name]
        space.select_hyperslab(start, size)
        if size != self._size:
            self._size, self._memory = size, h5py.h5s.create_simple(size)
        try:
            self._sets[name].id.read(self._memory, space, out)
        except (OSError, RuntimeError) as error:
            if isinstance(error, OSError) and "filter" in str(error):
                raise self.damaged("a chunk cannot be unpacked") from None
            raise self.damaged("a chunk cannot be read") from None
        return out

    def _checked_sets(self, entry: StoreEntry) -> dict[str, h5py.Dataset]:
        names = {"header", "voxels", "body_voxels"}
        if entry.has_label:
            names |= {"labels", "label_voxels", "label_starts"}
        if set(self._file) != names:
            raise self.damaged("it holds other data sets than a store's case does")
        return {name: self._checked_set(name, entry) for name in sorted(names)}

    def _checked_set(self, name: str, entry: StoreEntry) -> h5py.Dataset:
        if not isinstance(self._file.get(name, getlink=True), h5py.HardLink):
            raise self.damaged(f"`{name}` is a link")
        data = self._file[name]
        if not isinstance(data, h5py.Dataset) or data.is_virtual or data.external:
            raise self.damaged(f"`{name}` lies outside of the file or is no data set")
        if data.dtype != TYPES[name]:
            raise self.damaged(f"`{name}` has the type {data.dtype}")
        self._check_shape(name, data.shape, entry)
        self._check_filters(name, data)
        return data

    def _check_shape(self, name: str, shape: tuple[int, ...], entry: StoreEntry) -> None:
        most = 256 * SAMPLED_VOXELS
        right = {
            "header": len(shape) == 1 and shape[0] <= MAX_HEADER,
            "voxels": shape == entry.shape,
            "labels": shape == entry.shape[1:],
            "body_voxels": len(shape) == 2 and shape[1] == 3 and shape[0] <= most,
            "label_voxels": len(shape) == 2 and shape[1] == 3 and shape[0] <= most,
            "label_starts": len(shape) == 1 and shape[0] <= 257,
        }
        if not right[name]:
            raise self.damaged(f"`{name}` has the shape {shape}")

    def _check_filters(self, name: str, data: h5py.Dataset) -> None:
        plist = data.id.get_create_plist()
        filters = {plist.get_filter(i)[0] for i in range(plist.get_nfilters())}
        if not filters <= {BLOSC, LZF, SHUFFLE}:
            raise self.damaged(f"`{name}` uses a filter that stores do not use")
        if data.chunks is not None and any(side > CHUNK for side in data.chunks):
            raise self.damaged(f"`{name}` has chunks of {data.chunks}")
        if BLOSC in filters:
            _need_blosc()

    def _checked_header(self, entry: StoreEntry) -> dict[str, Any]:
        header: dict[str, Any] = parsed(self._sets["header"][()].tobytes())
        if header["format"] != FORMAT or header["key"] != entry.key:
            raise self.damaged("it belongs to another version of the case than the manifest's")
        per_channel = (len(header[name]) for name in ("scale", "offset", "normalisation"))
        if np.shape(header["affine"]) != (4, 4) or set(per_channel) != {entry.shape[0]}:
            raise self.damaged("its header does not fit its channels")
        return header

    def damaged(self, reason: str) -> UserError:
        """The error of a file that cannot be used."""
        return UserError(
            f"`{self._path.name}` of the store cannot be used: {reason}",
            where=str(self._path),
            remedy="run the `mim3d prepare` that made this store again; it mends what is damaged",
            code="damaged-store",
        )


def _need_blosc() -> None:
    if not h5py.h5z.filter_avail(BLOSC):
        if importlib.util.find_spec("hdf5plugin") is None:
            raise ResourceError(
                "this store is compressed by blosc, and `hdf5plugin` is not installed",
                remedy="`pip install hdf5plugin`, or prepare with `--prepare.filter lzf`",
                code="no-filter",
            )
        importlib.import_module("hdf5plugin")
