"""Rows 25 and 26: interrupted anywhere, by anything, a run ends with an undisturbed one's bits."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mim3d.data.batch import MicroBatch
from mim3d.foundation.errors import ExitCode, Interrupted
from mim3d.foundation.randomness import generator
from mim3d.objectives.base import Task
from mim3d.objectives.registry import PRETEXT_TASKS
from mim3d.training.loop import Feed
from mim3d.training.run import read_status
from mim3d.training.signals import NAMES
from tests.reliability import moments
from tests.reliability.killing import Death, Life, Say, life
from tests.reliability.moments import Moments
from tests.reliability.proof import Tally, proof
from tests.reliability.small_training import (
    ACCUMULATION,
    Small,
    run_digest,
    small_store,
    train,
)

WORKERS = (0, 1, 3)
OBJECTIVES = ("mae", *(name for name in PRETEXT_TASKS if name != "mae"))
CLOCK = "any time"
PLACES = (*moments.PLACES, CLOCK)
JOB_END = "the end of the SLURM job"
ENDINGS = (*NAMES, JOB_END)
SLURM = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "4", "SLURM_NNODES": "1", "SLURM_JOB_NAME": "run"}
"""Of a batch script that calls the command without srun."""
MARGIN_SECONDS = 60
REAL_SHARE = 0.7
"""Of trials that must find a training at work; the others came when its last step was made."""


@proof(rows=(25,), trials="trainings killed in passes, updates, lines, files and at any time",
       quick=6, full=108, stretch=36)  # fmt: skip
def resumed_trainings(trials: range, seed: int, folder: Path) -> Tally:
    """Killed anywhere and continued, a run ends bit-equal: tensors, counters and log."""
    tally, store, alone = Tally(), small_store(folder / "store"), _Undisturbed(folder)
    for trial in trials:
        workers, place = _cell(trial)
        small = Small(store, OBJECTIVES[trial // 3 % len(OBJECTIVES)], workers)
        share = float(generator(seed, trial, "point").uniform(0, 1))
        run = folder / f"run-{trial}"
        ended = _killed(small, run, place, share, alone.whole(small))
        broken = None if ended.signal == signal.SIGKILL else f"it was not killed: {ended.fault}"
        broken = broken or _resumed(small, run, alone.digest(small))
        tally.add(trial, f"{place}: equal", broken)
        shutil.rmtree(run, ignore_errors=True)
    return tally


def _cell(trial: int) -> tuple[int, str]:
    """Workers and place of a trial: each pair once in eighteen."""
    return WORKERS[trial % 3], PLACES[(trial + trial // 6) % len(PLACES)]


def _killed(small: Small, folder: Path, place: str, share: float, whole: _Whole) -> Life:
    """A training that is killed; nearer to its beginning where it ended before its time."""
    for _ in range(5):
        at, death = None, Death()
        if place == CLOCK:
            death = Death(seconds=share * whole.life.seconds)
        elif place == "file operation":
            # From the making of the folder on.
            death = Death(operation=int(share * whole.life.operations))
        else:
            at = (place, int(share * whole.counts[place]))
        ended = life(partial(_train, small, folder, at), death)
        if ended.signal is not None or ended.fault is not None:
            break
        shutil.rmtree(folder)
        share /= 2
    return ended


def _train(small: Small, folder: Path, at: tuple[str, int] | None, say: Say) -> None:
    """Trains to the end, or to the moment; says how many moments there were."""
    watch = Moments(at, lambda: os.killpg(0, signal.SIGKILL))
    train(small, folder, touch=watch.touch, feed=watch.feed)
    say(json.dumps(watch.counts))


def _resumed(small: Small, folder: Path, expected: str) -> str | None:
    """Goes on with a run to its end; what is wrong with that, or None."""
    has_checkpoint = (folder / "checkpoints" / "last").is_symlink()
    # All comes from the checkpoint: other first weights must end the same.
    again = Small(small.store, small.objective, small.workers, initial=99 if has_checkpoint else 5)
    ended = life(partial(_train, again, folder, None))
    if ended.fault or ended.signal:
        return f"it did not go on: {ended.fault or ended.signal}"
    try:
        digest = run_digest(folder)
    except (OSError, ValueError) as error:
        return f"it is not whole: {error}"
    return None if digest == expected else "other bits than undisturbed"


@dataclass(frozen=True)
class _Whole:
    """A training from its beginning to its end: its life, and the moments of each place."""

    life: Life
    counts: dict[str, int]


class _Undisturbed:
    """Runs that nothing disturbs, each made once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._digests: dict[str, str] = {}
        self._wholes: dict[int, _Whole] = {}

    def digest(self, small: Small) -> str:
        """Of the run of an objective, without workers."""
        if small.objective not in self._digests:
            self._run(Small(small.store, small.objective))
        return self._digests[small.objective]

    def whole(self, small: Small) -> _Whole:
        """How a masked autoencoder trains with so many workers."""
        if small.workers not in self._wholes:
            self._run(Small(small.store, workers=small.workers))
        return self._wholes[small.workers]

    def _run(self, small: Small) -> None:
        run = self._folder / f"alone-{small.objective}-{small.workers}"
        ended = life(partial(_train, small, run, None))
        assert ended.fault is None, ended.fault
        if small.workers == 0:
            self._digests[small.objective] = run_digest(run)
        if small.objective == "mae":
            self._wholes[small.workers] = _Whole(ended, json.loads(ended.said[0]))


