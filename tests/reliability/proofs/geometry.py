"""Rows 6 to 8: which form decides, in which order the axes come out, and where the voxels lie."""

from __future__ import annotations

import itertools
import shutil
import warnings
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from mim3d.data.files import ReadWarning, read_volume
from mim3d.data.volume import Volume
from mim3d.foundation.errors import VolumeError
from mim3d.foundation.randomness import generator
from tests.data.files.making import ORDERS, reoriented, scan
from tests.reliability.formats import FORMATS, nifti_pair
from tests.reliability.forms import draw_forms, expected_affine, file_of
from tests.reliability.places import differs
from tests.reliability.proof import Tally, proof

SHAPE = (11, 13, 7)
REFUSALS = ("geometry", "forms-disagree", "spacing", "offset", "shear")
Affine = NDArray[np.float64]


@proof(rows=(7,), trials="orders and formats", quick=48, full=288)
def storage_orders(trials: range, seed: int, folder: Path) -> Tally:
    """Every storage order of an oblique volume gives the same voxels on the same grid."""
    tally = Tally()
    for trial in trials:
        random = generator(seed, trial, "orders")
        # Fewer than 48 trials still meet every format.
        order, write = ORDERS[(trial * 5) % 48], FORMATS[(trial + trial // 48) % 6]
        voxels, affine = scan(SHAPE, trial), _affine(random, most_degrees=25)
        volume = _read(write(_empty(folder), *reoriented(voxels, affine, order)))
        wrong = None
        if volume.voxels.shape[1:] != SHAPE or (volume.voxels[0] != voxels).any():
            wrong = "other voxels"
        elif not np.allclose(volume.affine, affine, atol=1e-4):
            wrong = "another affine"
        tally.add(trial, "identical", wrong and f"{order} {write.__name__}: {wrong}")
    return tally


@proof(rows=(7,), trials="random rotations and spacings", quick=36, full=2000, stretch=1000)
def rotations(trials: range, seed: int, folder: Path) -> Tally:
    """Every voxel keeps its millimetres to 1e-3 under any rotation, in the nearest axis order."""
    tally = Tally()
    for trial in trials:
        random = generator(seed, trial, "rotations")
        write = FORMATS[trial % len(FORMATS)]
        voxels, affine = scan(SHAPE, trial), _affine(random, most_degrees=180)
        if random.random() < 0.5:
            affine[:3, 0] *= -1
        path = write(_empty(folder), voxels, affine)
        volume = _read(path)
        if write is nifti_pair:
            # Near half a turn a quaternion in float32 keeps less than that of the angle.
            affine = nibabel.load(path).affine
        wrong = differs(volume, (voxels.astype(np.float64), affine))
        cosines = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
        best = max(
            sum(abs(cosines[row, axis]) for row, axis in enumerate(axes))
            for axes in itertools.permutations(range(3))
        )
        if wrong is None and np.trace(cosines) < best - 1e-5:
            wrong = "not the nearest order of axes"
        tally.add(trial, "in place", wrong and f"{write.__name__}: {wrong}")
    return tally


@proof(rows=(6, 8), trials="pairs of forms", quick=100, full=10_000, stretch=5000)
def forms(trials: range, seed: int, folder: Path) -> Tally:
    """sform, qform, pixdim and unit are judged as the written rule judges them.

    Absent, contradicting, sheared, singular, shifted, turned, mirrored, not finite, in other units,
    with impossible voxel sizes and offsets: 30 lines of another hand say which affine it must be.
    """
    tally = Tally()
    for trial in trials:
        drawn = draw_forms(generator(seed, trial, "forms"), SHAPE)
        expected = expected_affine(drawn, SHAPE)
        path = folder / "case.nii"
        path.write_bytes(file_of(drawn, scan(SHAPE)))
        try:
            volume = _read(path)
        except VolumeError as error:
            is_right = expected is None and error.code in REFUSALS
            tally.add(trial, "refused", None if is_right else f"{drawn.words}: refused, {error}")
            continue
        if expected is None:
            tally.add(trial, "read", f"{drawn.words}: read as {volume.affine.tolist()}")
            continue
        # 0.02: header numbers are float32, and metres are converted from them.
        wrong = differs(volume, (scan(SHAPE).astype(np.float64), expected), 0.02)
        if wrong is None and drawn.must_be_noted and not volume.notes:
            wrong = "nothing was said"
        tally.add(trial, "read", wrong and f"{drawn.words}: {wrong}")
    return tally


def _affine(random: np.random.Generator, most_degrees: float) -> Affine:
    axis = random.normal(size=3)
    angle = np.deg2rad(random.uniform(0, most_degrees))
    turn = Rotation.from_rotvec(axis / np.linalg.norm(axis) * angle).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn * random.uniform(0.3, 4.0, 3).round(3)
    affine[:3, 3] = random.uniform(-300, 300, 3).round(2)
    return affine


def _empty(folder: Path) -> Path:
    inner = folder / "case"
    shutil.rmtree(inner, ignore_errors=True)
    inner.mkdir()
    return inner


def _read(path: Path) -> Volume:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReadWarning)
        return read_volume(path)
