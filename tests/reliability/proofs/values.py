"""Rows 9 and 10: voxels that are no numbers, and labels that are none."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim3d.data.files import ReadWarning, read_label, read_volume
from mim3d.data.prepare.volume import VolumeRule, prepare_volume
from mim3d.data.volume import Volume
from mim3d.foundation.errors import VolumeError
from mim3d.foundation.randomness import generator
from tests.data.files.making import meta, nifti, nrrd, zipped
from tests.reliability.child import judged
from tests.reliability.proof import Tally, proof

SHAPE = (16, 12, 10)
BAD_REAL = (np.nan, np.inf, -np.inf, 3e38, -2e9, 1.001e9)
BAD_WIDE = (*BAD_REAL, 1e300, -1e300)
BAD_WHOLE = {"i4": (2**31 - 1, -(2**31), 1_000_000_001), "u4": (2**32 - 1, 1_000_000_001),
             "i8": (2**62, -(2**63), -1_000_000_001), "u8": (2**64 - 1, 2**40)}  # fmt: skip
RULE = VolumeRule(modalities=("mr",), crop_to_body=False)


def _tallied(trials: range, judge: Any) -> Tally:
    tally = Tally()
    for trial, each in zip(trials, judged(trials, judge), strict=True):
        is_good = each.fault is None and not each.outcome.startswith("wrong")
        said = each.fault or each.outcome
        tally.add(trial, each.outcome if is_good else "broken", None if is_good else said)
    return tally


@proof(rows=(9,), trials="volumes with unusable voxels", quick=150, full=3_000, stretch=1_000)
def unusable_voxels(trials: range, seed: int, folder: Path) -> Tally:
    """Voxels that are not finite or beyond 1e9 are counted, contained and in no statistics.

    Up to 40 percent of NaN, infinities and absurd numbers leave every other voxel, the extremes
    and the normalisation as they are; more than half are refused.
    """

    def judge(trial: int) -> str:
        draw = generator(seed, trial, "unusable")
        share = draw.uniform(0.55, 1) if trial % 10 == 0 else draw.choice([1e-3, 0.05, 0.4])
        kind = ("f4", "f8", "i4", "u4", "i8", "u8")[int(draw.integers(6))]
        true = draw.normal(3000, 700, SHAPE).clip(1, 6000).astype(kind)
        bad = draw.random(SHAPE) < share
        bad[0, 0, 0] = True
        values = BAD_WHOLE.get(kind) or (BAD_WIDE if kind == "f8" else BAD_REAL)
        planted = np.array(values, kind)[draw.integers(len(values), size=SHAPE)]
        name, raw = _written(np.where(bad, planted, true).astype(kind), draw)
        path = folder / name
        path.write_bytes(raw)
        return _contained(path, true, bad, planted, refused=trial % 10 == 0)

    return _tallied(trials, judge)


def _written(voxels: NDArray[Any], draw: np.random.Generator) -> tuple[str, bytes]:
    if voxels.dtype.str[1:] in ("i4", "f4") and draw.integers(2):
        return "x.mha", meta(voxels)
    if draw.integers(2) and voxels.dtype != np.float64:
        return "x.nrrd", nrrd(voxels)
    raw = nifti(voxels, version=1 + int(draw.integers(2)), order="<>"[int(draw.integers(2))])
    return ("x.nii.gz", zipped(raw, 1)) if draw.integers(2) else ("x.nii", raw)


def _contained(
    path: Path, true: NDArray[Any], bad: NDArray[Any], planted: NDArray[Any], *, refused: bool
) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ReadWarning)
        try:
            volume = read_volume(path)
        except VolumeError as error:
            return "refused" if refused and error.code == "not-finite" else f"wrong: {error}"
    if refused:
        return "wrong: accepted"
    kept = np.dtype(np.float32 if true.dtype.kind == "f" else f"{true.dtype.kind}4")
    good = true[~bad].astype(kept)
    with np.errstate(invalid="ignore"):
        high = planted > 1e9
    expected = np.where(bad, np.where(high, good.max(), good.min()), true.astype(kept))
    voxels = volume.voxels[0]
    if voxels.dtype != kept or not (voxels == expected).all():
        return "wrong: other voxels"
    if volume.unusable is None or not (volume.unusable[0] == bad).all():
        return "wrong: another count"
    if "values-replaced" not in {note.code for note in volume.notes}:
        return "wrong: no note"
    return _same_statistics(volume, good.astype(np.float32))


def _same_statistics(volume: Volume, good: NDArray[np.float32]) -> str:
    """The normalisation against percentiles, mean and deviation of the other voxels alone."""
    (found,) = prepare_volume(volume, RULE).normalisation
    low, high = np.percentile(good, RULE.clip_percentiles)
    clipped = good.clip(low, high).astype(np.float64)
    expected = (low, high, clipped.mean(), clipped.std())
    same = np.allclose((found.low, found.high, found.mean, found.deviation), expected, rtol=1e-6)
    return "contained" if same else f"wrong: {found} instead of {expected}"


@proof(rows=(10,), trials="label maps", quick=150, full=3_000, stretch=1_000)
def label_maps(trials: range, seed: int, folder: Path) -> Tally:
    """A label map is read as the whole numbers it holds, or refused with voxel and value.

    Every integer from 0 to 65535 in every type, under scaling and rounding; never one that is
    fractional, negative, too large, not finite, in a channel too many, or of no named class.
    """

    def judge(trial: int) -> str:
        draw = generator(seed, trial, "labels")
        stored, slope, intercept = _stored_labels(draw, whole=trial % 25 == 0)
        path = folder / "label.nii"

        def scaled(header: dict[str, float]) -> None:
            header["scl_slope"], header["scl_inter"] = slope, intercept

        version, order = 1 + int(draw.integers(2)), "<>"[int(draw.integers(2))]
        path.write_bytes(nifti(stored, version=version, order=order, change=scaled))
        if version == 1:
            slope, intercept = float(np.float32(slope)), float(np.float32(intercept))
        exact = stored.astype(np.float64)
        exact = exact * slope + intercept if slope else exact
        return _as_whole(path, exact)

    return _tallied(trials, judge)


def _stored_labels(draw: np.random.Generator, *, whole: bool) -> tuple[NDArray[Any], float, float]:
    kind = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")[int(draw.integers(10))]
    shape = (64, 32, 32) if whole else SHAPE
    if whole:
        kind = ("u2", "i4", "u4", "i8", "u8", "f4", "f8")[int(draw.integers(7))]
    most = min(65535, int(np.iinfo(kind).max) if kind[0] in "iu" else 65535)
    labels = np.arange(65536).reshape(shape) if whole else draw.integers(0, most + 1, shape)
    slope, intercept = (0.0, 1.0, 0.5, 2.0, 1 / 255)[int(draw.integers(5))], 0.0
    if draw.integers(3) == 0 and slope:
        intercept = float(draw.integers(-3, 4))
    if slope not in (0.0, 1.0) or intercept:
        # What the scaling gives are labels where it divides.
        labels = labels % (most // 510 + 1) * (510 if slope < 1 else 1)
    stored = labels.astype(kind)
    if kind[0] == "f" and draw.integers(2):
        stored += draw.uniform(-9e-4, 9e-4, shape).astype(kind)
        stored = np.abs(stored)
    if draw.integers(3) == 0:
        bad = [-1, 65536, 2**24 + 1, 1.5, np.nan, np.inf, 1e300, 0.99, 2**31, -(2**31)]
        value = bad[int(draw.integers(len(bad)))]
        if kind[0] == "f" or (float(value).is_integer() and abs(value) <= np.iinfo(kind).max):
            place = tuple(int(draw.integers(size)) for size in shape)
            with np.errstate(over="ignore"):
                stored[place] = np.array(value).astype(kind)
    return stored, slope, intercept


def _as_whole(path: Path, exact: NDArray[np.float64]) -> str:
    """Compares what is read with the nearest whole numbers, where all of them are labels."""
    nearest = np.rint(exact)
    with np.errstate(invalid="ignore"):
        fits = (np.abs(exact - nearest) <= 1e-3) & (nearest >= 0) & (nearest <= 65535)
    try:
        voxels = read_label(path).voxels[0]
    except VolumeError as error:
        if fits.all():
            return f"wrong: {error}"
        i, j, k = np.unravel_index(int(np.argmin(fits.ravel(order="F"))), exact.shape, order="F")
        named = f"at voxel ({i}, {j}, {k})" in error.what
        return "refused" if named else f"wrong: another voxel than {i}, {j}, {k}: {error}"
    if not fits.all():
        return "wrong: accepted"
    return "equal" if (voxels == nearest).all() else "wrong: other labels"
