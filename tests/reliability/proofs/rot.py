"""Row 39: bits that rot, and what other versions wrote."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from mim3d.data.store import open_store
from mim3d.foundation.documents import write_sealed
from mim3d.foundation.errors import ExitCode, UserError
from mim3d.foundation.randomness import generator
from mim3d.foundation.reporting import Silent
from mim3d.training.checkpoints import Checkpoints, Saved, read_state, read_weights
from mim3d.workflows.doctor import doctor
from mim3d.workflows.run_record import PREPARATION, load_preparation
from tests.reliability.proof import Tally, proof
from tests.reliability.small_store import make_store


@proof(rows=(39,), trials="bits flipped in the files of a store and of a run's checkpoint",
       quick=60, full=2000, stretch=500)  # fmt: skip
def flipped_bits(trials: range, seed: int, folder: Path) -> Tally:
    """A single bit that changed in a store or checkpoint is found by `doctor` and by reading."""
    store, run = make_store(folder), _run(folder / "run")
    files = [path for root in (store, run / "checkpoints") for path in sorted(root.rglob("*"))
             if path.is_file() and not path.is_symlink()
             and "last" not in path.parts and "best" not in path.parts]  # fmt: skip
    files.append(run / PREPARATION)
    tally = Tally(notes=[f"{len(files)} files"])
    for trial in trials:
        random = generator(seed, trial, "flipped bit")
        path = files[int(random.integers(len(files)))]
        place, bit = int(random.integers(path.stat().st_size)), int(random.integers(8))
        flip(path, place, bit)
        try:
            broken = _missed(path, store, run)
        finally:
            flip(path, place, bit)
        where = f"bit {bit} of byte {place:,} of {path.relative_to(folder)}"
        tally.add(trial, f"{path.name}: found" if path.suffix != ".h5" else "voxels: found",
                  None if broken is None else f"{where}: {broken}")  # fmt: skip
    if _missed(None, store, run) is None:
        tally.broken.append("the whole files are complained of, too")
    return tally


def flip(path: Path, place: int, bit: int) -> None:
    """Flips one bit, and leaves the file's times as they were: rot tells nobody."""
    times = path.stat()
    with open(path, "r+b") as file:
        file.seek(place)
        old = file.read(1)[0]
        file.seek(place)
        file.write(bytes([old ^ 1 << bit]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _run(folder: Path) -> Path:
    """What is left of a run: a checkpoint and what it was trained on."""
    folder.mkdir()
    (folder / "config.yaml").write_text("{}\n")
    record = {"format": 2, "verb": "pretrain", "preparation": {}, "modalities": ["mr"],
              "channel_names": ["a"], "trained_on": {"case_0": "0" * 64}}  # fmt: skip
    write_sealed(folder / PREPARATION, record)
    weights = {"encoder.a": torch.arange(6.0).view(2, 3), "encoder.b": torch.ones(5)}
    Checkpoints(folder / "checkpoints").write(
        5, weights=weights, header={"encoder": '{"width": 24}'},
        saved=Saved({f"weights/{k}": v for k, v in weights.items()}, {"step": 5, "loss": 0.25}),
        is_best=True,
    )  # fmt: skip
    return folder


def _missed(path: Path | None, store: Path, run: Path) -> str | None:
    """Who did not see that `path` changed; None where everyone did."""
    is_stores = path is None or path.is_relative_to(store)
    if path is None:
        seen = _doctor_finds(store) or _doctor_finds(run) or _reading_finds(store / "a", store, run)
        return None if seen else "nothing is wrong"
    if not _doctor_finds(store if is_stores else run):
        return "`doctor` says all is well"
    # A quarantine is for people; nothing reads it.
    return None if path.suffix == ".tsv" or _reading_finds(path, store, run) else "it is read"


def _doctor_finds(place: Path) -> bool:
    try:
        return doctor(str(place), reporter=Silent()).exit_code != ExitCode.DONE
    except UserError:
        return True


def _reading_finds(path: Path, store: Path, run: Path) -> bool:
    """Whether whoever uses the file meets an error."""
    try:
        if path.is_relative_to(store):
            opened = open_store(store)
            _ = opened.fingerprint
            for case_id in opened.cases:
                with opened.open(case_id) as case:
                    case.read((0, 0, 0), case.shape[1:])
            # Sidecars are for preparing again, which makes damaged ones anew.
            return path.parent.name == "cases" and path.suffix == ".json"
        found = Checkpoints(run / "checkpoints").find()
        assert found is not None
        read_weights(found)
        read_state(found)
        load_preparation(run)
    except UserError:
        return True
    return False
