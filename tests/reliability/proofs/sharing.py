"""Row 23: several processes on one store give one whole store; a run folder has one writer."""

from __future__ import annotations

import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np

from mim3d.config.verbs import PreparationConfig, PrepareConfig
from mim3d.data.prepare import prepare_store
from mim3d.data.store import Store
from mim3d.foundation.errors import UserError
from mim3d.foundation.lock import FolderLock
from mim3d.foundation.randomness import generator
from mim3d.training.run import Run
from tests.reliability.killing import Child, Death, Say, life
from tests.reliability.proof import Tally, proof
from tests.reliability.workbench import make_source

PROCESSES, KILLED = 8, 3
CONFIG = {"training": {"steps": 3, "device": "cpu"}}


@proof(rows=(23,), trials="stores prepared by 8 processes at once, 3 killed", quick=1, full=20)
def shared_stores(trials: range, seed: int, folder: Path) -> Tally:
    """Eight processes preparing one store, some killed, leave one whole and equal store."""
    source = make_source(folder / "source", 4)
    alone = folder / "alone"
    whole = life(partial(_prepare, source, alone))
    tally = Tally()
    for trial in trials:
        random = generator(seed, trial, "shared-store")
        path = folder / f"store-{trial}"
        deaths = [
            Death(seconds=float(random.uniform(0, 4 * whole.seconds))) if n < KILLED else None
            for n in range(PROCESSES)
        ]
        children = [Child(partial(_prepare, source, path), death) for death in deaths]
        lives = [child.wait() for child in children]
        faults = [life.fault for life in lives if life.fault]
        broken = faults[0] if faults else _differs(path, alone)
        killed = sum(life.signal is not None for life in lives)
        tally.add(trial, "one whole store, equal to that of one process", broken)
        tally.notes = [f"{killed} of {PROCESSES} processes killed in the last round"]
        shutil.rmtree(path)
    return tally


def _prepare(source: Path, out: Path, say: Say) -> None:
    settings = PreparationConfig(workers=0, modality="ct")
    prepare_store(source, out, PrepareConfig(prepare=settings))


def _differs(path: Path, alone: Path) -> str | None:
    found, wanted = Store(path), Store(alone)
    if found.manifest != wanted.manifest or found.fingerprint != wanted.fingerprint:
        return "manifest or fingerprint is not that of one process"
    if wrong := found.verify():
        return f"damaged: {wrong}"
    left = [item.name for item in path.rglob(".mim3d-*")]
    # What a killed process left is swept by the next command; nothing else may lie there.
    names = {item.name for item in path.rglob("*")} - set(left)
    others = names ^ {item.name for item in alone.rglob("*")}
    return f"it differs by {sorted(others)}" if others else None


@proof(rows=(23,), trials="second runs in a folder that is in use", quick=5, full=40)
def second_runs(trials: range, seed: int, folder: Path) -> Tally:
    """A second run is refused while the first lives, and takes over when it is dead."""
    kinds = (_refused, _refused_by_a_stopped_one, _taken_over, _race, _race_for_a_stale_one)
    tally = Tally()
    for trial in trials:
        random = generator(seed, trial, "second-run")
        path = folder / f"run-{trial}"
        tally.add(trial, *kinds[trial % len(kinds)](path, random))
    return tally


def _hold(path: Path, say: Say) -> None:
    run = Run.create_or_continue(path, CONFIG)
    say(run.note or "alone")
    time.sleep(100)


def _try(path: Path, say: Say) -> None:
    try:
        run = Run.create_or_continue(path, CONFIG)
    except UserError as error:
        say(error.code)
    else:
        say(run.note or "alone")
        run.release()


def _held(path: Path) -> Child:
    """A child that holds the folder, when it does."""
    child = Child(partial(_hold, path))
    until = time.monotonic() + 60
    while not (path / "config.yaml").is_file():
        if time.monotonic() > until:
            raise TimeoutError("the first run did not begin")
        time.sleep(0.005)
    return child


def _refused(path: Path, random: np.random.Generator) -> tuple[str, str | None]:
    first = _held(path)
    seconds = [life(partial(_try, path)) for _ in range(2)]
    first.kill()
    first.wait()
    said = [second.said for second in seconds]
    return "refused", None if said == [("run-in-use",)] * 2 else f"second runs said {said}"


def _refused_by_a_stopped_one(path: Path, random: np.random.Generator) -> tuple[str, str | None]:
    first = _held(path)
    os.kill(first.pid, signal.SIGSTOP)
    long_ago = time.time() - float(random.uniform(0, 1e6))
    os.utime(path / "lock.json", (long_ago, long_ago))
    second = life(partial(_try, path))
    first.kill()
    first.wait()
    broken = None if second.said == ("run-in-use",) else f"it said {second.said or second.fault}"
    return "refused by a stopped one", broken


def _taken_over(path: Path, random: np.random.Generator) -> tuple[str, str | None]:
    """Also before anybody has waited for the dead one, and whatever it left half done."""
    whole = life(partial(_try, path.with_name("measure")))
    shutil.rmtree(path.with_name("measure"))
    dead = Child(partial(_try, path), Death(operation=int(random.integers(whole.operations))))
    os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
    second = life(partial(_try, path))
    dead.wait()
    broken = second.fault or (None if "run-in-use" not in second.said else "the dead one held it")
    left = sorted(item.name for item in path.glob("*lock*"))
    return "taken over from a dead one", broken or (f"left {left}" if left else None)


def _race(path: Path, random: np.random.Generator) -> tuple[str, str | None]:
    return "one of eight wins", _won(path)


def _race_for_a_stale_one(path: Path, random: np.random.Generator) -> tuple[str, str | None]:
    first = _held(path)
    first.kill()
    first.wait()
    return "one of eight takes over", _won(path)


def _won(path: Path) -> str | None:
    """Eight want a folder at once, and keep what they get: exactly one gets it."""
    path.mkdir(exist_ok=True)
    start = time.monotonic() + 0.3
    children = [Child(partial(_take_and_keep, path, start)) for _ in range(PROCESSES)]
    until = time.monotonic() + 30
    while sum(map(_has_ended, children)) < PROCESSES - 1 and time.monotonic() < until:
        time.sleep(0.01)
    lives = []
    for child in children:
        child.kill()
        lives.append(child.wait())
    won = [one.said for one in lives].count(("won",))
    return None if won == 1 else f"{won} have it: {[one.said or one.fault for one in lives]}"


def _has_ended(child: Child) -> bool:
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, child.pid, options) is not None


def _take_and_keep(path: Path, start: float, say: Say) -> None:
    lock = FolderLock(path)
    time.sleep(max(0.0, start - time.monotonic()))
    try:
        lock.take()
    except UserError as error:
        say(error.code)
    else:
        say("won")
        time.sleep(100)
