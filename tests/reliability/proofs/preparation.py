"""Rows 13, 14, and 18 for `prepare`: what becomes of odd volumes, outliers, and tiny classes."""

from __future__ import annotations

import resource
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim3d.config.read import ReadConfig
from mim3d.config.verbs import PreparationConfig
from mim3d.data.body import find_air
from mim3d.data.cohort import Case
from mim3d.data.phantom import PhantomRule, make_volume
from mim3d.data.prepare import VolumeRule, prepare_volume
from mim3d.data.prepare.job import Work, prepare_or_keep
from mim3d.data.prepare.memory import need_bytes
from mim3d.data.store.writing import PreparedCase, intensities
from mim3d.data.volume import Volume
from mim3d.foundation.errors import VolumeError
from mim3d.foundation.randomness import generator
from tests.data.files.making import nifti
from tests.reliability.child import judged
from tests.reliability.proof import Tally, proof

RULE = PhantomRule(shape=(27, 23, 14), spacing_mm=(1.5, 1.2, 3.0), organs=2, noise=0.03)
AFFINE = np.diag([1.5, 1.2, 3.0, 1.0])
SPACINGS = ((1.5, 1.2, 1.5), (2.0, 2.0, 2.0), (3.0, 3.0, 3.0), (1.5, 1.5, 6.0), (5.0, 4.0, 3.0))
LARGE = 32 << 20
"""Bytes from which a case's share is noted: below, what every case takes counts most."""
Voxels = NDArray[Any]
Labels = NDArray[np.uint8]


@proof(rows=(13,), trials="edge volumes", quick=40, full=200)
def edge_volumes(trials: range, seed: int, folder: Path) -> Tally:
    """Nothing to learn from is refused by name; else every labelled voxel stays where it was.

    Empty, constant, of two values, one voxel thick, with a body of some voxels, labels in the air,
    in the corners, or none.
    """
    tally = Tally()
    for trial in trials:
        voxels, labels, modality = _edge(trial, generator(seed, trial, "edge volumes"))
        volume = Volume.from_array(voxels, AFFINE)
        rule = VolumeRule((modality,) * len(voxels))
        must_refuse = modality == "ct" and (voxels > -500).any(axis=0).mean() < 1e-3
        must_refuse |= any(channel.min() == channel.max() for channel in voxels)
        try:
            case = prepare_volume(volume, rule, labels, (0, 1, 2), "edge")
        except VolumeError as error:
            named = error.code in ("empty-body", "constant")
            tally.add(trial, f"refused: {error.code}", None if named else str(error))
            continue
        wrong = "accepted" if must_refuse else _kept(case, labels)
        tally.add(trial, "every labelled voxel is kept", wrong)
    return tally


@proof(rows=(14, 9), trials="shares of outliers from 0 to 0.4 %", quick=20, full=200)
def outliers(trials: range, seed: int, folder: Path) -> Tally:
    """Up to 0.4 % of voxels at 1e6 change the normalised foreground by less than 1 %."""
    tally = Tally()
    worst = 0.0
    for trial in trials:
        random = generator(seed, trial, "outliers")
        clean, _ = make_volume(seed, trial % 20, RULE)
        clean = clean.astype(np.float32 if trial % 2 else np.int32)
        count = int(random.uniform(0, 0.004) * clean[0].size)
        spoilt = clean.copy()
        places = random.choice(clean[0].size, count, replace=False)
        spoilt.reshape(-1)[places] = random.choice([1e6, -1e6]) if trial % 3 == 0 else 1e6
        before, after = (_normalised(voxels, clean) for voxels in (clean, spoilt))
        kept = np.ones(clean[0].size, bool)
        kept[places] = False
        body = find_air(clean[0], "mr").body(clean[0]).ravel() & kept
        low, high = np.percentile(before[body], (1, 99))
        change = float(np.abs(after - before)[body].mean() / (high - low))
        worst = max(worst, change)
        tally.add(trial, "below 1 %", f"{count} outliers: {change:.2%}" if change > 0.01 else None)
    tally.notes.append(f"at most {worst:.1%}")
    return tally


