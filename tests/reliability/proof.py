"""What a proof of reliability is: a promise, numbered trials, and what became of them.

A proof is a function of a range of trial numbers. Everything a trial does follows from the seed and
its number (`foundation.randomness.generator(seed, trial, purpose)`), so that any stretch can be run
anywhere, a long proof goes on where it stopped, and a trial that broke its promise is run again by
its number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

SEED = 20_260


class Unavailable(Exception):
    """This machine cannot run the proof; says why in half a sentence."""


@dataclass
class Tally:
    """What became of trials.

    Args:
        counts: how many trials had each outcome, in the words of the table (`equal`, `refused`).
        broken: one line a trial that broke the promise, beginning with its number.
        notes: measured facts for the table, for example `peak 1.1 x the declared size`.
    """

    counts: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, trial: int, outcome: str, broken: str | None = None) -> None:
        """Counts one trial; `broken` says what it did that it should not have."""
        self.counts[outcome] += 1
        if broken is not None:
            self.broken.append(f"{trial}: {broken}")

    def __iadd__(self, other: Tally) -> Tally:
        self.counts += other.counts
        self.broken += other.broken
        self.notes += [note for note in other.notes if note not in self.notes]
        return self


Run = Callable[[range, int, Path], Tally]


@dataclass(frozen=True)
class Proof:
    """One promise and how it is tried.

    Args:
        name: its slug, unique: `cut-streams`.
        rows: the failure modes it stands for, numbers of `rows.ROWS`.
        trials: what one trial is, in the plural: `streams cut at a random byte`.
        quick: trials in the default suite.
        full: trials of the full tier.
        stretch: trials that are run and recorded together in the full tier.
        run: `(numbers of the trials, seed, an empty folder) -> Tally`.
    """

    name: str
    rows: tuple[int, ...]
    trials: str
    quick: int
    full: int
    stretch: int
    run: Run

    def stretches(self) -> list[range]:
        """The full tier in parts."""
        starts = range(0, self.full, self.stretch)
        return [range(start, min(start + self.stretch, self.full)) for start in starts]


PROOFS: dict[str, Proof] = {}
"""By name, in the order of the modules of `proofs`."""


def proof(
    *, rows: tuple[int, ...], trials: str, quick: int, full: int, stretch: int | None = None
) -> Callable[[Run], Run]:
    """Enters a function among the proofs, under its own name with dashes."""

    def enter(run: Run) -> Run:
        name = run.__name__.replace("_", "-")
        if name in PROOFS and PROOFS[name].run.__module__ != run.__module__:
            raise ValueError(f"two proofs are called `{name}`")
        PROOFS[name] = Proof(name, rows, trials, quick, full, stretch or full, run)
        return run

    return enter
