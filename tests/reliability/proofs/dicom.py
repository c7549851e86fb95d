"""Row 12, and rows 4 and 5 for DICOM: series with faulty slices, slices with mutated headers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mim3d.data.files import ReadWarning, read_volume
from mim3d.data.files import dicom as door
from mim3d.foundation.errors import VolumeError
from mim3d.foundation.randomness import generator
from tests.reliability.dicom_faults import FAULTS
from tests.reliability.dicom_mutations import mutated_bytes, mutated_elements
from tests.reliability.dicom_reading import grid_of
from tests.reliability.dicom_series import (
    BIG,
    EXPLICIT,
    IMPLICIT,
    RLE,
    Plan,
    draw_series,
    encoded,
    write_series,
)
from tests.reliability.places import Grid, differs
from tests.reliability.proof import Tally, proof

SECONDS = 5.0
PLAIN_SPARE, DECODER_SPARE = 256 << 20, 640 << 20
"""Address space beyond what the reading process starts with; SimpleITK alone maps 300 MiB."""
START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]);"
    " from mim3d.data.files import dicom_child; dicom_child.SPARE = int(sys.argv[2]);"
    " dicom_child.main()"
)
SAME_MM = 0.06
"""Slices may lie 0.05 mm off their places."""
EMERGENCIES = ("reader-died", "reader-time", "memory", "decoder")
"""Codes of errors that a few hundred bytes must not cause."""


@proof(rows=(12,), trials="series with a fault", quick=60, full=1000, stretch=500)
def dicom_series(trials: range, seed: int, folder: Path) -> Tally:
    """Slices that make no volume are refused, and those that make one are read as it.

    Lost, moved, cut, doubled, stripped, tilted slices, slices of another series or another kind, in
    any orientation, spacing and encoding.
    """
    tally = Tally()
    with limited_reader(PLAIN_SPARE):
        for trial in trials:
            random = generator(seed, trial, "dicom series")
            syntax = (EXPLICIT, IMPLICIT, BIG)[int(random.integers(3))]
            plan = draw_series(random, int(random.integers(4, 9)), syntax)
            fault = FAULTS[int(random.integers(len(FAULTS)))]
            files, expected = fault(plan, random)
            outcome, broken = _judged(folder, files, expected)
            tally.add(trial, outcome, broken and f"{fault.__name__}: {broken}")
    return tally


@proof(rows=(12, 4, 5), trials="mutated headers", quick=100, full=10_000, stretch=2000)
def dicom_headers(trials: range, seed: int, folder: Path) -> Tally:
    """A mutated DICOM header is refused, or read as its bytes say: no crash, 5 s, 256 MiB.

    One slice of a series is mutated, or all in the same way. What cannot be told from the files, as
    another rescale slope, is compared with an independent reading of the same bytes.
    """
    tally = Tally()
    for syntax in (EXPLICIT, IMPLICIT, BIG, RLE):
        with limited_reader(DECODER_SPARE if syntax == RLE else PLAIN_SPARE):
            for trial in trials:
                random = generator(seed, trial, "dicom headers")
                if (EXPLICIT, IMPLICIT, BIG, RLE)[int(random.integers(4))] == syntax:
                    plan = draw_series(random, int(random.integers(1, 4)), syntax)
                    tally.add(trial, *_compared(folder, _mutated(plan, random), plan))
    return tally


@contextlib.contextmanager
def limited_reader(spare_bytes: int) -> Iterator[None]:
    """A reading process with so much address space to spare, and five seconds a series."""
    folders = json.dumps([os.path.abspath(folder) for folder in sys.path])
    command = [sys.executable, "-I", "-c", START, folders, str(spare_bytes)]
    kept, door._reader = door._reader, door.DicomReader(command, seconds=SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReadWarning)
            yield
    finally:
        door._reader.close()
        door._reader = kept


def _mutated(plan: Plan, random: np.random.Generator) -> list[bytes]:
    """The files of a series with a mutation of the first one, or the same one of all."""
    files = [encoded(each, plan.syntax) for each in plan.slices]
    name, of_bytes = int(random.integers(2**62)), random.random() < 0.5
    for number in range(len(files) if random.random() < 0.5 else 1):
        same = generator(name)
        if of_bytes:
            files[number] = mutated_bytes(files[number], same)
        else:
            files[number] = mutated_elements(plan.slices[number], plan.syntax, same)
    return files


def _judged(folder: Path, files: list[bytes], expected: Grid | None) -> tuple[str, str | None]:
    """What was made of files of which is known what they are."""
    series = folder / "series"
    write_series(series, files)
    try:
        volume = read_volume(series)
    except VolumeError as error:
        is_right = expected is None and error.code not in EMERGENCIES
        return "refused", None if is_right else f"refused ({error.code}): {error.what}"
    finally:
        shutil.rmtree(series)
    if expected is None:
        return "accepted", "accepted"
    return "read right", differs(volume, expected, SAME_MM)


def _compared(folder: Path, files: list[bytes], plan: Plan) -> tuple[str, str | None]:
    """What was made of mutated files, compared with what they were and with what they say."""
    series = folder / "series"
    write_series(series, files)
    try:
        volume = read_volume(series)
    except VolumeError as error:
        return "refused", f"{error.code}: {error.what}" if error.code in EMERGENCIES else None
    finally:
        shutil.rmtree(series)
    if differs(volume, (plan.voxels, plan.affine), SAME_MM) is None:
        return "equal", None
    try:
        return "as the bytes say", differs(volume, grid_of(files), SAME_MM)
    except (ArithmeticError, LookupError, ValueError, struct.error) as error:
        return "accepted", f"what another reader cannot read: {error!r}"
