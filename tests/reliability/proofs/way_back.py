"""Row 38: a prediction lies where its source lies, in every program, order and format."""

from __future__ import annotations

import gzip
import itertools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK
from nibabel.orientations import apply_orientation, inv_ornt_aff
from numpy.typing import NDArray

from mim3d.data.files import read_volume, write_label
from mim3d.data.volume import Volume
from mim3d.foundation.randomness import generator
from tests.reliability.proof import Tally, proof

Array = NDArray[Any]
ORDERS = [
    np.array(list(zip(axes, signs, strict=True)))
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
"""In nibabel's form: for each stored axis the axis of the scan it becomes, and its sign."""
FIELDS = {1: (slice(40, 48), slice(76, 92), slice(123, 124), slice(252, 328)),
          2: (slice(16, 48), slice(104, 136), slice(500, 504), slice(344, 496))}  # fmt: skip
"""Sizes, pixdim, units and both forms in a header of either version."""
TOLERANCE_MM = 2e-3
"""Forms are float32, with offsets of 200 mm."""


@proof(
    rows=(38,),
    trials="predictions written back (48 orders x 6 formats, straight and oblique)",
    quick=72,
    full=576,
    stretch=96,
)
def way_back(trials: range, seed: int, folder: Path) -> Tally:
    """A landmark lies where it was, by nibabel and SimpleITK; geometry is the source's bytes."""
    tally = Tally()
    formats = list(FORMATS)
    for trial in trials:
        # All orders with all formats, straight and oblique.
        name = formats[trial % 6]
        order = ORDERS[(trial + trial // 96) % 48]
        is_oblique = (trial // 48) % 2 == 1
        random = generator(seed, trial, "way-back")
        broken = _tried(folder, name, order, is_oblique, random)
        words = "oblique" if is_oblique else "straight"
        tally.add(trial, f"{name}, {words}: in its place", broken)
    return tally


def _tried(
    folder: Path, name: str, order: Array, is_oblique: bool, random: np.random.Generator
) -> str | None:
    shape = tuple(random.permutation([7, 11, 13]) + random.integers(0, 3, 3))
    affine = _affine(shape, is_oblique, random)
    labels = random.integers(0, 4, shape)
    place = tuple(int(random.integers(side)) for side in shape)
    mark = int(random.choice([7, 255, 256, 65535]))
    labels[place] = mark
    scan = random.integers(-1000, 1000, shape).astype(np.int16)
    stored, own = apply_orientation(scan, order), affine @ inv_ornt_aff(order, shape)
    source = FORMATS[name](folder, stored, own, random)
    volume = read_volume(source)
    out = folder / "prediction.nii.gz"
    write_label(out, _on_grid(labels, affine, volume), volume)
    return (
        _misplaced(out, mark, affine @ [*place, 1])
        or _other_voxels(out, apply_orientation(labels, order), mark)
        or _other_fields(source, out, own)
    )


def _affine(shape: tuple[int, ...], is_oblique: bool, random: np.random.Generator) -> Array:
    """Voxel to millimetres, RAS+; oblique ones are turned by any angle."""
    affine = np.diag([*random.uniform(0.3, 4, 3), 1])
    if is_oblique:
        turn, _ = np.linalg.qr(random.standard_normal((3, 3)))
        affine[:3, :3] = turn * np.sign(np.linalg.det(turn)) @ affine[:3, :3]
    affine[:3, 3] = random.uniform(-200, 200, 3)
    return affine


def _on_grid(labels: Array, affine: Array, volume: Volume) -> Array:
    """Labels in the order in which the volume was read, found by millimetres alone."""
    found = np.zeros(volume.shape, np.int64)
    places = np.argwhere(labels >= 0)
    mm = places @ affine[:3, :3].T + affine[:3, 3]
    back = np.linalg.inv(volume.affine)
    there = np.rint(mm @ back[:3, :3].T + back[:3, 3]).astype(int)
    found[tuple(there.T)] = labels[tuple(places.T)]
    return found


def _misplaced(out: Path, mark: int, wanted: Array) -> str | None:
    image = nibabel.load(out)
    (index,) = np.argwhere(np.asarray(image.dataobj) == mark)
    found = {"nibabel": (image.affine @ [*index, 1])[:3]}
    if not isinstance(image, nibabel.Nifti2Image):  # SimpleITK reads no NIfTI-2
        found["SimpleITK"] = _by_simpleitk(out, mark)
    for program, mm in found.items():
        away = float(np.abs(mm - wanted[:3]).max())
        if away > TOLERANCE_MM:
            return f"{program} finds the landmark {away:.4f} mm away"
    return None


def _by_simpleitk(out: Path, mark: int) -> Array:
    other = SimpleITK.ReadImage(str(out))
    ((z, y, x),) = np.argwhere(SimpleITK.GetArrayFromImage(other) == mark)
    lps = other.TransformIndexToPhysicalPoint((int(x), int(y), int(z)))
    return np.array(lps) * [-1, -1, 1]


def _other_voxels(out: Path, stored: Array, mark: int) -> str | None:
    image = nibabel.load(out)
    found = np.asarray(image.dataobj)
    if found.shape != stored.shape or not np.array_equal(found, stored):
        return "its voxels are not the labels in the source's order"
    smallest = np.uint8 if mark < 256 else np.uint16
    return None if image.get_data_dtype() == smallest else f"type {image.get_data_dtype()}"


def _other_fields(source: Path, out: Path, own: Array) -> str | None:
    """NIfTI: the bytes of all geometry fields. Others: the same grid, axis by axis."""
    if source.suffix not in (".nii", ".gz", ".hdr"):
        away = float(np.abs(nibabel.load(out).affine - own).max())
        return None if away < TOLERANCE_MM else f"its affine differs by {away:.4f}"
    one, other = _header(source), _header(out)
    version = 1 if struct.unpack("<i", one[:4])[0] == 348 else 2
    for field in FIELDS[version]:
        if one[field] != other[field]:
            return f"bytes {field.start} to {field.stop} of the header differ"
    return None


def _header(path: Path) -> bytes:
    raw = path.read_bytes()
    return (gzip.decompress(raw) if path.suffix == ".gz" else raw)[:540]


def _nifti(folder: Path, stored: Array, own: Array, random: np.random.Generator,
           *, name: str, kind: Any) -> Path:  # fmt: skip
    image = kind(stored, own)
    codes = [(1, 1), (0, 2), (3, 3), (1, 0), (4, 1)][int(random.integers(5))]
    image.set_qform(own, codes[0])
    image.set_sform(own if codes[1] else None, codes[1])
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"PLANTED"
    path = folder / name
    nibabel.save(image, path)
    return path


def _itk(
    folder: Path, stored: Array, own: Array, random: np.random.Generator, *, name: str
) -> Path:
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(stored.T))
    spacing = np.linalg.norm(own[:3, :3], axis=0)
    lps = np.diag([-1.0, -1.0, 1.0])
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps @ own[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin((lps @ own[:3, 3]).tolist())
    path = folder / name
    SimpleITK.WriteImage(image, str(path), useCompression=bool(random.integers(2)))
    return path


def _made(write: Callable[..., Path], **options: Any) -> Callable[..., Path]:
    return lambda folder, stored, own, random: write(folder, stored, own, random, **options)


FORMATS: dict[str, Callable[..., Path]] = {
    "NIfTI-1": _made(_nifti, name="scan.nii", kind=nibabel.Nifti1Image),
    "NIfTI-1 gzip": _made(_nifti, name="scan.nii.gz", kind=nibabel.Nifti1Image),
    "NIfTI-2": _made(_nifti, name="scan2.nii", kind=nibabel.Nifti2Image),
    "NIfTI pair": _made(_nifti, name="pair.hdr", kind=nibabel.Nifti1Pair),
    "NRRD": _made(_itk, name="scan.nrrd"),
    "MetaImage": _made(_itk, name="scan.mha"),
}