@proof(rows=(14,), trials="phantoms with classes of one voxel at 5 spacings", quick=20, full=500)
def tiny_classes(trials: range, seed: int, folder: Path) -> Tally:
    """A class that resampling loses is an error, and one that changes by 20 % is noted."""
    tally = Tally()
    for trial in trials:
        random = generator(seed, trial, "tiny classes")
        voxels, _ = make_volume(seed, trial % 20, RULE)
        labels = _tiny(voxels.shape[1:], random)
        rule = VolumeRule(("mr",), spacing_mm=SPACINGS[trial % len(SPACINGS)], crop_to_body=False)
        volume = Volume.from_array(voxels, AFFINE)
        try:
            case = prepare_volume(volume, rule, labels, tuple(range(0, 60, 10)), "tiny")
        except VolumeError as error:
            tally.add(trial, "refused", None if error.code == "lost-class" else str(error))
            continue
        tally.add(trial, "all classes kept", _unsaid(case, labels))
    return tally


@proof(rows=(18,), trials="cases of random size, type, channels and spacing", quick=2, full=40)
def needed_memory(trials: range, seed: int, folder: Path) -> Tally:
    """A case takes no more memory in `prepare` than its headers were said to need."""
    if not Path("/proc/self/statm").exists():
        tally = Tally(notes=["measured on Linux only"])
        return tally
    tally, shares = Tally(), []
    # Libraries that are loaded with the first case are not a case's own.
    _taken((2.0, 2.0, 2.0), folder, _sized(folder / "first", generator(seed, "first"))[0])
    for trial in trials:
        case, spacing_mm = _sized(folder / str(trial), generator(seed, trial, "needed memory"))
        need = need_bytes(case, spacing_mm, ReadConfig())
        # A child a case: what a process took before is not given back.
        (found,) = judged([case], partial(_taken, spacing_mm, folder), seconds=60, spare_bytes=None)
        state, _, number = (found.fault or found.outcome).rpartition(" ")
        taken = int(number) if number.isdigit() else need * 100
        if need > LARGE:
            shares.append(taken / need)
        wrong = f"took {taken} of {need} bytes ({state})"
        fits = state == "prepared" and taken <= need + (16 << 20)
        tally.add(trial, "within what was said", None if fits else wrong)
    if shares:
        tally.notes.append(f"{min(shares):.0%} to {max(shares):.0%} of what was said")
    return tally


