"""Whether a volume has the right values at the right millimetres, in whatever order of axes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mim3d.data.volume import Volume

Grid = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Voxels `x y z` in any order of axes, and the affine (4, 4) that says where they lie in RAS+."""


def differs(volume: Volume, grid: Grid, most_mm: float = 1e-3) -> str | None:
    """How a volume of one channel differs from voxels on a grid; None where it does not.

    Values above 1e9, which the reader replaces, are not compared.

    Args:
        volume: as read.
        grid: what it should be.
        most_mm: the farthest that a voxel may lie from its place.
    """
    voxels, affine = grid
    if volume.voxels.size != voxels.size:
        return f"{volume.voxels.size} voxels instead of {voxels.size}"
    places = np.indices(voxels.shape).reshape(3, -1)
    mm = affine[:3, :3] @ places + affine[:3, 3:]
    found = np.linalg.solve(volume.affine[:3, :3], mm - volume.affine[:3, 3:])
    nearest = np.rint(found)
    away = np.sqrt(((volume.affine[:3, :3] @ (found - nearest)) ** 2).sum(axis=0)).max()
    if not away <= most_mm:
        return f"voxels lie {away:.3g} mm away"
    if (nearest < 0).any() or (nearest >= np.array(volume.shape)[:, None]).any():
        return "voxels lie elsewhere"
    x, y, z = nearest.astype(int)
    expected = voxels.ravel()
    usable = np.abs(expected) <= 1e9
    values = volume.voxels[0, x, y, z].astype(np.float64)
    same = np.isclose(values[usable], expected[usable].astype(np.float32), rtol=1e-6, atol=0)
    return None if same.all() else f"{int((~same).sum())} other values"
