"""What becomes of series of slices on their way: lost, moved, cut, doubled, mixed, changed.

Each fault gives the files of a series and what a reader must make of them: the grid it must give,
or None where it must refuse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tests.reliability.dicom_series import (
    ALLOCATED,
    COLUMNS,
    FRAMES,
    INTERCEPT,
    ORIENTATION,
    PHOTOMETRIC,
    PIXELS,
    POSITION,
    ROWS,
    SAMPLES,
    SERIES,
    SIGNED,
    SLOPE,
    SPACING,
    STORED,
    THICKNESS,
    Elements,
    Plan,
    Tag,
    decimals,
    encoded,
    short,
)
from tests.reliability.places import Grid

Expected = tuple[list[bytes], Grid | None]
Random = np.random.Generator

NEEDED = (
    POSITION,
    ORIENTATION,
    SPACING,
    ROWS,
    COLUMNS,
    PIXELS,
    ALLOCATED,
    STORED,
    SIGNED,
    PHOTOMETRIC,
)
IDLE = ((0x0008, 0x0060), (0x0010, 0x0010), (0x0020, 0x0013), SAMPLES, (0x0028, 0x0102))


def none(plan: Plan, random: Random) -> Expected:
    """Nothing but the order of the names."""
    files = _files(plan)
    return [files[k] for k in random.permutation(len(files))], (plan.voxels, plan.affine)


def lost(plan: Plan, random: Random) -> Expected:
    """Some slices are not there; those that are make a volume where they are evenly spaced."""
    count = len(plan.slices)
    kept = np.flatnonzero(random.random(count) < random.choice([0.5, 0.9]))
    if not kept.size:
        kept = np.array([int(random.integers(count))])
    files = [encoded(plan.slices[k], plan.syntax) for k in kept]
    if len(set(np.diff(kept).tolist())) > 1:
        return files, None
    affine = plan.affine.copy()
    affine[:3, 3] += plan.affine[:3, 2] * kept[0]
    if len(kept) > 1:
        affine[:3, 2] *= kept[1] - kept[0]
    return files, (plan.voxels[:, :, kept], affine)


def moved(plan: Plan, random: Random) -> Expected:
    """A slice lies off its place by a little, along the normal or across it."""
    count, step = len(plan.slices), plan.affine[:3, 2] * (-1, -1, 1)
    which, thick = int(random.integers(count)), float(np.linalg.norm(step))
    allowed = min(max(0.05, 0.01 * thick), 0.1 * thick)
    is_sound = random.random() < 0.3
    # A grey zone is left out: a moved slice also moves the median and the line.
    away = allowed * float(random.uniform(0.05, 0.3) if is_sound else random.uniform(3, 9))
    across = plan.affine[:3, 0] * (-1, -1, 1)
    if is_sound or random.random() < 0.6:
        way = step / thick * random.choice([-1, 1])
    else:
        way = across / np.linalg.norm(across)
    if which in (0, count - 1) and not is_sound:
        which = 1 + int(random.integers(count - 2))
    place = _first(plan) + which * step + away * way
    files = _files(_changed(plan, which, {POSITION: decimals(*place)}))
    return files, (plan.voxels, plan.affine) if is_sound else None


def cut(plan: Plan, random: Random) -> Expected:
    """A file ends early, at any byte."""
    files, which = _files(plan), int(random.integers(len(plan.slices)))
    files[which] = files[which][: int(random.integers(len(files[which])))]
    return files, None


def stripped(plan: Plan, random: Random) -> Expected:
    """An element is missing in one slice or in all; some are needed and some are not."""
    has_slope = SLOPE in plan.slices[0]
    tags: list[Tag] = [
        *NEEDED,
        *IDLE,
        THICKNESS,
        SERIES,
        *([SLOPE, INTERCEPT] if has_slope else []),
    ]
    tag = tags[int(random.integers(len(tags)))]
    everywhere = random.random() < 0.5
    one = int(random.integers(len(plan.slices)))
    slices = [
        {t: value for t, value in each.items() if t != tag} if everywhere or k == one else each
        for k, each in enumerate(plan.slices)
    ]
    is_sound = tag in (*IDLE, THICKNESS) or (tag == SERIES and everywhere)
    files = _files(replace(plan, slices=slices))
    return files, (plan.voxels, plan.affine) if is_sound else None


def doubled(plan: Plan, random: Random) -> Expected:
    """A slice is there twice: equal, or with other pixels."""
    files, which = _files(plan), int(random.integers(len(plan.slices)))
    if random.random() < 0.3:
        return [*files, files[which]], (plan.voxels, plan.affine)
    pixels = bytearray(plan.slices[which][PIXELS][1])
    pixels[int(random.integers(len(pixels)))] ^= 1 << int(random.integers(8))
    other = {**plan.slices[which], PIXELS: ("OW", bytes(pixels))}
    return [*files, encoded(other, plan.syntax)], None


def mixed(plan: Plan, random: Random) -> Expected:
    """Slices of another acquisition lie among them, of their own series or of this one."""
    others = [dict(each) for each in plan.slices]
    uid = b"1.2.3" if random.random() < 0.5 else b"1.2.4"
    for number, each in enumerate(others):
        each[SERIES] = ("UI", uid)
        each[PIXELS] = ("OW", plan.slices[number - 1][PIXELS][1])
    kept = random.permutation(len(others))[: int(random.integers(1, len(others)))]
    return [*_files(plan), *(encoded(others[k], plan.syntax) for k in kept)], None


def changed(plan: Plan, random: Random) -> Expected:
    """One slice is of another kind: turned, scaled, in colour, of several frames, of other bits."""
    row, column = (plan.affine[:3, axis] * (-1, -1, 1) for axis in (0, 1))
    row, column = row / np.linalg.norm(row), column / np.linalg.norm(column)
    angle = float(random.uniform(0.01, 1.5))
    turned = row * np.cos(angle) + np.cross(row, column) * np.sin(angle)
    down, across = (float(np.linalg.norm(plan.affine[:3, axis])) for axis in (1, 0))
    rows = int(random.choice([7, 9, 16, 4000]))
    changes: list[dict[Tag, bytes]] = [
        {ORIENTATION: decimals(*turned, *column)},
        {ORIENTATION: decimals(*column, *row)},
        {SPACING: decimals(down * 1.02, across)},
        {SPACING: decimals(down, -across)},
        {SPACING: decimals(0, across)},
        {SPACING: b"wide\\tall"},
        {ROWS: short(rows, plan.syntax)},
        {ROWS: short(4, plan.syntax), COLUMNS: short(18, plan.syntax)},
        {PHOTOMETRIC: b"RGB", SAMPLES: short(3, plan.syntax)},
        {PHOTOMETRIC: b"PALETTE COLOR"},
        {PHOTOMETRIC: b"MONOCHROME1"},
        {FRAMES: b"2"},
        {STORED: short(12, plan.syntax)},
        {SIGNED: short(0, plan.syntax)},
        {SLOPE: b"0", INTERCEPT: b"0"},
        {SLOPE: b"nan", INTERCEPT: b"0"},
        {POSITION: b"1e999\\0\\0"},
        {POSITION: decimals(0, 0)},
    ]
    change = changes[int(random.integers(len(changes)))]
    which = int(random.integers(len(plan.slices)))
    return _files(_changed(plan, which, change)), None


def tilted(plan: Plan, random: Random) -> Expected:
    """The gantry was tilted: each slice lies a little further across."""
    step, across = (plan.affine[:3, axis] * (-1, -1, 1) for axis in (2, 1))
    slide = across / np.linalg.norm(across) * np.linalg.norm(step)
    slide *= np.tan(np.deg2rad(random.uniform(1, 25)))
    for k in range(len(plan.slices)):
        place = _first(plan) + k * (step + slide)
        plan = _changed(plan, k, {POSITION: decimals(*place)})
    return _files(plan), None


FAULTS: tuple[Callable[[Plan, Random], Expected], ...] = (
    none, lost, lost, moved, moved, cut, cut, stripped, stripped, doubled, mixed, changed, changed,
    tilted,
)  # fmt: skip


def _files(plan: Plan) -> list[bytes]:
    return [encoded(each, plan.syntax) for each in plan.slices]


def _first(plan: Plan) -> NDArray[np.float64]:
    """Where the first pixel lies, in LPS."""
    first: NDArray[np.float64] = plan.affine[:3, 3] * (-1, -1, 1)
    return first


def _changed(plan: Plan, which: int, values: dict[Tag, bytes]) -> Plan:
    """The plan with other values in one slice."""
    form = {ROWS: "US", COLUMNS: "US", SAMPLES: "US", STORED: "US", SIGNED: "US", PHOTOMETRIC: "CS"}
    other: Elements = {tag: (form.get(tag, "DS"), value) for tag, value in values.items()}
    slices = list(plan.slices)
    slices[which] = {**slices[which], **other}
    return replace(plan, slices=slices)
