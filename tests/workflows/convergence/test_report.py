"""The report of a convergence benchmark, whole and of a benchmark that still runs."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from synthetic_study import STEPS, from_seed, pretraining, record, rising, without_curve

from mim3d.evaluation.convergence import Record
from mim3d.workflows.convergence.report import write_report

SLOW = partial(rising, speed=0.5)
ABOUT: dict[str, object] = {
    "budget": "flop",
    "pre-training saw the judged images": True,
    "recipe": {"finetune": {"training": {"steps": 640}}},
}


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
    known = replace(pretraining("simclr"), machine="H200, bf16", made_by="mim3d 1.0 at abc")
    return [
        replace(
            one,
            machine="EPYC, 1 thread, bf16",
            made_by="mim3d 1.1 at def",
            pretraining=replace(known, run=f"simclr-seed{one.replicate}"),
        )
        if one.arm == "simclr"
        else one
        for one in made
    ]


def write(records: list[Record], folder: Path, **settings: object) -> dict[str, Path]:
    files = write_report(records, folder, resamples=100, **settings)  # type: ignore[arg-type]
    return {path.name: path for path in files}


@pytest.fixture(scope="module")
def files(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report of those records."""
    return write(records, tmp_path_factory.mktemp("report"), about=ABOUT)


def test_a_report_has_six_files(files: dict[str, Path]) -> None:
    assert set(files) == {
        "convergence.json", "convergence.csv", "numbers.csv", "convergence.md", "curves.png",
        "labels.png",
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


def test_the_numbers_are_those_of_the_json_a_row_each(files: dict[str, Path]) -> None:
    content = json.loads(files["convergence.json"].read_text())["labels"]["1.0"]
    with files["numbers.csv"].open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["labels"] == "1.0"]

    def found(**wanted: str) -> dict[str, float]:
        (row,) = [row for row in rows if wanted.items() <= row.items()]
        return {name: float(row[name]) for name in ("value", "low", "high")}

    def told(estimate: dict[str, float]) -> dict[str, float]:
        return {name: estimate[name] for name in ("value", "low", "high")}

    mae, simclr = content["arms"]["mae"], content["arms"]["simclr"]
    (less,) = [
        row for row in content["comparisons"] if (row["arm"], row["other"]) == ("mae", "simclr")
    ]
    assert found(arm="mae", measure="final") == told(mae["final"])
    assert found(arm="simclr", measure="mean_height_steps") == told(simclr["mean_height_steps"])
    assert found(arm="mae", measure="steps_to", target="0.95") == told(mae["steps_to"]["0.95"])
    assert found(arm="mae", measure="faster_than", other="simclr", target="0.8") == told(
        mae["faster_than"]["simclr"]["0.8"]
    )
    assert found(arm="mae", measure="final_less", other="simclr") == told(less["difference"])
    (row,) = [row for row in rows if (row["measure"], row["other"]) == ("final_less", "simclr")]
    assert (float(row["p"]), float(row["p_holm"])) == (less["p"], less["p_holm"])
    pairs = [("mae", "scratch"), ("mae", "simclr"), ("simclr", "scratch")]
    assert {(row["arm"], row["other"]) for row in rows if row["other"]} >= set(pairs)


