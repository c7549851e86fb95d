"""The file of predicted classes and numbers of whole cases: `predictions.csv`.

One row a case and target. `predicted` is the class, as the store has it, and `probability_<class>`
what each class was given; `value` is a predicted number.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mim3d.foundation.atomic import write_text
from mim3d.foundation.documents import DocumentError
from mim3d.foundation.errors import UserError
from mim3d.foundation.tables import Row, number, read_rows

NAME = "predictions.csv"
"""What `mim3d predict` calls it."""
PROBABILITY = "probability_"
SUM_TOLERANCE = 0.01
"""Probabilities may be rounded; what is farther from a sum of 1 is none."""


@dataclass(frozen=True)
class Prediction:
    """What is predicted of one case.

    Attributes:
        case_id: of which.
        target: what.
        value: the predicted class, as the store has it, or the predicted number.
        probabilities: of each class; None for numbers.
    """

    case_id: str
    target: str
    value: float
    probabilities: dict[float, float] | None = None


def write_predictions(path: Path | str, predictions: Sequence[Prediction]) -> Path:
    """Writes the file, whole or not at all, and returns where it is.

    Numbers are written such that they read back exactly.

    Raises:
        DiskError: it cannot be written.
    """
    classes = sorted({value for row in predictions for value in row.probabilities or ()})
    columns = ["case", "target"]
    columns += ["predicted"] if classes else []
    columns += ["value"] if any(row.probabilities is None for row in predictions) else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, *(PROBABILITY + plain(value) for value in classes)])
    for row in predictions:
        given = row.probabilities
        cells = {
            "case": row.case_id,
            "target": row.target,
            "predicted": "" if given is None else plain(row.value),
            "value": plain(row.value) if given is None else "",
        }
        shares = [
            repr(float(given[value])) if given and value in given else "" for value in classes
        ]
        writer.writerow([*(cells[column] for column in columns), *shares])
    path = Path(path)
    write_text(path, text.getvalue())
    return path


def read_predictions(path: Path | str) -> tuple[Prediction, ...]:
    """What a file predicts, in its order.

    Raises:
        UserError: columns or cells that cannot be understood, with the line; a case twice.
    """
    path = Path(path)
    try:
        return tuple(_predictions(*read_rows(path)).values())
    except OSError as error:
        raise _wrong(path, error.strerror or "it cannot be read") from None
    except DocumentError as error:
        raise _wrong(path, str(error)) from None


def _predictions(columns: list[str], rows: list[Row]) -> dict[tuple[str, str], Prediction]:
    classes = {column: number(column.removeprefix(PROBABILITY), column, 1)
               for column in columns if column.startswith(PROBABILITY)}  # fmt: skip
    if not {"case", "target"} <= set(columns) or not (classes or "value" in columns):
        raise DocumentError(
            "it needs the columns `case`, `target` and `value` or `probability_...`"
        )
    if len(set(classes.values())) < len(classes):
        raise DocumentError("it has the probability of a class twice")
    found: dict[tuple[str, str], Prediction] = {}
    for line, row in rows:
        prediction = _prediction(row, classes, line)
        key = (prediction.case_id, prediction.target)
        if found.setdefault(key, prediction) is not prediction:
            raise DocumentError(f"line {line} predicts `{key[1]}` of `{key[0]}` again")
    if not found:
        raise DocumentError("it predicts nothing")
    return found


def _prediction(row: dict[str, str], classes: dict[str, float], line: int) -> Prediction:
    case_id, target = row["case"], row["target"]
    value, guess = row.get("value", ""), row.get("predicted", "")
    given = {place: number(row[column], column, line)
             for column, place in classes.items() if row[column]}  # fmt: skip
    if not case_id or not target or bool(value) == bool(given) or (guess and not given):
        raise DocumentError(
            f"line {line} needs a case, a target, and either `value` or probabilities"
        )
    if value:
        return Prediction(case_id, target, number(value, "value", line))
    total = sum(given.values())
    if min(given.values()) < 0 or abs(total - 1) > SUM_TOLERANCE:
        raise DocumentError(
            f"line {line} has probabilities below 0, or whose sum {total:g} is not 1"
        )
    # Without a word the likeliest class, the first of equal ones.
    likeliest = max(given, key=lambda place: given[place])
    predicted = number(guess, "predicted", line) if guess else likeliest
    if predicted not in given:
        raise DocumentError(f"line {line} predicts the class {predicted:g} without a probability")
    return Prediction(case_id, target, predicted, given)


def plain(value: float) -> str:
    """A number as short as it reads back exactly: `3`, `0.25`."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def _wrong(path: Path, reason: str) -> UserError:
    return UserError(
        f"`{path.name}` cannot be used: {reason}",
        where=str(path),
        remedy="columns: case, target, then predicted and probability_<class>, or value",
        code="predictions",
    )
