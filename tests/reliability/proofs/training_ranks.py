"""Rows 27 and 28 among two processes: one has the fault, dies or falls silent, and all are told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mim3d.foundation.errors import ProcessLost
from mim3d.foundation.randomness import generator
from mim3d.objectives.base import Moment, Task
from mim3d.training.validation import Validator
from tests.reliability.killing import Say, life
from tests.reliability.proof import Tally, proof
from tests.reliability.proofs.training_steps import PLACES, Fault
from tests.reliability.ranks import WORLD, together, with_restarts
from tests.reliability.small_training import (
    LeavingOut,
    Small,
    at_call,
    small_store,
    tensors_digest,
    train,
)

STEPS = 20
PATIENCE_SECONDS = 2.0
SILENCES = ("the second in a step", "the first in a step", "the first in a validation",
            "nobody, but a validation is long")  # fmt: skip


def _pair(small: Small) -> Small:
    """The same with one micro-batch a process and step."""
    return Small(small.store, small.objective, steps=small.steps,
                 changes=(("accumulation", 1), *small.changes))  # fmt: skip


@proof(rows=(28,), trials="kills of one of two processes under torchrun's agent", quick=1,
       full=40, stretch=10)  # fmt: skip
def killed_ranks(trials: range, seed: int, folder: Path) -> Tally:
    """`torchrun --max-restarts` goes on from the last checkpoint and ends bit-equal."""
    tally, small = Tally(), _pair(Small(small_store(folder / "store"), steps=STEPS))
    alone = folder / "alone"
    ended = life(partial(_restarted, small, alone, None, 0))
    assert ended.fault is None, ended.fault
    expected = tensors_digest(alone)
    for trial in trials:
        rank, step = trial % WORLD, trial // WORLD % STEPS
        run = folder / f"run-{trial}"
        ended = life(partial(_restarted, small, run, rank, step))
        broken = ended.fault
        if broken is None and tensors_digest(run) != expected:
            broken = "other bits than undisturbed"
        if broken is None and not (folder / f"run-{trial}-killed").exists():
            broken = "it was not killed"
        tally.add(trial, f"process {rank} killed: finished and equal", broken)
        shutil.rmtree(run)
    return tally


def _restarted(small: Small, folder: Path, rank: int | None, step: int, say: Say) -> None:
    def work() -> None:
        kills = os.environ["RANK"] == str(rank)
        is_first_try = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        touch = partial(_dying, folder, step) if kills and is_first_try else _as_it_is
        train(small, folder, touch=touch)

    # The agent tells of the kill at length.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with_restarts(work, 0 if rank is None else 1)


def _as_it_is(task: Task) -> None:
    pass


def _dying(folder: Path, step: int, task: Task) -> None:
    def hook(module: Task, arguments: tuple[object, Moment]) -> None:
        if arguments[1].step == step and module.training:
            folder.with_name(f"{folder.name}-killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    task.register_forward_pre_hook(hook)  # type: ignore[arg-type]


@proof(rows=(28,), trials="processes that fall silent, or validate for long", quick=4, full=24,
       stretch=8)  # fmt: skip
def silent_ranks(trials: range, seed: int, folder: Path) -> Tally:
    """A silent process ends the others in time, who say where they waited; a busy one is let be."""
    tally, store = Tally(), small_store(folder / "store")
    changes = (("collective_timeout_seconds", PATIENCE_SECONDS),)
    small = _pair(Small(store, steps=10, changes=changes))
    for trial in trials:
        silence = SILENCES[trial % len(SILENCES)]
        step = int(generator(seed, trial, "step").integers(4, 9))
        run = folder / f"run-{trial}"
        lives = together(partial(_silent, small, run, silence, step))
        said = [one.said[-1] if one.said else str(one.fault or one.signal) for one in lives]
        tally.add(trial, f"{silence}: told", _untold(run, silence, said))
        shutil.rmtree(run)
    return tally


def _silent(small: Small, folder: Path, silence: str, step: int, rank: int, say: Say) -> None:
    is_silent = rank == ("the second" in silence) and not silence.startswith("nobody")

    def fall_silent() -> None:
        # Gone for the others and yet connected to them; ended when they must be through.
        child = os.fork()
        if child == 0:
            time.sleep(6 * PATIENCE_SECONDS)
            os.kill(os.getppid(), signal.SIGKILL)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGSTOP)

    def look(task: Task, moment: Moment) -> dict[str, float]:
        if "validation" in silence:
            fall_silent() if is_silent else time.sleep(2 * PATIENCE_SECONDS)
        return {"x": 0.0}

    touch = at_call(step, fall_silent) if is_silent and "step" in silence else _as_it_is
    began = time.monotonic()
    try:
        train(small, folder, touch=touch, validators=[Validator("x", 5, look)])
        say("done")
    except ProcessLost as error:
        say(f"lost {time.monotonic() - began:.1f} {error.what}")


def _untold(folder: Path, silence: str, said: list[str]) -> str | None:
    if silence.startswith("nobody"):
        return None if said == ["done", "done"] else f"they said {said}"
    waiting = 0 if "second" in silence else 1
    words = said[waiting].split(" ", 2)
    if words[0] != "lost":
        return f"the other one said {said[waiting]}"
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    lost = [line for line in lines if line["kind"] == "lost"]
    if waiting == 0 and not (lost and any("loop.py" in place for place in lost[0]["stack"])):
        return "the log does not say where it waited"
    return None


@proof(rows=(27,), trials="not-a-numbers in one of two processes", quick=1, full=12,
       stretch=12)  # fmt: skip
def steps_left_out_by_both(trials: range, seed: int, folder: Path) -> Tally:
    """What is not finite in one process makes both leave out the step, bit for bit."""
    tally, small = Tally(), _pair(Small(small_store(folder / "store")))
    for trial in trials:
        random = generator(seed, trial, "one rank")
        rank, step = trial % WORLD, int(random.integers(small.steps - 1))
        fault = Fault(PLACES[trial // WORLD % len(PLACES)], step, 0, float("nan"))
        runs = [folder / f"{name}-{trial}" for name in ("with", "without")]
        lives = together(partial(_faulty, small, runs[0], fault, rank))
        lives += together(partial(_without, small, runs[1], step))
        broken = next((one.fault for one in lives if one.fault), None)
        digests = {one.said[0] for one in lives if one.said}
        if broken is None and len(digests) != 1:
            broken = "the processes end with other weights than without that step"
        if broken is None and tensors_digest(runs[0]) != tensors_digest(runs[1]):
            broken = "other bits than without that step"
        tally.add(trial, f"{fault.place} of process {rank}: equal", broken)
        for run in runs:
            shutil.rmtree(run)
    return tally


def _faulty(small: Small, folder: Path, fault: Fault, where: int, rank: int, say: Say) -> None:
    touch: Callable[[Task], None] = fault.touch if rank == where else _as_it_is
    say(train(small, folder, touch=touch, validators=()).digest)


def _without(small: Small, folder: Path, step: int, rank: int, say: Say) -> None:
    say(train(small, folder, feed=lambda feed: LeavingOut(feed, step), validators=()).digest)
