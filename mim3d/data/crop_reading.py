"""How a crop is cut out of its case.

A crop that is rotated or zoomed is read with the margin it needs and interpolated once, so that its
corners hold voxels and not padding.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mim3d.data.blur import blur, reach
from mim3d.data.classes import IGNORE_INDEX
from mim3d.data.crop_warp import UNSCALED, Factors, crop_to_volume, ends, smoothing
from mim3d.data.crops import Crop, CropPlan, OpenCase
from mim3d.data.interpolation import inside, interpolate, lines, nearest, places, stretch
from mim3d.foundation.errors import UserError


def cut_crop(
    case: OpenCase,
    plan: CropPlan,
    *,
    labels: bool = False,
    warp: NDArray[np.float64] | None = None,
    rescale: Factors = UNSCALED,
    out: Tensor | None = None,
) -> Crop:
    """The voxels of a plan, normalised as its whole volume is.

    Args:
        case: the case named in the plan.
        plan: where the crop lies.
        labels: whether the label map is cut too.
        warp: `3 3`, millimetres along the crop's axes to millimetres along the volume's; the
            centre of what the crop sees of the volume stays in place. None leaves voxels as they
            are stored.
        rescale: the factors along x, y, z, part of the warp, by which the crop is read with larger
            voxels than the volume's; above 1 a Gaussian goes before, so that nothing aliases.
        out: `c x y z`, float32; a crop that lies whole and unwarped in the volume is made there.

    Returns:
        The crop; voxels interpolated trilinearly and labels from the nearest voxel under a warp.

    Raises:
        UserError: labels are asked for and the case has none.
    """
    if warp is None:
        crop = _cut_box(case, plan, labels, out)
    else:
        crop = _cut_warped(case, plan, labels, warp, rescale)
    return replace(crop, air=None if case.air is None else torch.from_numpy(case.air))


def _cut_box(case: OpenCase, plan: CropPlan, labels: bool, out: Tensor | None) -> Crop:
    shape, start = np.array(case.shape[1:]), np.array(plan.start)
    first = np.maximum(start, 0)
    last = np.minimum(start + plan.size, shape)
    is_whole = tuple(last - first) == plan.size
    voxels, label_map = _read(case, first, last, labels, out if is_whole else None)
    affine = case.affine @ _translation(start)
    if is_whole:
        return Crop(voxels, affine, label_map)

    inside = tuple(slice(a, b) for a, b in zip(first - start, last - start, strict=True))
    padded = voxels.new_zeros((voxels.shape[0], *plan.size))
    padded[(slice(None), *inside)] = voxels
    valid = torch.zeros(plan.size, dtype=torch.bool)
    valid[inside] = True
    if label_map is not None:
        inner, label_map = label_map, label_map.new_full(plan.size, IGNORE_INDEX)
        label_map[inside] = inner
    return Crop(padded, affine, label_map, valid)


def _cut_warped(
    case: OpenCase, plan: CropPlan, labels: bool, warp: NDArray[np.float64], rescale: Factors
) -> Crop:
    shape = np.array(case.shape[1:])
    matrix = crop_to_volume(case, plan, warp, rescale)
    lowest, highest = ends(matrix, plan.size)

    # A box is convex: where its corners lie in the volume, all of it does.
    padded = bool((lowest < -0.5).any() or (highest > shape - 0.5).any())
    sigmas = smoothing(rescale)
    further = reach(torch.from_numpy(sigmas)).numpy()
    first = np.clip(np.floor(lowest) - further, 0, shape - 1).astype(np.int64)
    last = np.clip(np.floor(highest) + 2 + further, first + 1, shape).astype(np.int64)
    voxels, label_map = _read(case, first, last, labels)
    if further.any():
        voxels = blur(voxels[None], None, [sigmas.tolist()])[0]

    # A zoom alone keeps axes apart: a tenth of the time of interpolating in three dimensions.
    is_zoom = bool((matrix[:3, :3] == np.diag(np.diag(matrix[:3, :3]))).all())
    where = lines(matrix, plan.size) if is_zoom else places(matrix, plan.size)
    crop = Crop(
        (stretch if is_zoom else interpolate)(voxels, where, first),
        case.affine @ matrix,
        None if label_map is None else nearest(label_map, where, first),
        inside(where, shape) if padded else None,
    )
    if crop.valid is not None:
        crop.voxels.masked_fill_(~crop.valid, 0.0)
        if crop.labels is not None:
            crop.labels.masked_fill_(~crop.valid, IGNORE_INDEX)
    return crop


def _read(
    case: OpenCase,
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    labels: bool,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    stored, label_map = case.read(first.tolist(), (last - first).tolist(), labels=labels)
    if out is None:
        voxels = torch.from_numpy(case.normalise(stored))
    else:
        case.normalise(stored, out.numpy())
        voxels = out
    if not labels:
        return voxels, None
    if label_map is None:
        raise UserError(
            f"case `{case.case_id}` has no label map but labels are needed",
            remedy="leave it out of the lists that are trained on with labels",
            code="no-label",
        )
    return voxels, torch.from_numpy(np.ascontiguousarray(label_map))


def _translation(start: NDArray[np.int64]) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, 3] = start
    return matrix
