"""Runs the full tier and writes `RELIABILITY.md`; goes on where it was interrupted.

python -m tests.reliability --out runs/reliability
python -m tests.reliability --proof cut-streams --trials 4711
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from mim3d.foundation.atomic import write_text
from mim3d.foundation.reporting import PlainReporter, duration
from tests.reliability import proofs  # noqa: F401
from tests.reliability.proof import PROOFS, SEED, Proof, Tally, Unavailable
from tests.reliability.report import (
    Stretch,
    read_record,
    record_path,
    report,
    source_digest,
    write_record,
)

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str] | None = None) -> int:
    """0 if every promise that was tried held."""
    asked = _parser().parse_args(arguments)
    unknown = sorted(set(asked.proof) - set(PROOFS))
    if unknown:
        known = ", ".join(PROOFS)
        print(f"error: `{unknown[0]}` is no proof; there are {known}", file=sys.stderr)
        return 2
    chosen = [PROOFS[name] for name in asked.proof] or list(PROOFS.values())
    if asked.trials is not None:
        return _repeat(chosen, asked.trials, asked.seed)
    if asked.out is None:
        print("error: name a folder for the records with --out", file=sys.stderr)
        return 2
    if not asked.report_only:
        run_all(chosen, asked.out, asked.seed, asked.shard, renew=asked.renew)
    text, holds = report(asked.out, asked.seed)
    write_text(asked.report, text)
    told = "" if holds else ": not every promise was tried in full and held by this code"
    print(f"wrote {asked.report}{told}")
    return 0 if holds else 1


def run_all(
    chosen: list[Proof], out: Path, seed: int, shard: tuple[int, int] = (0, 1), *, renew: bool
) -> None:
    """Runs and records all stretches that are not recorded yet.

    Args:
        chosen: which proofs.
        out: the folder of the records.
        seed: of all trials.
        shard: every n-th stretch from the i-th one on; processes share one folder.
        renew: whether what another state of the code, or another seed, recorded is run again.
    """
    source = source_digest()
    todo = []
    every = [(proof, trials) for proof in chosen for trials in proof.stretches()]
    for proof, trials in every[shard[0] :: shard[1]]:
        path = record_path(out, proof, trials)
        old = read_record(path)
        is_stale = old is not None and renew and (old.source != source or old.seed != seed)
        if old is None or is_stale:
            todo.append((proof, trials, path))
    reporter = PlainReporter()
    began = time.monotonic()
    for done, (proof, trials, path) in enumerate(todo):
        spent = time.monotonic() - began
        left = f", {duration(spent / done * (len(todo) - done))} left" if done else ""
        reporter.say(f"{done + 1} of {len(todo)}: {proof.name} {trials.start}{left}")
        stretch = run_stretch(proof, trials, seed, source)
        for line in stretch.broken[:5]:
            reporter.warn(f"{proof.name} broke its promise in trial {line}")
        write_record(path, stretch)


def run_stretch(proof: Proof, trials: range, seed: int, source: str) -> Stretch:
    """Runs one stretch in a temporary folder."""
    began = time.monotonic()
    tally, reason = Tally(), None
    with tempfile.TemporaryDirectory(prefix="reliability-") as folder:
        try:
            tally = proof.run(trials, seed, Path(folder))
        except Unavailable as error:
            reason = f"not run here: {error}"
        except Exception as error:
            tally.add(trials.start, "raised", f"the proof raised {type(error).__name__}: {error}")
    return Stretch(
        start=trials.start,
        stop=trials.stop,
        seed=seed,
        seconds=round(time.monotonic() - began, 2),
        date=time.strftime("%Y-%m-%d"),
        source=source,
        counts=dict(tally.counts),
        broken=tally.broken,
        notes=tally.notes,
        unavailable=reason,
    )


def _repeat(chosen: list[Proof], trials: range, seed: int) -> int:
    broken = 0
    for proof in chosen:
        stretch = run_stretch(proof, trials, seed, source_digest())
        outcomes = stretch.unavailable or stretch.counts
        print(f"{proof.name} {trials.start}-{trials.stop - 1}: {outcomes}, {stretch.seconds} s")
        for line in [*stretch.notes, *stretch.broken]:
            print(f"  {line}")
        broken += len(stretch.broken)
    return 1 if broken else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder of the records")
    parser.add_argument("--report", type=Path, default=ROOT / "RELIABILITY.md")
    parser.add_argument("--report_only", action="store_true", help="run nothing")
    parser.add_argument("--proof", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--trials", type=_numbers, help="`4711` or `100-199`: run these, print")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--shard", type=_shard, default=(0, 1), metavar="I/N")
    parser.add_argument("--renew", action="store_true", help="again what older code recorded")
    return parser


def _numbers(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _shard(text: str) -> tuple[int, int]:
    part, count = map(int, text.split("/"))
    if not 0 <= part < count:
        raise ValueError("a shard is I/N with 0 <= I < N")
    return part, count


if __name__ == "__main__":
    sys.exit(main())
