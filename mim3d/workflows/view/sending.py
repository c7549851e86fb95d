"""What the page gets: volumes as plain NIfTI, label maps as indices, differences, and tables."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim3d.data.classes import ClassTable
from mim3d.data.files import check_same_grid
from mim3d.data.volume import spacing_of
from mim3d.evaluation.overlap import Structure, dice, index_maps, meetings, sizes
from mim3d.foundation.errors import UserError
from mim3d.pictures.colours import FALSE_NEGATIVE, FALSE_POSITIVE, WRONG_CLASS
from mim3d.workflows.view.reading import Labels

Affine = NDArray[np.float64]
CODES = {"uint8": 2, "int16": 4, "int32": 8, "float32": 16, "uint16": 512}
HEADER_BYTES = 352
INTENT_LABEL = 1002
DIFFERENCE = (
    ("only in the prediction", FALSE_POSITIVE),
    ("only in the label", FALSE_NEGATIVE),
    ("another class", WRONG_CLASS),
)
"""Values 1, 2 and 3 of a difference."""


def as_nifti(voxels: NDArray[Any], affine: Affine, *, of_labels: bool = False) -> bytes:
    """A NIfTI-1 file in memory, by the form that every viewer reads: one sform, no text.

    Args:
        voxels: `x y z`; types that NIfTI viewers do not all know become int32 or float32.
        affine: (4, 4) voxel to millimetres, RAS+.
        of_labels: says in the header that values are labels: viewers then mix no two of them.
    """
    name = voxels.dtype.name
    if name not in CODES:
        fits = voxels.dtype.kind in "biu" and voxels.size and abs(voxels).max() < 2**31
        name = "int32" if fits else "float32"
    stored = voxels.astype(np.dtype(name).newbyteorder("<"), copy=False)
    header = bytearray(HEADER_BYTES)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *voxels.shape, 1, 1, 1, 1)
    struct.pack_into("<h", header, 68, INTENT_LABEL if of_labels else 0)
    struct.pack_into("<hh", header, 70, CODES[name], 8 * stored.itemsize)
    struct.pack_into("<8f", header, 76, 1, *spacing_of(affine), 0, 0, 0, 0)
    struct.pack_into("<3f", header, 108, HEADER_BYTES, 1, 0)
    header[123] = 2  # millimetres
    struct.pack_into("<hh", header, 252, 0, 1)
    struct.pack_into("<12f", header, 280, *affine[:3].ravel())
    header[344:348] = b"n+1\0"
    return bytes(header) + stored.tobytes(order="F")


def thinned(
    voxels: NDArray[Any], affine: Affine, most: float
) -> tuple[NDArray[Any], Affine, tuple[int, int, int]]:
    """Every n-th voxel along each axis, so that at most so many are left.

    The axis with the smallest steps in millimetres is thinned first. The first voxel stays where
    it is, and values are the file's own: nothing is averaged.

    Args:
        voxels: `x y z`.
        affine: (4, 4).
        most: voxels that may be left.

    Returns:
        The voxels, their affine, and n along x, y, z.
    """
    steps = [1, 1, 1]
    spacing = spacing_of(affine)
    while np.prod([-(-n // s) for n, s in zip(voxels.shape, steps, strict=True)]) > most:
        longer = [a for a in range(3) if steps[a] < voxels.shape[a]]
        axis = min(longer, key=lambda a: steps[a] * spacing[a])
        steps[axis] += 1
    x, y, z = steps
    return voxels[::x, ::y, ::z], affine @ np.diag([x, y, z, 1.0]), (x, y, z)


def legend(labels: Labels) -> list[dict[str, Any]]:
    """Classes of a label map with their volumes, background left out."""
    spacing = labels.volume.spacing_mm
    table = labels.classes
    rows = zip(table.values, table.names, table.colours, labels.counts, strict=True)
    return [
        {"index": index, "value": value, "name": name, "colour": rgb, "voxels": count,
         "ml": count * float(np.prod(spacing)) / 1000}
        for index, (value, name, rgb, count) in enumerate(rows) if value != 0
    ]  # fmt: skip


def difference(reference: Labels, prediction: Labels) -> NDArray[np.uint8]:
    """Where two label maps disagree, by the numbers of `DIFFERENCE`; 0 where they agree.

    Raises:
        UserError: they lie on two grids.
    """
    truth, guess = _values(reference, prediction)
    table = np.zeros(truth.shape, np.uint8)
    differs = truth != guess
    table[differs & (truth == 0)] = 1
    table[differs & (guess == 0)] = 2
    table[differs & (truth != 0) & (guess != 0)] = 3
    table[reference.indices == 255] = 0
    return table


def overlaps(reference: Labels, prediction: Labels) -> list[dict[str, Any]]:
    """Dice of every class, by the rule of `mim3d evaluate` for classes that one side lacks.

    Raises:
        UserError: they lie on two grids.
    """
    truth, guess = _values(reference, prediction)
    counted = reference.indices != 255
    if not counted.all():
        truth, guess = np.where(counted, truth, 0), np.where(counted, guess, 0)
    maps = index_maps(truth, guess)
    table = meetings(maps)
    rows = []
    for value, name in _named(reference.classes, prediction.classes).items():
        mine, theirs, both = sizes(table, maps.indices(Structure(name, (value,))))
        counted_as = {(True, True): "case", (True, False): "missed", (False, True): "hallucinated"}
        rows.append({
            "class": name,
            "dice": dice(mine, theirs, both) if mine or theirs else None,
            "hd95_mm": None, "nsd": None,
            "counted_as": counted_as.get((mine > 0, theirs > 0), "absent"),
        })  # fmt: skip
    return rows


def _named(first: ClassTable, second: ClassTable) -> dict[int, str]:
    """Names of all values but the background; the first table's word counts."""
    names = dict(zip(second.values, second.names, strict=True))
    names |= dict(zip(first.values, first.names, strict=True))
    return {value: names[value] for value in sorted(names) if value != 0}


def _values(reference: Labels, prediction: Labels) -> tuple[NDArray[Any], NDArray[Any]]:
    if reference.volume.shape != prediction.volume.shape:
        raise UserError("the two label maps lie on different grids", code="two-grids")
    check_same_grid(reference.volume, prediction.volume)
    return reference.volume.voxels[0], prediction.volume.voxels[0]
