"""Every promise of RELIABILITY.md, tried: a part of the trials here, all of them where slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability import proofs  # noqa: F401
from tests.reliability.proof import PROOFS, SEED, Proof, Unavailable

EVERY = [pytest.param(proof, id=name) for name, proof in PROOFS.items()]


def _holds(proof: Proof, trials: range, folder: Path) -> None:
    try:
        tally = proof.run(trials, SEED, folder)
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert not tally.broken, "\n".join(tally.broken[:20])
    assert sum(tally.counts.values()) >= len(trials), "some trials were not counted"


@pytest.mark.parametrize("proof", EVERY)
def test_a_part_of_the_trials_holds(proof: Proof, tmp_path: Path) -> None:
    _holds(proof, range(proof.quick), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("proof", EVERY)
def test_every_trial_holds(proof: Proof, tmp_path: Path) -> None:
    for trials in proof.stretches():
        folder = tmp_path / str(trials.start)
        folder.mkdir()
        _holds(proof, trials, folder)
