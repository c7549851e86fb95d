"""Row 11: an image and a label map are taken as a pair exactly where they lie on one grid."""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from mim3d.data.files import ReadWarning, read_pair
from mim3d.foundation.errors import VolumeError
from mim3d.foundation.randomness import generator
from tests.data.files.making import ORDERS, reoriented, scan
from tests.reliability.formats import FORMATS
from tests.reliability.proof import Tally, proof

SHAPE = (11, 13, 7)
SAME = 0.05
GREY = 0.02
"""Relative distance from the limit within which the rounding of headers may decide."""
Affine = NDArray[np.float64]


@proof(rows=(11,), trials="pairs of grids", quick=36, full=1000)
def grids(trials: range, seed: int, folder: Path) -> Tally:
    """An image and its label map are a pair exactly if no corner is 0.05 voxel from the other's.

    Shifted, turned, scaled a little, in any two storage orders and formats; an error states the
    distance in millimetres.
    """
    tally = Tally()
    for trial in trials:
        random = generator(seed, trial, "grids")
        affine = _affine(random)
        moved, farthest, mm = _moved(affine, random)
        if abs(farthest / SAME - 1) < GREY:
            tally.add(trial, "at the limit: either")
            continue
        image, label = (_written(folder / name, grid, random) for name, grid in
                        (("image", affine), ("label", moved)))  # fmt: skip
        tally.add(trial, *_judged(image, label, farthest <= SAME, mm))
    return tally


def _judged(image: Path, label: Path, is_pair: bool, mm: float) -> tuple[str, str | None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReadWarning)
            volume, labels = read_pair(image, label)
    except VolumeError as error:
        if is_pair or error.code != "grids-differ":
            return "refused", f"refused: {error}"
        told = re.search(r"up to ([\d.e+-]+) mm", error.what)
        is_told = told is not None and abs(float(told[1]) - mm) <= 0.01 * mm + 0.001
        return "refused", None if is_told else f"{mm:.4g} mm apart, it says `{error.what}`"
    if not is_pair:
        return "a pair", f"taken as a pair, {mm:.4g} mm apart"
    truth = scan(SHAPE)
    is_equal = (volume.voxels[0] == truth).all() and (labels.voxels[0] == truth - truth.min()).all()
    return "a pair", None if is_equal else "other voxels"


def _affine(random: np.random.Generator) -> Affine:
    affine = np.eye(4)
    turn = Rotation.from_rotvec(random.uniform(-0.2, 0.2, 3)).as_matrix()
    affine[:3, :3] = turn * random.uniform(0.4, 4.0, 3).round(2)
    affine[:3, 3] = random.uniform(-200, 200, 3)
    return affine


def _moved(affine: Affine, random: np.random.Generator) -> tuple[Affine, float, float]:
    """The grid a little off, and how far its farthest corner is, in voxels and in millimetres."""
    change = np.eye(4)
    kind = int(random.integers(4))
    size = float(random.choice([0.2, 0.9, 1.1, 4.0]))
    if kind == 0:
        way = random.normal(size=3)
        change[:3, 3] = way / np.linalg.norm(way) * SAME * size
    elif kind == 1:
        change[:3, :3] = np.diag(1 + random.uniform(-1, 1, 3) * SAME * size / 12)
    elif kind == 2:
        turn = random.normal(size=3) * SAME * size / 12
        change[:3, :3] = Rotation.from_rotvec(turn).as_matrix()
    moved = affine @ change
    if kind == 2:
        # A turn in millimetres: one of voxels would shear where they are no cubes.
        moved = affine.copy()
        moved[:3, :3] = change[:3, :3] @ affine[:3, :3]
    ends = np.array(np.meshgrid(*[(0, n - 1) for n in SHAPE])).reshape(3, -1)
    apart = (moved - affine) @ np.vstack([ends, np.ones(8)])
    voxels = np.linalg.solve(affine[:3, :3], apart[:3])
    far_mm = float(np.linalg.norm(apart[:3], axis=0).max())
    return moved, float(np.linalg.norm(voxels, axis=0).max()), far_mm


def _written(folder: Path, affine: Affine, random: np.random.Generator) -> Path:
    """The scan, or labels made of it, in any storage order and format."""
    voxels = scan(SHAPE)
    if folder.name == "label":
        voxels = voxels - voxels.min()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write = FORMATS[int(random.integers(len(FORMATS)))]
    return write(folder, *reoriented(voxels, affine, ORDERS[int(random.integers(48))]))
