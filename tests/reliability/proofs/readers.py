"""Row 16, and 18 for `prepare` and feeds: a reader that dies costs one case and is named."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from mim3d.config.verbs import PreparationConfig, PrepareConfig
from mim3d.data.batch import CropBatch
from mim3d.data.files import dicom as door
from mim3d.data.files import read_volume
from mim3d.data.prepare import pool, prepare_store
from mim3d.data.workers import made_ahead
from mim3d.foundation.errors import ResourceError, VolumeError
from mim3d.foundation.randomness import generator
from tests.data.files.making import dicom_folder, nifti, scan, zipped
from tests.reliability.proof import Tally, proof

FATES = {
    "segfault": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "memory": "import numpy; kept = [numpy.empty(1 << 28, 'u1') for _ in range(1 << 20)]",
    "exit": "import os; os._exit(3)",
    "hang": "import time; time.sleep(3600)",
}
"""What a planted reader does, by name; trials take them in turn."""
PLANTED = """
import json, os
import mim3d.data.prepare.case as case
whole, fates = case._read, json.loads(os.environ["RELIABILITY_FATES"])
def planted(item, *rest):
    exec(fates.get(item.case_id, ""), {})
    return whole(item, *rest)
case._read = planted
"""
WORDS = {
    "segfault": "ended by SIGSEGV",
    "memory": "memory",
    "exit": "ended with code 3",
    "hang": "did not end within",
}
SOUND = 3
"""Cases of a cohort that nothing happens to."""
READER = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1])\n"
    "from mim3d.data.files import dicom_child as child\n"
    "whole, child.SPARE = child.{at}, 256 << 20\n"
    "def planted(*given):\n    {fate}\n    return whole(*given)\n"
    "child.{at} = planted\nchild.main()"
)


@proof(rows=(16, 18), trials="killed readers of a cohort", quick=3, full=100, stretch=20)
def killed_readers(trials: range, seed: int, folder: Path) -> Tally:
    """A reader that segfaults, hangs, eats memory or exits costs one row of the quarantine.

    Every other case of the cohort is prepared, and the store opens.
    """
    tally = Tally()
    numbers = list(trials)
    for first in range(0, len(numbers), len(FATES)):
        group = numbers[first : first + len(FATES)]
        for trial, broken in zip(group, _cohort(group, seed, folder), strict=True):
            tally.add(trial, f"{_fate(trial)}: one case lost, the others prepared", broken)
    return tally


@proof(rows=(16, 12), trials="killed DICOM readers", quick=4, full=100, stretch=50)
def killed_dicom_readers(trials: range, seed: int, folder: Path) -> Tally:
    """A DICOM reader that dies or stalls is an error of its series, and the next one is read."""
    tally = Tally()
    stored = dicom_folder(folder / "series")
    folders = json.dumps([os.path.abspath(entry) for entry in sys.path])
    for trial in trials:
        at = ("find_series", "check_series", "read_slices")[trial // 4 % 3]
        program = READER.format(at=at, fate=FATES[_fate(trial)])
        reader = door.DicomReader([sys.executable, "-I", "-c", program, folders], seconds=4.0)
        with mock.patch.object(door, "_reader", reader):
            broken = "it was read all the same"
            try:
                read_volume(folder / "series")
            except VolumeError as error:
                expected = ("reader-died", "reader-time", "memory")
                broken = None if error.code in expected else f"{error.code}: {error}"
            reader.close()
        if broken is None and trial % 10 == 0:
            volume = read_volume(folder / "series")
            broken = None if (volume.voxels[0] == stored[::-1, ::-1]).all() else "next one wrong"
        tally.add(trial, f"{_fate(trial)}: an error of its series", broken and f"{at}: {broken}")
    return tally


@proof(rows=(16, 18), trials="killed workers of a feed", quick=8, full=100)
def killed_feed_workers(trials: range, seed: int, folder: Path) -> Tally:
    """A worker of a feed that dies ends the training with the names of its cases."""
    tally = Tally()
    for trial in trials:
        random = generator(seed, trial, "feed workers")
        last = int(random.integers(0, 12))
        kill = int(random.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, 0]))
        steps: list[int] = []
        broken = "nothing was said"
        try:
            for step, _ in made_ahead(
                partial(_make, last, kill),
                range(20),
                workers=int(random.integers(1, 4)),
                slot_bytes=1 << 16,
                describe=lambda step: f"the crops of `case_{step}`",
            ):
                steps.append(step)
        except ResourceError as error:
            how = f"killed by signal {kill}" if kill else "ended with exit code 7"
            is_named = f"`case_{last}`" in error.what and how in error.what
            broken = None if is_named and steps == list(range(last)) else error.what
        tally.add(trial, "named", broken)
    return tally


def _fate(trial: int) -> str:
    return list(FATES)[trial % len(FATES)]


def _cohort(group: Sequence[int], seed: int, folder: Path) -> list[str | None]:
    """Prepares a cohort with one planted reader a trial; what went wrong with each."""
    shutil.rmtree(folder / "in", ignore_errors=True)
    shutil.rmtree(folder / "store", ignore_errors=True)
    (folder / "in").mkdir()
    random = generator(seed, group[0], "killed readers")
    names = [f"case_{place}" for place in random.permutation(len(group) + SOUND)]
    planted = dict(zip(names, group, strict=False))
    for number, name in enumerate(names):
        content = zipped(nifti(scan((24, 21, 14), number)))
        (folder / "in" / f"{name}.nii.gz").write_bytes(content)
    fates = {name: FATES[_fate(trial)] for name, trial in planted.items()}
    with _planted(folder, fates):
        settings = PrepareConfig(prepare=PreparationConfig(workers=1, modality="mr"))
        result = prepare_store(folder / "in", folder / "store", settings)
    sound = sorted(set(names) - set(planted))
    if sorted(result.prepared) != sound:
        return [f"prepared {result.prepared} instead of {sound}"] * len(group)
    reasons = {row.case_id: row.reason for row in result.refused}
    return [
        None if WORDS[_fate(trial)] in reasons.get(name, "") else f"reason {reasons.get(name)}"
        for name, trial in planted.items()
    ]


@contextlib.contextmanager
def _planted(folder: Path, fates: dict[str, str]) -> Iterator[None]:
    """Worker processes start with the planted reader, and are waited for some seconds only."""
    (folder / "planted").mkdir(exist_ok=True)
    (folder / "planted" / "sitecustomize.py").write_text(PLANTED)
    environment = {
        "PYTHONPATH": str(folder / "planted"),
        "RELIABILITY_FATES": json.dumps(fates),
    }
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(pool, "LEAST_SECONDS", 8.0),
        mock.patch.object(pool, "START_SECONDS", 30.0),
        mock.patch("mim3d.data.prepare.memory.LEAST_SPARE", 1 << 29),
        mock.patch("mim3d.data.prepare.memory.available_bytes", return_value=1 << 30),
    ):
        yield


def _make(last: int, kill: int, step: int) -> list[CropBatch]:
    """A small batch, or the end of the process that makes it."""
    if step == last:
        if kill:
            os.kill(os.getpid(), kill)
        os._exit(7)
    voxels = torch.from_numpy(np.full((1, 1, 5, 4, 3), step, np.float32))
    affine = torch.eye(4, dtype=torch.float64)[None]
    return [CropBatch(voxels, affine, (f"case_{step}",), torch.tensor([step]))]
