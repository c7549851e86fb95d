"""The table of Dice by step: means and differences worked out by hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from mim3d.evaluation.convergence import Pretraining, Record

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "spacing" / "by_step.py"


@pytest.fixture(scope="module")
def report() -> ModuleType:
    found = importlib.util.spec_from_file_location("by_step", SCRIPT)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def record(arm: str, replicate: int, dice: tuple[tuple[float, ...], ...]) -> Record:
    before = None
    if arm != "scratch":
        before = Pretraining(f"{arm}-seed{replicate}", "mae", replicate, 4, 1.0, 1.0, None, {})
    return Record(
        arm=arm, labels="2", subjects=2, replicate=replicate, fold=None, steps=(0, 10),
        cases=("a", "b", "c"), case_subjects=("a", "b", "c"), dice=dice, zeroed=None,
        seconds=1.0, flop=1.0, lr=0.1, kind="scratch" if before is None else "masked",
        pretraining=before, dead=None,
    )  # fmt: skip


RECORDS = [
    record("scratch", 0, ((0.0, 0.1, 0.2), (0.3, 0.4, 0.5))),
    record("scratch", 1, ((0.2, 0.3, 0.4), (0.5, 0.6, 0.7))),
    record("mae-16-at-8", 0, ((0.1, 0.2, 0.6), (0.3, 0.4, 0.5))),
    record("mae-16-at-8", 1, ((0.5, 0.3, 0.4), (0.5, 0.6, 1.0))),
]
PAIRS = [("scratch", None), ("mae-16-at-8", "scratch"), ("mae-8", "scratch")]


def test_every_step_has_the_mean_and_what_it_is_above_the_partner(report: ModuleType) -> None:
    rows = report.table_of(RECORDS, PAIRS)

    found = [(row["arm"], row["step"], round(row["dice"]["value"], 9)) for row in rows]
    # Means over replicates of means over cases: (0.1 + 0.3) / 2, (0.3 + 0.4) / 2 and so on.
    assert found == [
        ("scratch", 0, 0.2), ("scratch", 10, 0.5),
        ("mae-16-at-8", 0, 0.35), ("mae-16-at-8", 10, 0.55),
    ]  # fmt: skip
    assert [round(row["more"]["value"], 9) for row in rows[2:]] == [0.15, 0.05]


def test_what_is_the_same_in_every_run_has_no_width(report: ModuleType) -> None:
    """Differences are of the same replicates and cases: what they share takes no part."""
    shifted = [
        record("scratch", 0, ((0.0, 0.1, 0.9), (0.3, 0.4, 0.5))),
        record("mae-8", 0, ((0.1, 0.2, 1.0), (0.3, 0.4, 0.5))),
        record("scratch", 1, ((0.7, 0.3, 0.4), (0.5, 0.6, 0.7))),
        record("mae-8", 1, ((0.8, 0.4, 0.5), (0.5, 0.6, 0.7))),
    ]

    row = report.table_of(shifted, [("mae-8", "scratch")])[0]

    assert row["more"]["low"] == pytest.approx(0.1)
    assert row["more"]["high"] == pytest.approx(0.1)
    assert row["dice"]["high"] - row["dice"]["low"] > 0.1


def test_the_table_has_a_column_a_step_and_a_line_a_comparison(report: ModuleType) -> None:
    lines = report.markdown(report.table_of(RECORDS, PAIRS)).splitlines()

    assert "| arm | step 0 | step 10 |" in lines
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")][2:] == [
        "| scratch", "| mae-16-at-8", "| mae-16-at-8 less scratch",
    ]  # fmt: skip


def test_partners_are_those_of_the_benchmark(report: ModuleType) -> None:
    assert report.partners_of(SCRIPT.with_name("patch.yaml")) == [
        ("scratch", None),
        ("mae-8", "scratch"),
        ("mae-16-at-8", "scratch"),
        ("scratch-16x16x4", None),
        ("mae-8-at-16x16x4", "scratch-16x16x4"),
    ]
