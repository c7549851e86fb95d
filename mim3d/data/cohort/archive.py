"""A cohort in one NumPy archive, as MedMNIST's: `train_images`, `train_labels`, a case a row."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mim3d.data.cohort.cases import Case, Cohort, Part, listed
from mim3d.data.cohort.table import LISTS
from mim3d.data.files.archive_rows import row_layout, row_path
from mim3d.data.files.archives import Archive, Array
from mim3d.foundation.errors import VolumeError

IMAGES, LABELS = "_images", "_labels"
MAX_LABEL_BYTES = 64 << 20
MAX_TARGETS = 1000
"""Numbers of a row of labels."""
EIGHT_BITS = (0.0, 255.0)
TWO_VALUES = (0.0, 1.0)
REMEDY = "arrays are called train_images, train_labels, val_images and so on, one case a row"


def read_archive(path: Path) -> Cohort:
    """The cohort of an archive; all of it is unpacked once, and its checksums compared.

    A row of labels is a case's target `label`, or `label_0`, `label_1`, ... where it holds several
    numbers. Volumes of eight bits keep their scale: 0 to 255 become 0 to 1 in all of them, or 0
    to 1 where no voxel is larger; what is around the body is part of the data.

    Raises:
        VolumeError: it cannot be read, or its arrays do not belong together.
    """
    try:
        with Archive(path) as archive:
            return _cohort(path, archive)
    except OSError as error:
        raise VolumeError(
            f"it cannot be read: {error.strerror or 'the device failed'}",
            where=os.fspath(path),
            code="unreadable",
        ) from None
    except VolumeError as error:
        error.where = error.where or os.fspath(path)
        raise


def _cohort(path: Path, archive: Archive) -> Cohort:
    lists = {
        name.removesuffix(IMAGES): array
        for name, array in archive.arrays.items()
        if name.endswith(IMAGES) and name.removesuffix(IMAGES) in LISTS and name != IMAGES
    }
    if not lists:
        raise VolumeError("it has no array `train_images`", remedy=REMEDY, code="archive")
    cases: list[Case] = []
    used = set()
    for part, array in lists.items():
        row_layout(array)  # refuses what no row can be
        targets: list[dict[str, float]] = [{} for _ in range(array.shape[0])]
        used.add(array.name)
        if part + LABELS in archive.arrays:
            used.add(part + LABELS)
            targets = _targets(archive, archive.arrays[part + LABELS], array)
        cases += _rows(path, part, LISTS[part], targets)
    unused = [name for name in archive.arrays if name not in used]
    remarks = (f"arrays not used: {listed(unused)}",) if unused else ()
    return Cohort(
        path.stem,
        tuple(cases),
        "a NumPy archive",
        has_validation=any(case.part == "validation" for case in cases),
        remarks=remarks,
        source=str(path),
        intensity_range=_range(archive, list(lists.values())),
        is_framed=True,
    )


def _rows(path: Path, part: str, into: Part, targets: list[dict[str, float]]) -> list[Case]:
    cases = []
    for number, row in enumerate(targets):
        image = row_path(path, part, number)
        cases.append(Case(image.name, image.name, (image,), None, into, row))
    return cases


def _targets(archive: Archive, labels: Array, images: Array) -> list[dict[str, float]]:
    """The numbers of each row, by name."""
    columns = labels.row_bytes // labels.dtype.itemsize
    rows, size = labels.shape[0], labels.shape[0] * labels.row_bytes
    if rows != images.shape[0]:
        raise VolumeError(
            f"`{images.name}` has {images.shape[0]} rows and `{labels.name}` has {rows}",
            remedy=REMEDY,
            code="archive",
        )
    if len(labels.shape) > 2 or columns > MAX_TARGETS or size > MAX_LABEL_BYTES:
        raise VolumeError(
            f"`{labels.name}` does not hold a few numbers a row: "
            f"{' x '.join(map(str, labels.shape))}",
            remedy="label maps do not belong into an archive: prepare a folder of volumes",
            code="archive",
        )
    content = b"".join(archive.pieces(labels.name))
    numbers = np.frombuffer(content, labels.dtype).reshape(rows, columns).astype(np.float64)
    if not np.isfinite(numbers).all():
        first = int(np.flatnonzero(~np.isfinite(numbers).all(axis=1))[0])
        raise VolumeError(
            f"row {first} of `{labels.name}` is no number",
            remedy="leave out what has no label",
            code="archive",
        )
    names = ["label"] if columns == 1 else [f"label_{column}" for column in range(columns)]
    return [dict(zip(names, row, strict=True)) for row in numbers.tolist()]


def _range(archive: Archive, images: list[Array]) -> tuple[float, float] | None:
    """What becomes 0 and 1 in all volumes; reads all of them, which compares their checksums."""
    highest = 0
    for array in images:
        for piece in archive.pieces(array.name):
            if array.dtype.itemsize == 1:
                values: NDArray[np.uint8] = np.frombuffer(piece, np.uint8)
                highest = max(highest, int(values.max()))
    if any(array.dtype.kind not in "bu" or array.dtype.itemsize > 1 for array in images):
        return None
    return EIGHT_BITS if highest > 1 else TWO_VALUES
