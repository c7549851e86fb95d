"""Rows 29 and 30: files that run code in a careless reader are refused by every one of ours."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from mim3d.config.convert import ConversionConfig, ConvertConfig
from mim3d.config.reading import read_config
from mim3d.config.verbs import PretrainConfig
from mim3d.data.cohort import read_cohort
from mim3d.data.files import read_volume
from mim3d.data.store import open_store
from mim3d.evaluation.results import read_results
from mim3d.foundation.errors import UserError
from mim3d.foundation.randomness import generator
from mim3d.foundation.reporting import Silent
from mim3d.models import unpickling
from mim3d.models.weights import load_weights
from mim3d.training.checkpoints import NUMBERS, STATE, WEIGHTS, Checkpoints, read_state
from mim3d.workflows.convert import convert, read_key_map
from mim3d.workflows.foreign import reason_of
from tests.reliability.child import judged
from tests.reliability.hostile_files import ENDINGS, KINDS, PICKLES, kind_of
from tests.reliability.proof import Tally, proof

COMMAND_EVERY = 23
"""Trials of which one also goes through the whole command, in a process of its own; no divisor of
the number of kinds, so that not always the same one does."""
SECONDS = 120.0


@proof(rows=(29, 30), trials="files that carry code, each offered to every reader",
       quick=25, full=200, stretch=50)  # fmt: skip
def planted_code(trials: range, seed: int, folder: Path) -> Tally:
    """Nothing that is read runs code: weights, arrays, archives and pickles of any form."""
    import safetensors.torch
    import torch

    unpickling.warm_up(torch, safetensors.torch)

    def judge(trial: int) -> str:
        return _offered(trial, seed, folder)

    tally = Tally()
    found = judged(trials, judge, seconds=SECONDS, spare_bytes=None)
    for trial, result in zip(trials, found, strict=True):
        tally.add(trial, result.outcome or "broken", result.fault)
    for left in sorted(folder.rglob("executed*")):
        tally.broken.append(f"{left.parent.name}: the code in it was executed")
    return tally


def _offered(trial: int, seed: int, folder: Path) -> str:
    """Gives one file to all readers; anything but a sentence from each is raised."""
    random = generator(seed, trial, "hostile file")
    place = folder / str(trial)
    place.mkdir()
    kind = kind_of(trial)
    path = place / f"weights{random.choice(ENDINGS)}"
    path.write_bytes(KINDS[kind](random, place / "executed"))
    reason = _refused_by_convert(path, place / "taken.safetensors")
    if kind.startswith(("protocol", "opcodes", "torch")) and "more than tensors (`" not in reason:
        raise AssertionError(f"the reason against a {kind} names nothing: {reason}")
    for name, read in READERS.items():
        try:
            read(path)
        except UserError:
            continue
        if name != "load_weights":  # numbers are numbers, whatever they spell
            raise AssertionError(f"{name} took a {kind}")
    if trial % COMMAND_EVERY == 0:
        _refused_by_command(path, kind, reason)
    strays = {item.name for item in place.iterdir()} - {path.name, "as", "out.safetensors"}
    if strays:
        raise AssertionError(f"a {kind} left {sorted(strays)}")
    return f"{kind}: refused"


def _refused_by_convert(path: Path, result: Path) -> str:
    """What `convert` does behind the start of its process, in a fork; gives the reason."""
    errors, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(write, 2)
        section, seconds = "", str(ConversionConfig().seconds)
        sys.argv = ["convert", "", str(path), str(result), section, seconds]
        try:
            unpickling.main()
        finally:
            os._exit(1)
    os.close(write)
    with open(errors, "rb") as file:
        said = file.read()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != unpickling.REFUSED:
        raise AssertionError(f"the process that opens pickles ended with {code}")
    reason = reason_of(code, said)
    if reason == reason_of(code, b"") or not reason.isprintable():
        raise AssertionError(f"no reason arrived: {said[-200:]!r}")
    return reason


def _refused_by_command(path: Path, kind: str, reason: str) -> None:
    """The whole command, in a process of its own, says the same."""
    try:
        convert(str(path), out=str(path.parent / "out.safetensors"), config=ConvertConfig(),
                reporter=Silent())  # fmt: skip
    except UserError as error:
        if path.suffix != ".safetensors" and kind in PICKLES and reason not in str(error):
            raise AssertionError(f"`convert` says of a {kind}: {error}") from None
    else:
        if kind != "safetensors":
            raise AssertionError(f"convert took a {kind}")


def _as_checkpoint(path: Path) -> None:
    """The file in the place of each part of a checkpoint."""
    run = path.parent / "as" / "run"
    step = run / "checkpoints" / "5"
    step.mkdir(parents=True)
    for name in (WEIGHTS, STATE, NUMBERS):
        (step / name).write_bytes(path.read_bytes())
    (run / "checkpoints" / "last").symlink_to("5")
    found = Checkpoints(run / "checkpoints").find()
    assert found is not None
    read_state(found)


def _as_store(path: Path) -> None:
    store = path.parent / "as" / "store"
    store.mkdir(parents=True)
    (store / "manifest.json").write_bytes(path.read_bytes())
    open_store(store)


def _as_volume(path: Path) -> None:
    """The file under the ending of a volume, and as one of a folder."""
    place = path.parent / "as" / "scans"
    place.mkdir(parents=True)
    (place / "scan.nii.gz").write_bytes(path.read_bytes())
    cohort = read_cohort(place)
    assert np.size(read_volume(cohort.cases[0].images[0]).voxels)


READERS = {
    "load_weights": load_weights,
    "read_volume": read_volume,
    "read_cohort": lambda path: read_volume(read_cohort(path).cases[0].images[0]),
    "read_config": lambda path: read_config(path, PretrainConfig),
    "read_key_map": read_key_map,
    "read_results": read_results,
    "a checkpoint": _as_checkpoint,
    "a store": _as_store,
    "a folder of scans": _as_volume,
}
