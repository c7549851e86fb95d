"""Row 21: a disk that is full, read-only, forbidden, failing or gone is told; nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from mim3d.foundation.errors import ExitCode
from mim3d.foundation.randomness import generator
from tests.reliability import mounts
from tests.reliability.killing import Say, life
from tests.reliability.proof import Tally, Unavailable, proof
from tests.reliability.writers import Writer, contents, make_writers

SIZES = 20
AMPLE = 64 << 20


@proof(
    rows=(21,), trials="writers on a disk that fills up (20 sizes x 4 writers)", quick=8, full=80
)
def full_disks(trials: range, seed: int, folder: Path) -> Tally:
    """A full disk gives one sentence with what is needed and free; what was there before stays."""
    return _in_own_mounts(partial(_fill, trials, seed), folder)


@proof(rows=(21,), trials="writers whose disk refuses (7 ways x 4 writers)", quick=7, full=84)
def refusing_disks(trials: range, seed: int, folder: Path) -> Tally:
    """A disk that is read-only, gone, failing or forbidden is told; what was there stays."""
    return _in_own_mounts(partial(_refuse, trials, seed), folder)


Trials = Callable[[list[Writer], Path, Callable[[int, str, str | None], None]], None]


def _in_own_mounts(work: Trials, folder: Path) -> Tally:
    """Runs trials in a child that may mount, and takes what it says."""
    writers = make_writers(folder)
    disk = folder / "disk"
    disk.mkdir()

    def child(say: Say) -> None:
        mounts.own_mounts()
        work(writers, disk, lambda *told: say(json.dumps(told)))

    told = life(child)
    if "Unavailable" in (told.fault or ""):
        raise Unavailable(str(told.fault).partition(": ")[2])
    tally = Tally()
    for line in told.said:
        trial, outcome, broken = json.loads(line)
        tally.add(trial, outcome, broken)
    if told.fault or told.signal:
        tally.broken.append(f"the child of the trials ended: {told.fault or told.signal}")
    return tally


def _fill(
    trials: range, seed: int, writers: list[Writer], disk: Path,
    tell: Callable[[int, str, str | None], None],
) -> None:  # fmt: skip
    for trial in trials:
        writer = writers[trial % len(writers)]
        random = generator(seed, trial, "full-disk")
        with _mounted(disk, writer) as out:
            held, size = mounts.used(disk), _extra(writer, trial // len(writers) % SIZES, random)
            mounts.resize(disk, held + size)
            outcome, broken = _judged(writer, out)
            mounts.resize(disk, AMPLE)
            broken = broken or _goes_on(writer, out)
            tell(trial, f"{writer.name}: {outcome}", broken and f"{size:,} bytes free: {broken}")


def _extra(writer: Writer, place: int, random: np.random.Generator) -> int:
    """Bytes to spare, from none to what all of the newer version takes; small ones are denser."""
    need = sum(len(c) for c in contents(writer.versions[1]).values() if isinstance(c, bytes))
    share = (place + float(random.random())) / SIZES
    return int(need * share**2) // 4096 * 4096


class _mounted:
    """A file system with the older version on it."""

    def __init__(self, disk: Path, writer: Writer) -> None:
        self._disk, self._writer = disk, writer

    def __enter__(self) -> Path:
        mounts.mount(self._disk, AMPLE)
        out = self._disk / "deep" / "out"
        shutil.copytree(self._writer.versions[0], out, symlinks=True)
        return out

    def __exit__(self, *error: object) -> None:
        mounts.detach(self._disk)


def _judged(
    writer: Writer, out: Path, prepare: Callable[[], None] = lambda: None, *, is_lost: bool = False
) -> tuple[str, str | None]:
    """Writes the newer version in a child; what became of it, and what is wrong with that."""

    def write(say: Say) -> None:
        prepare()
        code, said = writer.write(out, 1)
        say(json.dumps([code, said]))

    ended = life(write)
    if ended.signal or ended.fault:
        return "died", f"it ended by {ended.signal or ended.fault}"
    code, said = json.loads(ended.said[0])
    lost = None if is_lost else writer.lost(out)
    if lost:
        return "lost", f"{lost} (exit code {code})"
    if code == ExitCode.DONE:
        silent = contents(out) != contents(writer.versions[1])
        return "written", "exit code 0, and not all is written" if silent else None
    return "told", _bad_words(code, said)


def _bad_words(code: int, said: str) -> str | None:
    """Whether an error is told otherwise than in one sentence and a hint."""
    told = said[said.rfind("error: ") :].strip()
    if code != ExitCode.RESOURCES:
        return f"exit code {code}: {said[-300:]}"
    sentence, _, hint = told.partition("\n\nhint: ")
    if "Traceback" in said or not hint or "\n" in sentence or "\n" in hint:
        return f"no sentence with a hint: {said[-300:]}"
    if sentence.startswith("error: no room") and "MiB are free" not in sentence:
        return f"what is free is not said: {sentence}"
    return None


def _goes_on(writer: Writer, out: Path) -> str | None:
    """With room again, the same command ends as if nothing had been."""
    code, said = writer.write(out, 1)
    if code != ExitCode.DONE:
        return f"going on ended with {code}: {said[-300:]}"
    found, wanted = contents(out), contents(writer.versions[1])
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            return f"after going on `{name}` differs"
    return None


def _refuse(
    trials: range, seed: int, writers: list[Writer], disk: Path,
    tell: Callable[[int, str, str | None], None],
) -> None:  # fmt: skip
    ways = list(_ways(disk))
    for trial in trials:
        writer = writers[trial % len(writers)]
        random = generator(seed, trial, "refusing-disk")
        way = ways[trial % len(ways)]
        with _mounted(disk, writer) as out:
            outcome, broken = way(writer, out, random)
            name = f"{way.__name__.strip('_').replace('_', ' ')}: {outcome}"
            tell(trial, name, broken and f"{writer.name}: {broken}")


Way = Callable[[Writer, Path, np.random.Generator], tuple[str, str | None]]


def _ways(disk: Path) -> Iterator[Way]:
    def read_only(writer: Writer, out: Path, random: np.random.Generator) -> tuple[str, str | None]:
        mounts.make_read_only(disk)
        return _judged(writer, out)

    def no_permission(
        writer: Writer, out: Path, random: np.random.Generator
    ) -> tuple[str, str | None]:
        for item in (disk, *disk.rglob("*")):
            if not item.is_symlink():
                item.chmod(0o755 if item.is_dir() else 0o644)
        return _judged(writer, out, partial(os.setuid, 65534))

    def gone(writer: Writer, out: Path, random: np.random.Generator) -> tuple[str, str | None]:
        # An event of the child's own, at any of its first operations on the disk.
        at = int(random.integers(60))
        vanish = partial(_at, out, at, partial(mounts.detach, disk))
        outcome = _judged(writer, out, vanish, is_lost=True)
        for item in disk.iterdir():
            shutil.rmtree(item)
        if not os.path.ismount(disk):
            mounts.mount(disk, AMPLE)  # for the way out
        return outcome

    def too_large_a_file(
        writer: Writer, out: Path, random: np.random.Generator
    ) -> tuple[str, str | None]:
        most = int(random.integers(40_000))
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most, most))
        return _judged(writer, out, limit)

    yield from (read_only, no_permission, gone, too_large_a_file)
    for number in (errno.EIO, errno.EDQUOT, errno.ESTALE):
        yield _failing(number)


def _failing(number: int) -> Way:
    """The n-th flush of a file fails: with what the device found when it wrote at last."""

    def fail(writer: Writer, out: Path, random: np.random.Generator) -> tuple[str, str | None]:
        left = [int(random.integers(8))]

        def flush(descriptor: int) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(number, os.strerror(number))

        return _judged(writer, out, partial(setattr, os, "fsync", flush))

    fail.__name__ = errno.errorcode[number]
    return fail


def _at(out: Path, number: int, act: Callable[[], None]) -> None:
    """Before this process's n-th look at something below `out`, `act` happens once."""
    import sys

    left = [number]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith(("open", "os.")) and str(out) in str(arguments[:1]):
            left[0] -= 1
            if left[0] == -1:
                act()

    sys.addaudithook(hook)
