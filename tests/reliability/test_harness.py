"""The harness finds what it is there for: broken promises, missing trials, other code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mim3d.foundation.randomness import generator
from tests.reliability import __main__ as program
from tests.reliability.proof import PROOFS, SEED, Tally, Unavailable, proof
from tests.reliability.report import recorded, report
from tests.reliability.rows import GROUPS, ROWS

calls: list[tuple[int, int]] = []


@pytest.fixture(autouse=True)
def two_proofs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two proofs of our own instead of the real ones; the first breaks its promise now and then."""
    before = dict(PROOFS)
    PROOFS.clear()
    calls.clear()

    @proof(rows=(1, 2), trials="drawn numbers", quick=2, full=50, stretch=20)
    def small_numbers(trials: range, seed: int, folder: Path) -> Tally:
        """No number is above nine tenths.

        This paragraph is not in the table.
        """
        calls.append((trials.start, trials.stop))
        tally = Tally(notes=["drawn evenly"])
        for trial in trials:
            number = generator(seed, trial, "number").random()
            too_large = f"it is {number:.2f}" if number > 0.9 else None
            tally.add(trial, "large" if too_large else "small", too_large)
        return tally

    @proof(rows=(35,), trials="machines", quick=1, full=1)
    def absent(trials: range, seed: int, folder: Path) -> Tally:
        """Nothing is sent."""
        raise Unavailable("no second machine")

    yield
    PROOFS.clear()
    PROOFS.update(before)


def broken_numbers(seed: int) -> list[int]:
    return [n for n in range(50) if generator(seed, n, "number").random() > 0.9]


def run(folder: Path, *more: str) -> int:
    return program.main(["--out", str(folder), "--report", str(folder / "R.md"), *more])


def test_the_report_counts_every_trial_and_fails_where_a_promise_fails(tmp_path: Path) -> None:
    assert run(tmp_path, "--seed", "3") == 1
    expected = broken_numbers(3)
    assert expected, "choose a seed that breaks the promise"
    text = (tmp_path / "R.md").read_text()
    small = 50 - len(expected)
    assert f"small {small}, large {len(expected)}; drawn evenly | **{len(expected)}** |" in text
    assert "`small-numbers`: no number is above nine tenths | 50 drawn numbers |" in text
    assert "not run here: no second machine" in text
    assert f"**50 trials of 2 proofs; {len(expected)} broke a promise.**" in text
    assert "Not run, or not in full: `absent`." in text


def test_what_is_recorded_is_not_run_again_unless_the_code_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path)
    assert calls == [(0, 20), (20, 40), (40, 50)]
    (tmp_path / "small-numbers" / "000020-000040.json").unlink()
    run(tmp_path)
    assert calls[3:] == [(20, 40)]
    monkeypatch.setattr(program, "source_digest", lambda: "another")
    run(tmp_path)
    assert len(calls) == 4
    run(tmp_path, "--renew")
    assert calls[4:] == [(0, 20), (20, 40), (40, 50)]


def test_shards_share_the_work_and_any_cut_gives_the_same_trials(tmp_path: Path) -> None:
    for part in ("0/2", "1/2"):
        run(tmp_path, "--seed", "3", "--shard", part)
    assert sorted(calls) == [(0, 20), (20, 40), (40, 50)]
    lines = [line for s in recorded(tmp_path, PROOFS["small-numbers"], 3) for line in s.broken]
    assert [int(line.split(":")[0]) for line in lines] == broken_numbers(3)


def test_a_broken_trial_is_repeated_by_its_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number = broken_numbers(3)[0]
    again = ["--proof", "small-numbers", "--seed", "3", "--trials", str(number)]
    assert program.main(again) == 1
    assert f"{number}: it is 0.9" in capsys.readouterr().out
    assert program.main(["--proof", "no-such"]) == 2


def test_a_record_of_an_earlier_state_is_said_in_the_report(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "small-numbers" / "000000-000020.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "source": "earlier"}))
    text, holds = report(tmp_path, SEED)
    assert "for 3 of 4 stretches, an earlier state for the rest" in text
    assert not holds


def test_records_of_another_seed_do_not_count(tmp_path: Path) -> None:
    run(tmp_path, "--seed", "3")
    text, holds = report(tmp_path, 4)
    assert "**0 trials of 2 proofs; 0 broke a promise.**" in text
    assert not holds


def test_a_proof_that_raises_is_a_broken_promise(tmp_path: Path) -> None:
    @proof(rows=(3,), trials="errors", quick=1, full=1)
    def raising(trials: range, seed: int, folder: Path) -> Tally:
        """Nothing is raised."""
        raise OSError("no such thing")

    assert run(tmp_path, "--proof", "raising") == 1
    assert "| 1 errors | raised 1 | **1** |" in (tmp_path / "R.md").read_text()


def test_every_row_is_in_one_group() -> None:
    numbers = [number for group in GROUPS.values() for number in group]
    assert numbers == sorted(ROWS) == list(range(1, 40))
