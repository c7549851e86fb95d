"""One case into the store: voxels and sidecar, each written whole and renamed into place.

Intensities are the file's own, as int16 with a float64 scale and offset a channel; exact for
integers that fit. Nothing normalised is stored: the numbers of the normalisation stand beside.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from mim3d.data.intensity import Normalisation
from mim3d.data.store.layout import CHUNK, FORMAT, case_path, sidecar_path, write_record
from mim3d.data.volume import Note, spacing_of
from mim3d.foundation.atomic import write_bytes
from mim3d.foundation.randomness import generator

Filter = Literal["blosc", "lzf"]

SAMPLED_VOXELS = 2000
"""Coordinates kept of each class and of the body, for placing crops without reading the case."""

INT16 = np.iinfo(np.int16)


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case ready to be written.

    Args:
        case_id: its name.
        voxels: `c x y z`, int16.
        scale: `c`; intensity = voxel * scale + offset.
        offset: `c`.
        affine: (4, 4) of the stored grid, voxel to millimetres, RAS+.
        normalisation: one a channel, of the whole volume.
        labels: `x y z`, uint8, indices into `class_values`, or None.
        class_values: the values in files of the classes that `labels` counts, background first.
        body_voxels: (n, 3), coordinates drawn from the body.
        notes: what was odd.
        facts: numbers for the fingerprint.
    """

    case_id: str
    voxels: NDArray[np.int16]
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    affine: NDArray[np.float64]
    normalisation: tuple[Normalisation, ...]
    labels: NDArray[np.uint8] | None = None
    class_values: tuple[int, ...] | None = None
    body_voxels: NDArray[np.uint16] = field(default_factory=lambda: np.empty((0, 3), np.uint16))
    notes: tuple[Note, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def intensities(self) -> NDArray[np.float32]:
        """`c x y z`, float32: exactly what a crop of the store is cut from."""
        return intensities(self.voxels, self.scale, self.offset)

    @property
    def normalised(self) -> NDArray[np.float32]:
        """`c x y z`, float32: exactly what training sees of this volume."""
        own = self.intensities
        pairs = zip(self.normalisation, own, strict=True)
        return np.stack([normalisation.apply(channel) for normalisation, channel in pairs])


def intensities(
    voxels: NDArray[np.int16],
    scale: tuple[float, ...],
    offset: tuple[float, ...],
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Stored int16 `c ...` as float32 intensities, the one way in training and prediction."""
    values = np.empty(voxels.shape, np.float32) if out is None else out
    np.copyto(values, voxels)
    for channel, factor, start in zip(values, scale, offset, strict=True):
        if factor != 1.0:
            channel *= np.float32(factor)
        if start != 0.0:
            channel += np.float32(start)
    return values


def quantise(channel: NDArray[Any]) -> tuple[NDArray[np.int16], float, float, float]:
    """Intensities as int16: exact for integers within a range of 65,535.

    Args:
        channel: `x y z`, finite.

    Returns:
        The integers, scale, offset, and the largest error in intensities.
    """
    low, high = float(channel.min()), float(channel.max())
    whole = channel.dtype.kind in "iub" or bool((channel == np.rint(channel)).all())
    if whole and high - low <= 65535:
        # No offset where none is needed: the stored numbers are then those of the file.
        offset = 0.0 if low >= INT16.min and high <= INT16.max else low - INT16.min
        shifted = channel - offset if offset else channel
        return shifted.astype(np.int16), 1.0, offset, 0.0
    scale = (high - low) / 65535
    offset = low - INT16.min * scale
    # float64: in float32 the rounding below loses the last of the 16 bits.
    stored = np.rint((channel.astype(np.float64) - offset) / scale)
    stored = stored.clip(INT16.min, INT16.max).astype(np.int16)
    return stored, scale, offset, scale / 2


def draw_voxels(mask: NDArray[np.bool_], case_id: str, purpose: str) -> NDArray[np.uint16]:
    """(n, 3) coordinates of up to `SAMPLED_VOXELS` True voxels, uniform, the same each time."""
    return _drawn(np.flatnonzero(mask), mask.shape, case_id, purpose)


def draw_label_voxels(
    labels: NDArray[np.uint8], class_values: tuple[int, ...], case_id: str
) -> list[NDArray[np.uint16]]:
    """(n, 3) coordinates of up to `SAMPLED_VOXELS` voxels of each class."""
    # One stable sort finds the voxels of all classes; it is a radix sort for bytes.
    flat = np.argsort(labels, axis=None, kind="stable")
    stops = np.cumsum(np.bincount(labels.ravel(), minlength=256))
    parts = np.split(flat, stops[: len(class_values)])
    return [
        _drawn(part, labels.shape, case_id, f"class {value}")
        for part, value in zip(parts, class_values, strict=False)
    ]


def _drawn(
    flat: NDArray[np.int64], shape: tuple[int, ...], case_id: str, purpose: str
) -> NDArray[np.uint16]:
    if flat.size > SAMPLED_VOXELS:
        drawn = generator(case_id, purpose).choice(flat.size, SAMPLED_VOXELS, replace=False)
        flat = flat[np.sort(drawn)]
    return np.stack(np.unravel_index(flat, shape), axis=1).astype(np.uint16)


def write_case(
    folder: Path, case: PreparedCase, sidecar: Mapping[str, Any], key: str, compression: Filter
) -> dict[str, Any]:
    """Writes voxels, then the sidecar that acknowledges them.

    Args:
        folder: the store.
        case: what to write.
        sidecar: what the sidecar says besides what is known from `case`.
        key: of source and preparation; stands in both files.
        compression: filter of the chunks.

    Returns:
        The sidecar as written.

    Raises:
        DiskError: they cannot be written, or do not read back; older files are untouched.
    """
    image = _hdf5(case, key, compression)
    path = case_path(folder, case.case_id)
    checksum = hashlib.sha256(image).hexdigest()
    write_bytes(path, image)
    written = {
        **sidecar,
        "format": FORMAT,
        "case_id": case.case_id,
        "key": key,
        "file": {"bytes": len(image), "sha256": checksum},
        "shape": list(case.voxels.shape),
        "spacing_mm": list(spacing_of(case.affine)),
        "class_values": None if case.class_values is None else list(case.class_values),
        "notes": [{"code": note.code, "text": note.text} for note in case.notes],
        "facts": dict(case.facts),
    }
    write_record(sidecar_path(folder, case.case_id), written)
    return written


def _hdf5(case: PreparedCase, key: str, compression: Filter) -> bytes:
    """The file's bytes, built in memory: HDF5 that meets a full disk ends the process."""
    header = {
        "format": FORMAT,
        "case_id": case.case_id,
        "key": key,
        "shape": list(case.voxels.shape),
        "scale": list(case.scale),
        "offset": list(case.offset),
        "affine": case.affine.tolist(),
        "normalisation": [channel.as_json() for channel in case.normalisation],
        "class_values": None if case.class_values is None else list(case.class_values),
    }
    # 1.10's format checks its own metadata on reading, which the default one does not.
    version = ("v110", "v110")
    with h5py.File("case", "w", driver="core", backing_store=False, libver=version) as file:
        text = json.dumps(header, allow_nan=False).encode()
        file.create_dataset("header", data=np.frombuffer(text, np.uint8))
        _add(file, "voxels", case.voxels, compression)
        file.create_dataset("body_voxels", data=case.body_voxels)
        if case.labels is not None and case.class_values is not None:
            _add(file, "labels", case.labels, compression)
            drawn = draw_label_voxels(case.labels, case.class_values, case.case_id)
            counts = np.cumsum([0, *(len(part) for part in drawn)])
            file.create_dataset("label_voxels", data=np.concatenate(drawn))
            file.create_dataset("label_starts", data=counts.astype(np.int64))
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def _add(file: h5py.File, name: str, array: NDArray[Any], compression: Filter) -> None:
    space = tuple(min(CHUNK, size) for size in array.shape[-3:])
    chunks = (1,) * (array.ndim - 3) + space
    if compression == "blosc":
        import hdf5plugin  # registers the filter

        settings = dict(
            hdf5plugin.Blosc(cname="lz4", clevel=5, shuffle=hdf5plugin.Blosc.BITSHUFFLE)
        )
    else:
        settings = {"compression": "lzf", "shuffle": True}
    file.create_dataset(name, data=array, chunks=chunks, **settings)