def _edge(trial: int, random: np.random.Generator) -> tuple[Voxels, Labels, str]:
    """Voxels `c x y z`, labels, and what they are said to be."""
    shape = ((27, 23, 14), (31, 1, 14), (9, 40, 1), (3, 3, 300))[trial // 10 % 4]
    kind, labels = trial % 10, np.zeros(shape, np.uint8)
    voxels: Voxels = random.integers(-1000, -900, (1, *shape)).astype(np.int16)
    where = tuple(int(random.integers(size)) for size in shape)
    if kind == 0:
        voxels = np.full((1, *shape), random.choice([-1000, 0, 7]), np.int16)
    elif kind == 1:
        few = int(random.choice([0, 1, 2, 5, 8, 20, 60]))
        voxels.reshape(-1)[:few] = random.integers(-50, 900, few)
    elif kind == 2:
        voxels = np.where(random.random((1, *shape)) < 0.5, 3, 90).astype(np.uint8)
    elif kind in (3, 4, 5):
        body = tuple(slice(size // 4, size // 4 + max(1, size // 2)) for size in shape)
        voxels[(0, *body)] = random.integers(-50, 90, voxels[(0, *body)].shape)
        labels[where] = 1
        labels[:: max(1, shape[0] - 1), :: max(1, shape[1] - 1), :: max(1, shape[2] - 1)] = kind - 3
    elif kind == 6:
        voxels = random.normal(0, 3, (2, *shape)).astype(np.float32)
        voxels[1] = 4
    elif kind == 7:
        voxels = np.abs(random.normal(0, 3, (1, *shape))).astype(np.float32)
        voxels[0, : max(1, shape[0] // 2)] += 300
        labels[-1, -1, -1] = 2
    elif kind == 8:
        voxels = np.zeros((1, *shape), np.float32)
        voxels[(0, *where)] = 1e5
        labels[0, 0, 0] = 1
    else:
        voxels = (random.random((1, *shape)) * 10.0 ** random.uniform(-20, 8)).astype(np.float32)
        labels[where] = 2
    return voxels, labels, "ct" if kind in (0, 1, 3, 4, 5) else "mr"


def _kept(case: PreparedCase, labels: Labels) -> str | None:
    """What is wrong with a prepared case without resampling, whose labels were these."""
    assert case.labels is not None
    for value in (1, 2):
        old, new = (np.argwhere(array == value) for array in (labels, case.labels))
        places = old @ AFFINE[:3, :3], new @ case.affine[:3, :3].T + case.affine[:3, 3]
        if len(old) != len(new) or not np.allclose(*(np.sort(each, axis=0) for each in places)):
            return f"{len(old)} voxels of class {value} became {len(new)}, or lie elsewhere"
    values = intensities(case.voxels, case.scale, case.offset)
    return None if np.isfinite(values).all() and values.size else "not finite"


def _normalised(voxels: Voxels, clean: Voxels) -> NDArray[np.float64]:
    """The clean intensities under the normalisation that was measured of others."""
    case = prepare_volume(Volume.from_array(voxels, AFFINE), VolumeRule(("mr",)), case_id="one")
    found: NDArray[np.float64] = case.normalisation[0].apply(clean[0]).astype(np.float64).ravel()
    return found


def _tiny(shape: tuple[int, ...], random: np.random.Generator) -> Labels:
    """Classes of 1, 1, 2, 18 and 60 voxels, each in one piece; or the last two alone."""
    labels = np.zeros(shape, np.uint8)
    every = ((1, 1, 1), (1, 1, 1), (2, 1, 1), (3, 3, 2), (5, 4, 3))
    first = int(random.choice([0, 0, 3]))
    for value, sides in enumerate(every[first:], first + 1):
        at = [int(random.integers(0, size - side)) for size, side in zip(shape, sides, strict=True)]
        box = tuple(slice(start, start + side) for start, side in zip(at, sides, strict=True))
        labels[box] = np.where(labels[box] == 0, value, labels[box])
    return labels


def _unsaid(case: PreparedCase, labels: Labels) -> str | None:
    """A class that is gone, or whose volume changed by more than a fifth without a note."""
    assert case.labels is not None
    unit = abs(np.linalg.det(case.affine[:3, :3])) / abs(np.linalg.det(AFFINE[:3, :3]))
    noted = " ".join(note.text for note in case.notes if note.code == "class-change")
    for index in range(1, 6):
        old, new = int((labels == index).sum()), int((case.labels == index).sum()) * unit
        if old and not new:
            return f"class {index} of {old} voxels is gone"
        is_noted = f"label {index * 10} " in noted
        if old and abs(abs(new / old - 1) - 0.2) > 1e-6 and is_noted != (abs(new / old - 1) > 0.2):
            return f"class {index} changed by {new / old - 1:+.0%}, noted: {is_noted}"
    return None


def _sized(folder: Path, random: np.random.Generator) -> tuple[Case, tuple[float, ...] | None]:
    """A case in files, and the spacing it will be resampled to."""
    folder.mkdir()
    shape = tuple(int(n) for n in random.integers(60, 130, 3))
    kind = random.choice(["u1", "i2", "i4", "f4", "f8"])
    channels = int(random.choice([1, 1, 2, 4]))
    voxels = random.integers(0, 200, (*shape, channels)).astype(kind)
    (folder / "a.nii").write_bytes(nifti(voxels if channels > 1 else voxels[..., 0], AFFINE))
    label = None
    if random.random() < 0.5:
        label = folder / "label.nii"
        label.write_bytes(nifti((voxels[..., 0] > 150).astype(np.uint8), AFFINE))
    spacing_mm = None if random.random() < 0.4 else tuple(random.uniform(1, 3, 3).round(2).tolist())
    case = Case(case_id="a", subject_id="a", images=(folder / "a.nii",), label=label)
    return case, spacing_mm


def _taken(spacing_mm: tuple[float, ...] | None, folder: Path, case: Case) -> str:
    """Prepares the case in this process and tells how much its memory grew."""
    store = folder / f"store_{case.images[0].parent.name}"
    (store / "cases").mkdir(parents=True)
    config = PreparationConfig(spacing_mm=spacing_mm, modality="mr")  # type: ignore[arg-type]
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    found = prepare_or_keep(case, Work(store, config, ReadConfig(), None, None, {}))
    top = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    taken = max(0, top - pages * resource.getpagesize())
    return f"{found.get('reason', found['state'])} {taken}"
