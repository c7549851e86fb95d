"""Results on targets: what they say, what is written, and that it reads back."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from mim3d.evaluation.target_table import target_table
from mim3d.evaluation.targets import (
    Judged,
    TargetResults,
    holds_target_results,
    read_target_results,
)
from mim3d.foundation.errors import UserError

GRADES = [(3, 3, 0.75), (3, 5, 0.375), (5, 5, 0.25), (5, 5, 0.125), (3, 3, 0.5)]
JUDGED = (
    *(
        Judged(f"c{i}", f"s{i // 2}", "grade", truth, guess, (share, 1 - share))
        for i, (truth, guess, share) in enumerate(GRADES)
    ),
    Judged("c5", "s2", "grade", 5.0, None),
    *(Judged(f"c{i}", f"s{i // 2}", "age", 20.0 + i, 22.0 + i / 2) for i in range(6)),
)
RESULTS = TargetResults(JUDGED, {"grade": (3.0, 5.0), "age": ()}, resamples=50, notes=("one word",))


def test_table_holds_scores_confusions_and_counts() -> None:
    lines = target_table(replace(RESULTS, resamples=0)).splitlines()

    cells = [line.split() for line in lines]
    # Right: c0, c2, c3, c4 of six; recall 2/3 and 2/3; F1 of 3: 4/5, of 5: 4/6.
    # The case without prediction loses all of its pairs, the others win theirs: 6 of 9.
    assert cells[2][:5] == ["grade", "0.667", "0.667", "0.733", "0.667"]
    assert cells[2][-2:] == ["6", "1"]
    assert next(row for row in cells if row[:1] == ["3"])[:4] == ["3", "0.667", "1.000", "0.800"]
    assert ["3", "2", "1", "0"] in cells
    assert ["5", "0", "2", "1"] in cells
    # Errors of 2 - i / 2: 2, 1.5, 1, 0.5, 0, 0.5.
    assert ["age", "0.9167", "1.000", "1.000", "6", "0"] in cells
    assert lines[-2:] == ["6 cases of 3 subjects", "note: one word"]


def test_table_tells_what_intervals_are_of() -> None:
    text = target_table(RESULTS)

    assert "0.667 [" in text
    assert "[low, high]: 95 % bootstrap over subjects" in text


def test_many_classes_have_no_matrix_in_the_table() -> None:
    classes = tuple(map(float, range(13)))
    rows = tuple(
        Judged(f"c{i}", f"c{i}", "kind", value, value, tuple(float(v == value) for v in classes))
        for i, value in enumerate(classes)
    )

    assert "predicted" not in target_table(TargetResults(rows, {"kind": classes}, resamples=0))


def test_targets_of_yes_and_no_have_a_row_of_means() -> None:
    rows = tuple(
        Judged(f"c{i}", f"c{i}", target, float(i % 2), float(i % 2 if i else 1), (0.5, 0.5))
        for target in "ab"
        for i in range(4)
    )
    results = TargetResults(rows, {"a": (0.0, 1.0), "b": (0.0, 1.0)}, resamples=0)

    assert "all of them are right in 0.750 of the cases" in target_table(results)
    assert RESULTS.label_scores is None


def test_results_read_back_and_score_the_same(tmp_path: Path) -> None:
    path, _ = RESULTS.write(tmp_path / "results.json")

    again = read_target_results(path)

    assert again == RESULTS
    assert target_table(again) == target_table(RESULTS)
    assert holds_target_results(path)


def test_json_holds_every_number_with_its_interval(tmp_path: Path) -> None:
    content = json.loads(RESULTS.write(tmp_path / "results.json")[0].read_text())

    grade, age = content["targets"]["grade"], content["targets"]["age"]
    accuracy = RESULTS.class_scores["grade"].accuracy
    assert grade["summary"]["accuracy"] == vars(accuracy)
    assert accuracy.low is not None
    assert accuracy.low < 2 / 3 < accuracy.high
    assert set(grade["summary"]) == {"accuracy", "balanced_accuracy", "macro_f1", "auc"}
    assert grade["confusion"] == [[2, 1], [0, 2]]
    assert grade["by_class"]["5"]["count"] == 3
    assert (grade["cases"], grade["missing"], age["missing"]) == (6, 1, 0)
    assert set(age["summary"]) == {"mae", "pearson", "spearman"}
    assert content["bootstrap"]["subjects"] == 3


def test_csv_beside_holds_every_case(tmp_path: Path) -> None:
    with open(RESULTS.write(tmp_path / "results.json")[1], newline="") as file:
        rows = list(csv.DictReader(file))

    assert rows[1] == {
        "case_id": "c1", "subject": "s0", "target": "grade", "truth": "3", "predicted": "5",
        "probability_3": "0.375", "probability_5": "0.625",
    }  # fmt: skip
    assert (rows[5]["predicted"], rows[5]["probability_3"]) == ("", "")
    assert (rows[6]["target"], rows[6]["predicted"]) == ("age", "22.0")


def _broken(path: Path, change) -> Path:
    content = json.loads(RESULTS.write(path)[0].read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(format=2),
        lambda content: content.update(kind="voxels"),
        lambda content: content["bootstrap"].update(resamples=2_000_000),
        lambda content: content["bootstrap"].update(confidence=1.0),
        lambda content: content["targets"].pop("age"),
        lambda content: content["targets"]["grade"].update(classes=[3, 4]),
        lambda content: content["cases"].append(content["cases"][0]),
        lambda content: content["cases"][0].update(probabilities=[1.0]),
        lambda content: content["cases"][0].update(predicted=None),
        lambda content: content["cases"][0].update(truth="3"),
        lambda content: content["cases"][-1].update(probabilities=[1.0]),
        lambda content: content.pop("cases"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, change) -> None:
    path = _broken(tmp_path / "results.json", change)

    with pytest.raises(UserError, match="does not hold results"):
        read_target_results(path)


def test_other_files_hold_no_such_results(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text in ("[1]", "{}", "{", '{"kind": "voxels"}'):
        path.write_text(text)
        assert not holds_target_results(path)
    assert not holds_target_results(tmp_path / "absent.json")
