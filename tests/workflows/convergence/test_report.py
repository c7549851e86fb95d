"""The report of a convergence benchmark, whole and of a benchmark that still runs."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from synthetic_study import STEPS, record, rising, without_curve

from mim3d.evaluation.convergence import Record
from mim3d.workflows.convergence.report import write_report

SLOW = partial(rising, speed=0.5)
ABOUT = {"budget": "flop", "pre-training saw the judged images": True}


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """Two label fractions, three arms; one run died, one is not done yet."""
    made = [
        record(arm, curve, labels=labels, subjects=count, replicate=place, noise=0.02)
        for labels, count in (("0.1", 20), ("1.0", 195))
        for arm, curve in (("mae", rising), ("simclr", SLOW), ("scratch", SLOW))
        for place in range(3)
    ]
    made[1] = without_curve(made[1], "the loss is not finite")
    del made[-1]
    return made


def write(records: list[Record], folder: Path, **settings: object) -> dict[str, Path]:
    files = write_report(records, folder, resamples=100, **settings)  # type: ignore[arg-type]
    return {path.name: path for path in files}


@pytest.fixture(scope="module")
def files(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of those records."""
    return write(records, tmp_path_factory.mktemp("report"), about=ABOUT)


def test_a_report_has_five_files(files: dict[str, Path]) -> None:
    assert set(files) == {
        "convergence.json", "convergence.csv", "convergence.md", "curves.png", "labels.png",
    }  # fmt: skip
    assert all(path.is_file() for path in files.values())


def test_the_json_holds_every_record_and_number(
    records: list[Record], files: dict[str, Path]
) -> None:
    content = json.loads(files["convergence.json"].read_text())
    again = [Record.from_json(one) for one in content["records"]]
    arm = content["labels"]["1.0"]["arms"]["mae"]
    rounded = [
        replace(one, dice=tuple(tuple(round(value, 5) for value in row) for row in one.dice))
        for one in records
    ]
    assert sorted(again, key=str) == sorted(rounded, key=str)
    assert content["about"] == ABOUT
    assert content["labels"]["1.0"]["best_contrastive"] == "simclr"
    assert set(arm["faster_than"]) == {"scratch", "simclr"}
    assert set(arm["faster_than"]["scratch"]) == {"0.8", "0.9", "0.95"}
    assert 1.8 < arm["faster_than"]["scratch"]["0.9"]["value"] < 2.2
    assert arm["curve"]["steps"] == list(STEPS)
    assert content["dead"][0]["why"] == "the loss is not finite"
    assert content["versions"]["numpy"]


def test_the_csv_has_one_row_a_run_and_step(files: dict[str, Path]) -> None:
    with files["convergence.csv"].open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    dead = [row for row in rows if row["dead"]]
    run = [
        row for row in rows if (row["arm"], row["labels"], row["replicate"]) == ("mae", "1.0", "0")
    ]
    assert len(rows) == 16 * len(STEPS) + 1
    assert [(row["step"], row["dice"]) for row in dead] == [("", "")]
    assert [int(row["step"]) for row in run] == list(STEPS)
    assert float(run[-1]["dice"]) == pytest.approx(0.85, abs=0.03)


@pytest.mark.parametrize(
    "words",
    [
        "## Speed-up at 0.90 of the best Dice of `scratch`",
        "## Labels 0.1: 20 subjects with labels",
        "less `scratch`",
        "faster than `simclr` at 0.90",
        "mean height, log steps",
        "## Label efficiency",
        "## What pre-training costs",
        "## Encoder use",
        "## Pre-training runs",
        "## Dead runs: 1 of 17, in no number above",
        "| mae | 0.1 | 1 | the loss is not finite |",
        "| budget | flop |",
        "| pre-training saw the judged images | yes |",
        "| judged | 30 cases of 30 subjects |",
        "not every arm has the same replicates",
        "fewer than three replicates of `mae`",
    ],
)
def test_the_markdown_says(files: dict[str, Path], words: str) -> None:
    assert words in files["convergence.md"].read_text()


def test_every_table_row_has_as_many_cells_as_its_head(files: dict[str, Path]) -> None:
    text = files["convergence.md"].read_text()

    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) >= 8
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_a_report_is_the_same_in_whatever_order_runs_ended(
    records: list[Record], files: dict[str, Path], tmp_path: Path
) -> None:
    again = write(records[::-1], tmp_path, about=ABOUT, arms=("scratch", "mae", "simclr"))

    for name in files:
        assert files[name].read_bytes() == again[name].read_bytes()


def test_arms_stand_in_the_order_that_was_asked_for(records: list[Record], tmp_path: Path) -> None:
    files = write(records, tmp_path, arms=("scratch", "simclr", "mae"))

    assert list(json.loads(files["convergence.json"].read_text())["arms"]) == [
        "scratch", "simclr", "mae",
    ]  # fmt: skip


@pytest.mark.parametrize("what", ["nothing", "dead runs"])
def test_a_benchmark_without_a_sound_run_is_reported_without_pictures(
    records: list[Record], tmp_path: Path, what: str
) -> None:
    gone = [] if what == "nothing" else [without_curve(record, "gone") for record in records]

    files = write(gone, tmp_path)

    assert set(files) == {"convergence.json", "convergence.csv", "convergence.md"}


def test_a_benchmark_whose_reference_has_not_run_is_reported(
    records: list[Record], tmp_path: Path
) -> None:
    some = [one for one in records if one.arm != "scratch"]

    text = write(some, tmp_path)["convergence.md"].read_text()

    assert "no sound run of `scratch`, hence no target" in text


def test_one_replicate_is_reported_as_one(records: list[Record], tmp_path: Path) -> None:
    text = write([replace(one, zeroed=None) for one in records if not one.replicate], tmp_path)[
        "convergence.md"
    ].read_text()

    assert "with one it holds for that run alone" in text
    assert "## Encoder use" not in text
    assert "**" not in text.split("## Speed-up")[1]
