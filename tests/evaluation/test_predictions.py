"""The file of predictions: there and back, and what it may not say."""

from __future__ import annotations

from pathlib import Path

import pytest

from mim3d.evaluation.predictions import Prediction, read_predictions, write_predictions
from mim3d.foundation.errors import UserError

PREDICTIONS = (
    Prediction("a, b", "grade", 7.0, {3.0: 0.1 + 0.2, 5.0: 1e-17, 7.0: 0.7}),
    Prediction('c "2"', "grade", 3.0, {3.0: 1.0, 5.0: 0.0, 7.0: 0.0}),
    Prediction("a, b", "age", 61.25),
    Prediction("a, b", "is_ill", 0.0, {0.0: 0.75, 1.0: 0.25}),
)
HEAD = "case,target,predicted,value,probability_0,probability_1\n"


def test_predictions_read_back_exactly(tmp_path: Path) -> None:
    path = write_predictions(tmp_path / "predictions.csv", PREDICTIONS)

    assert read_predictions(path) == PREDICTIONS


def test_the_file_is_what_a_spreadsheet_shows(tmp_path: Path) -> None:
    classes = write_predictions(tmp_path / "classes.csv", PREDICTIONS[3:])
    numbers = write_predictions(tmp_path / "numbers.csv", PREDICTIONS[2:3])

    assert classes.read_text() == (
        'case,target,predicted,probability_0,probability_1\n"a, b",is_ill,0,0.75,0.25\n'
    )
    assert numbers.read_text() == 'case,target,value\n"a, b",age,61.25\n'


def test_without_a_word_the_likeliest_class_is_predicted(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("case,target,probability_2,probability_1\na,t,0.4,0.6\nb,t,0.5,0.5\n")

    assert [row.value for row in read_predictions(path)] == [1.0, 2.0]


def test_the_said_class_counts_where_it_is_not_the_likeliest(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text(HEAD + "a,t,1,,0.6,0.4\n")

    assert read_predictions(path)[0].value == 1.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("case,predicted\na,1\n", "needs the columns"),
        ("case,target,predicted\na,t,1\n", "needs the columns"),
        ("case,target,probability_x\na,t,1\n", "`x` as `probability_x`"),
        ("case,target,probability_1,probability_1.0\na,t,1,0\n", "a class twice"),
        (HEAD, "predicts nothing"),
        (HEAD + "a,t,1,,0.4,0.6\na,t,1,,0.4,0.6\n", "line 3 predicts `t` of `a` again"),
        (HEAD + "a,t,,3.5,0.4,0.6\n", "line 2 needs a case, a target, and either"),
        (HEAD + "a,t,1,,,\n", "line 2 needs a case, a target, and either"),
        (HEAD + "a,t,1,3.5,,\n", "line 2 needs a case, a target, and either"),
        (HEAD + ",t,,3.5,,\n", "line 2 needs a case"),
        (HEAD + "a,t,2,,0.4,0.6\n", "the class 2 without a probability"),
        (HEAD + "a,t,1,,-1.2,2.2\n", "below 0"),
        (HEAD + "a,t,1,,-3.1,0.6\n", "below 0"),
        (HEAD + "a,t,1,,0.9,0.6\n", r"sum 1\.5 is not 1"),
        (HEAD + "a,t,1,,nan,0.6\n", "`nan` as `probability_0`"),
        (HEAD + "a,t,1,,0.4\n", "another number of cells"),
    ],
)
def test_a_file_that_cannot_be_understood_names_line_and_reason(
    tmp_path: Path, text: str, reason: str
) -> None:
    path = tmp_path / "p.csv"
    path.write_text(text)

    with pytest.raises(UserError, match=reason):
        read_predictions(path)


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`p.csv` cannot be used: No such file"):
        read_predictions(tmp_path / "p.csv")
