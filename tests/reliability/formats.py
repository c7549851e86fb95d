"""One grid of voxels in six formats, written by other hands than mim3d's."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from tests.data.files.making import dicom_slice, meta, nifti, nrrd, zipped

Voxels = NDArray[np.int16]
Affine = NDArray[np.float64]
LPS = np.array([-1.0, -1.0, 1.0])


def nifti_1(folder: Path, voxels: Voxels, affine: Affine) -> Path:
    """`.nii.gz` with both forms where the axes are at right angles."""
    return _put(folder / "case.nii.gz", zipped(nifti(voxels, affine), 1))


def nifti_2(folder: Path, voxels: Voxels, affine: Affine) -> Path:
    """A plain NIfTI-2 with an sform only."""
    return _put(folder / "case.nii", nifti(voxels, affine, version=2, qform=0))


def nifti_pair(folder: Path, voxels: Voxels, affine: Affine) -> Path:
    """`.hdr` and `.img` with a qform only, big endian."""
    image = nibabel.Nifti1Pair(
        voxels.astype(">i2"), affine, nibabel.nifti1.Nifti1PairHeader(endianness=">")
    )
    image.set_sform(None, 0)
    image.set_qform(affine, 1)
    nibabel.save(image, folder / "case.hdr")
    return folder / "case.hdr"


def nrrd_file(folder: Path, voxels: Voxels, affine: Affine) -> Path:
    """A compressed NRRD in LPS."""
    columns = (LPS[:, None] * affine[:3, :3]).T
    directions = " ".join(f"({','.join(f'{n:.17g}' for n in column)})" for column in columns)
    origin = f"({','.join(f'{n:.17g}' for n in LPS * affine[:3, 3])})"
    fields = {"space directions": directions, "space origin": origin}
    return _put(folder / "case.nrrd", nrrd(voxels, **fields))


def meta_file(folder: Path, voxels: Voxels, affine: Affine) -> Path:
    """A compressed MHA in LPS."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    turn = (LPS[:, None] * affine[:3, :3] / spacing).T.ravel()
    fields = {
        "TransformMatrix": " ".join(f"{n:.17g}" for n in turn),
        "Offset": " ".join(f"{n:.17g}" for n in LPS * affine[:3, 3]),
        "ElementSpacing": " ".join(f"{n:.17g}" for n in spacing),
    }
    return _put(folder / "case.mha", meta(voxels, **fields))


def dicom(folder: Path, voxels: Voxels, affine: Affine) -> Path:
    """A folder of slices, whose names run against their positions."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    turn = LPS[:, None] * affine[:3, :3] / spacing
    orientation = "\\".join(f"{n:.12f}"[:16] for n in (*turn[:, 0], *turn[:, 1]))
    between = f"{spacing[1]:.10g}\\{spacing[0]:.10g}"
    (folder / "series").mkdir()
    count = voxels.shape[2]
    for k in range(count):
        place = LPS * (affine[:3, 3] + k * affine[:3, 2])
        raw = dicom_slice(voxels[:, :, k].T, (0, 0, 0), orientation=orientation, spacing=between)
        text = "\\".join(f"{n:.10f}"[:16] for n in place).encode()
        # `dicom_slice` keeps six digits of a position, here is more asked for.
        old = struct.pack("<HH2sH", 0x0020, 0x0032, b"DS", 6) + b"0\\0\\0 "
        new = struct.pack("<HH2sH", 0x0020, 0x0032, b"DS", len(text) + len(text) % 2)
        raw = raw.replace(old, new + text + b" " * (len(text) % 2), 1)
        _put(folder / "series" / f"IM{count - k:03}", raw)
    return folder / "series"


FORMATS: tuple[Callable[[Path, Voxels, Affine], Path], ...] = (
    nifti_1, nifti_2, nifti_pair, nrrd_file, meta_file, dicom,
)  # fmt: skip


def _put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
