"""How a crop that is turned, stretched or read at another scale lies in its volume."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mim3d.config.data import Triple
from mim3d.data.crops import CropPlan, OpenCase

Factors = tuple[float, float, float]
UNSCALED: Factors = (1.0, 1.0, 1.0)


def smoothing(rescale: Factors) -> NDArray[np.float64]:
    """Deviation of the Gaussian that goes before reading with larger voxels, `3`, in voxels.

    A Gaussian of a voxel's width at half its height stands for the voxel; what lacks from the
    volume's to one that is f times as large has variance (f^2 - 1) / (8 ln 2) (Cardoso et al.,
    MICCAI 2015). Along the volume's axes, though a warp may turn the crop's away from them.
    """
    larger = np.maximum(np.array(rescale), 1.0)
    deviation: NDArray[np.float64] = np.sqrt((larger**2 - 1) / (8 * np.log(2)))
    return deviation


def crop_to_volume(
    case: OpenCase, plan: CropPlan, warp: NDArray[np.float64], rescale: Factors = UNSCALED
) -> NDArray[np.float64]:
    """Crop voxel to volume voxel under a warp, `4 4`.

    The warp is in millimetres: with S = diag(spacing) the linear part is S^-1 warp S, hence a
    rotation is rigid on anisotropic voxels too. A crop that is read at another scale reaches no
    further beyond the volume than it did, if it fits; else it holds all that it could see.
    """
    shape, start, size = np.array(case.shape[1:]), np.array(plan.start), np.array(plan.size)
    spacing = np.array(case.spacing_mm)
    seen = (np.maximum(start, 0) + np.minimum(start + size, shape) - 1) / 2
    matrix = np.eye(4)
    matrix[:3, :3] = warp * spacing / spacing[:, None]
    matrix[:3, 3] = seen - matrix[:3, :3] @ (seen - start)
    if rescale != UNSCALED:
        lowest, highest = ends(matrix, plan.size)
        half = np.abs(matrix[:3, :3]).sum(axis=1) / 2  # of the box around a voxel of the crop
        up = np.minimum(start, 0) - 0.5 - (lowest - half)
        down = np.maximum(start + size, shape) - 0.5 - (highest + half)
        matrix[:3, 3] += np.clip(0, np.minimum(up, down), np.maximum(up, down))
    return matrix


def ends(
    matrix: NDArray[np.float64], size: Triple
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest place in the volume of a crop's voxels along each axis."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(size) - 1)
    places = corners @ matrix[:3, :3].T + matrix[:3, 3]
    return places.min(axis=0), places.max(axis=0)
