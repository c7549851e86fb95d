"""Rows 1 to 3 and 5: cut, damaged, divided and exploding streams."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest import mock

from mim3d.data.files.deflate import PIECE, DeflateStream
from mim3d.data.files.streams import MOST_EXCESS
from mim3d.foundation.randomness import generator
from tests.data.files.making import nifti, zipped
from tests.reliability.bombs import bomb
from tests.reliability.child import judged
from tests.reliability.injuries import cut_place, injured
from tests.reliability.proof import Tally, proof
from tests.reliability.stream_sources import (
    LARGE,
    SMALL,
    Source,
    compressed,
    plain,
    truth,
    verdict,
)

MiB = 1 << 20


def tallied(trials: range, judge: Callable[[int], str], good: set[str], **limits: int) -> Tally:
    """Judges trials in children; an outcome that is not among the good ones breaks the promise."""
    tally = Tally()
    for trial, found in zip(trials, judged(trials, judge, **limits), strict=True):
        said = found.fault or found.outcome
        broken = None if found.fault is None and found.outcome.split(":")[0] in good else said
        tally.add(trial, "broken" if broken else found.outcome.split(":")[0], broken)
    return tally


def _source(trial: int, seed: int, choices: Callable[..., tuple[Source, ...]]) -> Source:
    """Every kind of file in turn, small and large ones."""
    shape = LARGE if trial % 2 else SMALL
    every = choices(shape, seed)
    return every[trial // 2 % len(every)]


@proof(rows=(1,), trials="files cut at a place", quick=300, full=10_000, stretch=1_000)
def cut_streams(trials: range, seed: int, folder: Path) -> Tally:
    """A file that was cut short, in whatever format and wherever, is refused."""

    def both(shape: tuple[int, int, int], seed: int) -> tuple[Source, ...]:
        return (*compressed(shape, seed), *plain(shape, seed))

    def judge(trial: int) -> str:
        source = _source(trial, seed, both)
        place = cut_place(source.raw, source.start, generator(seed, trial, "cut"))
        if source.name == "o.nrrd":
            # Written as text, the last number cut is a number: nothing could tell.
            place = min(place, source.raw.rindex(b"\n"))
        path = source.put(folder, source.raw[:place])
        shape = LARGE if trial % 2 else SMALL
        found = verdict(path, truth(shape, seed))
        return f"{found}: {source.name} at {place} of {len(source.raw)}"

    return tallied(trials, judge, {"refused"})


@proof(rows=(2,), trials="damaged streams", quick=500, full=10_000, stretch=1_000)
def damaged_streams(trials: range, seed: int, folder: Path) -> Tally:
    """No voxel of a compressed file is handed out before its check value agrees.

    What is read of a damaged file is equal to the truth, bit for bit, or nothing.
    """

    def judge(trial: int) -> str:
        source = _source(trial, seed, compressed)
        name, raw = injured(source.raw, source.start, generator(seed, trial, "injury"))
        path = source.put(folder, raw)
        shape = LARGE if trial % 2 else SMALL
        return f"{verdict(path, truth(shape, seed))}: {source.name}, {name}"

    return tallied(trials, judge, {"equal", "refused"})


@proof(rows=(3,), trials="streams divided into members", quick=50, full=500, stretch=250)
def divided_streams(trials: range, seed: int, folder: Path) -> Tally:
    """A stream of several members, under any name, whatever lies behind it, is read whole."""

    def judge(trial: int) -> str:
        draw = generator(seed, trial, "members")
        voxels = truth(LARGE if trial % 4 == 0 else SMALL, seed)
        raw = nifti(voxels, version=1 + trial % 2)
        cuts = sorted(draw.integers(0, len(raw) + 1, int(draw.integers(1, 9))).tolist())
        ends = zip([0, *cuts], [*cuts, len(raw)], strict=True)
        parts = [zipped(raw[a:b], int(draw.integers(10))) for a, b in ends]
        behind = [b"", bytes(300), draw.bytes(300)][int(draw.integers(3))]
        name = ["x.nii.gz", "x.nii", "x.dcm", "x"][int(draw.integers(4))]
        path = folder / name
        path.write_bytes(b"".join(parts) + behind)
        return verdict(path, voxels)

    return tallied(trials, judge, {"equal"})


@proof(rows=(5,), trials="bombs", quick=20, full=400, stretch=200)
def bombs(trials: range, seed: int, folder: Path) -> Tally:
    """A bomb is stopped at 1 MiB behind the voxels, and costs no memory and no time.

    Up to 10 GiB of zeros or voxels behind the volume, in its stream or in a member of its own,
    or in front of it under a header that declares them.
    """

    def judge(trial: int) -> str:
        draw = generator(seed, trial, "bomb")
        name, raw, wanted = bomb(draw, truth(SMALL, seed))
        path = folder / name
        path.write_bytes(raw)
        given = 0
        fill = DeflateStream.fill

        def counted(self: DeflateStream, target: memoryview) -> int:
            nonlocal given
            found = fill(self, target)
            given += found
            return found

        with mock.patch.object(DeflateStream, "fill", counted):
            found = verdict(path, truth(SMALL, seed))
        return found if given <= wanted + MOST_EXCESS + PIECE else f"unpacked: {given} bytes"

    return tallied(trials, judge, {"refused"}, seconds=1, spare_bytes=64 * MiB)