def test_fractions_of_as_many_subjects_are_told_as_the_same(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(path: Path, *_: object, names: dict[float, str], **more: object) -> Path:
        drawn.names = names  # type: ignore[attr-defined]
        return path

    monkeypatch.setattr("mim3d.workflows.convergence.report.draw_label_efficiency", drawn)
    alike = [replace(one, subjects=2) for one in records]

    text = write(alike, tmp_path)["convergence.md"].read_text()

    assert "labels 0.1 and 1.0 are the same 2 subjects" in text
    assert drawn.names == {2.0: "0.1, 1.0\n(2)"}  # type: ignore[attr-defined]
    assert "are the same" not in write(records, tmp_path)["convergence.md"].read_text()


def test_one_judged_subject_makes_no_factor_sure(tmp_path: Path) -> None:
    sure, alone = (
        [
            record(arm, curve, replicate=place, cases=cases)
            for arm, curve in (("mae", rising), ("scratch", SLOW))
            for place in range(3)
        ]
        for cases in (8, 1)
    )

    def headline(records: list[Record]) -> str:
        lines = write(records, tmp_path)["convergence.md"].read_text().splitlines()
        return lines[next(i for i, line in enumerate(lines) if "Speed-up" in line) + 4]

    assert headline(sure).startswith("| mae | **2.0")
    assert headline(alone).startswith("| mae | 2.0")


@pytest.mark.parametrize(
    "words",
    [
        "## Speed-up at 0.90 of the best Dice of `scratch`",
        "## Labels 0.1: 20 subjects with labels",
        "less `scratch`",
        "| faster at 0.90 than: | `scratch` | `simclr` (best) |",
        "| final Dice less: | `scratch` | `simclr` (best) |",
        "replicates x pre-trainings x subjects",
        "| mae | 2 x 2 x 30 |",
        "faster than `simclr` at 0.80",
        "| fine-tuned on | not recorded (10); EPYC, 1 thread, bf16 (6) |",
        "| pre-trained on | not recorded (3); H200, bf16 (3) |",
        "| fine-tuned by | not recorded (10); mim3d 1.1 at def (6) |",
        "| pre-trained by | not recorded (3); mim3d 1.0 at abc (3) |",
        "runs were fine-tuned by several versions: not recorded, mim3d 1.1 at def",
        "| recipe | in `convergence.json` |",
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
        "not the same replicates at every label fraction (`scratch`",
        "| arm | labels | runs | Dice | encoder's output zeroed | lost |",
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

    assert set(files) == {
        "convergence.json", "convergence.csv", "numbers.csv", "convergence.md",
    }  # fmt: skip


def test_a_benchmark_whose_reference_has_not_run_is_reported(
    records: list[Record], tmp_path: Path
) -> None:
    some = [one for one in records if one.arm != "scratch"]

    lines = write(some, tmp_path)["convergence.md"].read_text().splitlines()

    assert lines[2] == ("**no sound run of the reference `scratch`: no target, hence no speed-up**")


def test_labels_without_the_reference_are_named_at_the_top(
    records: list[Record], tmp_path: Path
) -> None:
    some = [one for one in records if (one.arm, one.labels) != ("scratch", "1.0")]

    lines = write(some, tmp_path)["convergence.md"].read_text().splitlines()

    assert "`scratch` with labels 1.0: no target there" in lines[2]


def test_an_arm_whose_pre_trainings_only_guessed_stays_and_is_told_of(
    records: list[Record], tmp_path: Path
) -> None:
    guessed = [
        replace(
            one,
            pretraining=replace(
                one.pretraining,
                facts={
                    "loss": 2.9 if one.pretraining.run == "simclr-seed1" else 3.1,
                    "chance": 3.135,
                },
            ),
        )
        if one.pretraining is not None
        else one
        for one in records
    ]

    text = write(guessed, tmp_path)["convergence.md"].read_text()

    assert "note: `simclr`: 2 of 3 pre-trainings ended no better than guessing" in text
    assert "learned nothing: loss 3.1 is not 2 % below 3.135 of guessing" in text
    assert "| simclr | 3 x 3" in text


def test_an_arm_above_the_target_at_step_0_is_reported_as_a_bound(tmp_path: Path) -> None:
    """Broke: its infinite speed-up could not be written as JSON."""
    made = [
        record(arm, curve, replicate=place, noise=0.02)
        for arm, curve in (
            ("scratch", SLOW), ("mae", lambda steps: 0.8 + 0.0 * steps),
            ("simclr", lambda steps: 0.78 + 0.0 * steps),
        )
        for place in range(3)
    ]  # fmt: skip

    files = write(made, tmp_path)

    text = files["convergence.md"].read_text()
    arm = json.loads(files["convergence.json"].read_text())["labels"]["0.1"]["arms"]["mae"]
    assert (arm["steps_to"]["0.9"]["value"], arm["steps_to"]["0.9"]["bound"]) == (10, "<")
    assert arm["faster_than"]["scratch"]["0.9"]["bound"] == ">"
    assert arm["faster_than"]["simclr"]["0.9"]["value"] is None
    assert "< 10" in text
    assert "inf" not in text.replace("info", "")


def test_each_contrastive_arm_has_a_column_and_partners_are_named(tmp_path: Path) -> None:
    kinds = {"scratch": "scratch", "mae": "masked", "simclr": "contrastive", "byol": "contrastive",
             "scratch-4": "scratch", "mae-4": "masked"}  # fmt: skip
    made = []
    for arm, kind in kinds.items():
        curve = SLOW if kind == "scratch" else partial(rising, speed=0.6 if arm == "byol" else 1.0)
        for place in range(4):
            run = replace(record(arm, curve, replicate=place, noise=0.02), kind=kind)
            run = replace(run, against="scratch-4" if arm == "mae-4" else None, pretraining=None)
            made.append(run if kind == "scratch" else from_seed(run, place % 2))

    files = write(made, tmp_path)

    text = files["convergence.md"].read_text()
    content = json.loads(files["convergence.json"].read_text())["labels"]["0.1"]["arms"]
    head = "| faster at 0.90 than: | `scratch` | `simclr` (best) | `byol` |"
    table = text[text.index(head) :].split("\n\n")[0].splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == [
        "| mae", "| simclr", "| byol", "| mae-4",
    ]  # fmt: skip
    assert table[5].endswith("(`scratch-4`) | - | - |")
    height = text[text.index("| final Dice less: | `scratch` |") :].split("\n\n")[0].splitlines()
    assert [line.split(" | ")[0] for line in height[2:]] == ["| mae", "| mae-4"]
    assert "-" not in table[2].split(" | ")[1:]
    assert "fewer than three pre-trainings behind the replicates of `mae`" in text
    assert "| scratch | 4 x - x 30 |" in text
    assert "| mae | 4 x 2 x 30 |" in text
    assert set(content["mae"]["faster_than"]) == {"scratch", "simclr", "byol"}
    assert set(content["mae-4"]["faster_than"]) == {"scratch-4"}
    assert content["mae"]["faster_than"]["byol"]["0.9"]["pretrainings"] == 2
    assert content["mae-4"]["partner"] == "scratch-4"


def test_one_replicate_is_reported_as_one(records: list[Record], tmp_path: Path) -> None:
    text = write([replace(one, zeroed=None) for one in records if not one.replicate], tmp_path)[
        "convergence.md"
    ].read_text()

    assert "with one it holds for that run alone" in text
    assert "## Encoder use" not in text
    assert "**" not in text.split("## Speed-up")[1]