@proof(rows=(26,), trials="signals and ends of jobs in every part of a run", quick=7, full=140,
       stretch=35)  # fmt: skip
def asked_to_stop(trials: range, seed: int, folder: Path) -> Tally:
    """A signal or the job's end is a checkpoint within a step, and the rest ends bit-equal."""
    tally, store, alone = Tally(), small_store(folder / "store"), _Undisturbed(folder)
    small = Small(store)
    expected, counts = alone.digest(small), alone.whole(small).counts
    before, within = _timed(small, folder / "timed")
    real = 0
    for trial in trials:
        ending = ENDINGS[trial % len(ENDINGS)]
        place = CLOCK if ending == JOB_END else PLACES[(trial + trial // 7) % len(PLACES)]
        share = float(generator(seed, trial, "moment").uniform(0, 1))
        come = _Coming(ending, place, share, counts, before, within)
        run = folder / f"run-{trial}"
        ended = life(partial(_stopping, small, run, come))
        is_real, broken = _stopped_well(run, ended.said, ended.fault)
        real += is_real
        broken = broken or _resumed(small, run, expected)
        tally.add(trial, f"{ending}: {'interrupted' if is_real else 'came too late'}", broken)
        shutil.rmtree(run)
    if real < REAL_SHARE * len(trials):
        tally.broken.append(f"{trials.start}: only {real} of {len(trials)} found it at work")
    return tally


def _timed(small: Small, folder: Path) -> tuple[float, float]:
    """Seconds until a training asks for its first batch, and from there to its end."""
    ended = life(partial(_clocks, small, folder))
    before, within = map(float, ended.said)
    shutil.rmtree(folder)
    return before, within


def _clocks(small: Small, folder: Path, say: Say) -> None:
    times = [time.monotonic()]
    train(small, folder, feed=partial(_Listening, lambda: times.append(time.monotonic())))
    times.append(time.monotonic())
    for early, late in itertools.pairwise(times):
        say(f"{late - early:.4f}")


@dataclass(frozen=True)
class _Coming:
    """What ends a training early, and when.

    Args:
        ending: a signal, or the end of the job.
        place: part of the run.
        share: of the moments of this place that lie before it.
        counts: moments of each place.
        before: seconds until the first batch.
        within: seconds from there on.
    """

    ending: str
    place: str
    share: float
    counts: dict[str, int]
    before: float
    within: float

    @property
    def at(self) -> tuple[str, int] | None:
        """Its place and number there; None where the clock decides."""
        if self.place == CLOCK:
            return None
        return self.place, int(self.share * self.counts[self.place])


def _stopping(small: Small, folder: Path, coming: _Coming, say: Say) -> None:
    """Trains while something is to come; says how it ended, and the task's calls behind that."""
    calls = [0, 0]
    has_come = threading.Event()
    due = float("inf")

    def come() -> None:
        # Before it, this thread could wait for its turn while the training went on unasked.
        try:
            os.kill(os.getpid(), getattr(signal, coming.ending))
        finally:
            has_come.set()

    def count(task: object, arguments: object) -> None:
        calls[has_come.is_set() or time.time() >= due] += 1

    watch = Moments(coming.at, come)

    def touch(task: Task) -> None:
        task.register_forward_pre_hook(count)
        watch.touch(task)

    for name in NAMES:
        # Whoever runs this may have the end of the terminal ignored; and what comes after the
        # training has ended must not end this process before it says so.
        signal.signal(getattr(signal, name), lambda *_: None)
    timer = threading.Timer(coming.share * coming.within, come)
    timer.daemon = True
    if coming.ending == JOB_END:
        due = time.time() + coming.before + coming.share * coming.within
        os.environ.update({**SLURM, "SLURM_JOB_END_TIME": f"{due + MARGIN_SECONDS:.3f}"})
    has_clock = coming.place == CLOCK and coming.ending != JOB_END
    start: Callable[[], None] = timer.start if has_clock else lambda: None
    try:
        train(small, folder, touch=touch, feed=lambda feed: _Listening(start, watch.feed(feed)))
        say(f"{int(ExitCode.DONE)} {calls[1]} done")
    except Interrupted as error:
        say(f"{int(error.exit_code)} {calls[1]} {error.what}")


@dataclass
class _Listening:
    """A feed that calls when it is asked for batches: the loop hears signals by then."""

    call: Callable[[], object]
    feed: Feed

    def batches(
        self, start: int, stop: int, **share: int
    ) -> Iterator[tuple[int, list[MicroBatch]]]:
        self.call()
        yield from self.feed.batches(start, stop, **share)


def _stopped_well(
    folder: Path, said: tuple[str, ...], fault: str | None
) -> tuple[bool, str | None]:
    """Whether the run was interrupted, and what is wrong with how it ended."""
    if fault is not None or len(said) != 1:
        return False, f"it ended with {fault or said}"
    code, calls, what = said[0].split(" ", 2)
    # The rest of its step, or the validation it came in, which is left at once.
    if int(calls) > ACCUMULATION:
        return True, f"{calls} forward passes after it: {what}"
    if int(code) == ExitCode.DONE:
        return False, None
    if int(code) != ExitCode.RESUMABLE:
        return True, f"exit code {code}"
    if read_status(folder)["state"] != "interrupted":
        return True, "`status.json` does not say so"
    step = (folder / "checkpoints" / "last").resolve().name
    if f"after step {step} of" not in what:
        return True, f"`{what}`, but the checkpoint is of step {step}"
    return True, None
