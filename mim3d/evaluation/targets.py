"""Results on predicted classes and numbers: every case, scores with intervals, what is written."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim3d.config.values import convert
from mim3d.evaluation.classification import (
    NONE,
    ClassScores,
    LabelScores,
    score_classes,
    score_labels,
)
from mim3d.evaluation.intervals import MOST_RESAMPLES
from mim3d.evaluation.predictions import PROBABILITY, plain
from mim3d.evaluation.regression import NumberScores, score_numbers
from mim3d.foundation.atomic import write_json, write_text
from mim3d.foundation.documents import DocumentError, read_document
from mim3d.foundation.errors import UserError
from mim3d.foundation.versions import versions

FORMAT = 1
KIND = "targets"
FIELDS = ("case_id", "subject", "target", "truth", "predicted")
NEVER, ALWAYS = -1.0, 2.0
"""In place of probabilities of a case without prediction: for its own class and for the others."""


@dataclass(frozen=True)
class Judged:
    """A case's target as it is and as it is predicted.

    Attributes:
        case_id: of which.
        subject: whose it is.
        target: what.
        truth: its class or number.
        predicted: alike; None without prediction.
        probabilities: of each class of the target, in their order; None for numbers, and without
            prediction.
    """

    case_id: str
    subject: str
    target: str
    truth: float
    predicted: float | None
    probabilities: tuple[float, ...] | None = None


@dataclass(frozen=True)
class TargetResults:
    """Scores of a cohort's targets.

    Attributes:
        judged: every case and target; of each target one or more.
        classes: of each target, rising; none for numbers.
        resamples: bootstrap resamples.
        confidence: level of the intervals.
        notes: what a reader must know, one sentence each.
    """

    judged: tuple[Judged, ...]
    classes: Mapping[str, tuple[float, ...]]
    resamples: int = 2000
    confidence: float = 0.95
    notes: tuple[str, ...] = ()

    def of(self, target: str) -> tuple[Judged, ...]:
        """The cases of one target."""
        return tuple(row for row in self.judged if row.target == target)

    def missing(self, target: str) -> int:
        """How many cases of a target have no prediction."""
        return sum(row.predicted is None for row in self.of(target))

    @property
    def subjects(self) -> int:
        """How many there are."""
        return len({row.subject for row in self.judged})

    @cached_property
    def class_scores(self) -> dict[str, ClassScores]:
        """Of each target with classes; a case without prediction is wrong in all of them."""
        return {name: self._scored_classes(name) for name, known in self.classes.items() if known}

    @cached_property
    def number_scores(self) -> dict[str, NumberScores]:
        """Of each target without classes, over the cases with a prediction."""
        return {
            name: self._scored_numbers(name) for name, known in self.classes.items() if not known
        }

    @cached_property
    def label_scores(self) -> LabelScores | None:
        """Of the targets that are 0 or 1 together, where they are several."""
        names = [name for name, known in self.classes.items() if known == (0.0, 1.0)]
        if len(names) < 2:
            return None
        rows = [row for row in self.judged if row.target in names]
        whose = {row.case_id: row.subject for row in rows}
        place = {case_id: number for number, case_id in enumerate(whose)}
        truth = np.full((len(place), len(names)), np.nan)
        probabilities, guesses = np.zeros_like(truth), np.zeros_like(truth)
        for row in rows:
            cell = (place[row.case_id], names.index(row.target))
            truth[cell] = row.truth
            guesses[cell] = 1 - row.truth if row.predicted is None else row.predicted
            probabilities[cell] = _shares(row, (0.0, 1.0))[1]
        return score_labels(
            truth,
            probabilities,
            predicted=guesses,
            subjects=list(whose.values()),
            resamples=self.resamples,
            confidence=self.confidence,
        )

    def _scored_classes(self, target: str) -> ClassScores:
        rows, classes = self.of(target), self.classes[target]
        truth, predicted, probabilities = class_arrays(rows, classes)
        return score_classes(
            truth,
            probabilities,
            predicted=predicted,
            subjects=[row.subject for row in rows],
            resamples=self.resamples,
            confidence=self.confidence,
        )

    def _scored_numbers(self, target: str) -> NumberScores:
        rows = [row for row in self.of(target) if row.predicted is not None]
        return score_numbers(
            np.array([row.truth for row in rows]),
            np.array([row.predicted for row in rows], np.float64),
            subjects=[row.subject for row in rows],
            resamples=self.resamples,
            confidence=self.confidence,
        )

    def as_json(self) -> dict[str, Any]:
        """What `results.json` holds."""
        return {
            "format": FORMAT,
            "kind": KIND,
            "bootstrap": {
                "over": "subjects",
                "subjects": self.subjects,
                "resamples": self.resamples,
                "confidence": self.confidence,
            },
            "notes": list(self.notes),
            "targets": {name: self._target_json(name) for name in self.classes},
            "labels": None if self.label_scores is None else asdict(self.label_scores),
            "cases": [asdict(row) for row in self.judged],
            "versions": versions(),
        }

    def _target_json(self, target: str) -> dict[str, Any]:
        scores = self.class_scores.get(target) or self.number_scores[target]
        content = asdict(scores)
        by_class = content.pop("classes", ())
        confusion = content.pop("confusion", None)
        known = self.classes[target]
        row: dict[str, Any] = {
            "classes": list(known),
            "cases": len(self.of(target)),
            "missing": self.missing(target),
            "summary": content,
        }
        if confusion is not None:
            row["by_class"] = {f"{value:g}": s for value, s in zip(known, by_class, strict=True)}
            row["confusion"] = confusion.tolist()
        return row

    def write(self, path: Path | str) -> tuple[Path, Path]:
        """Writes `path` (JSON) and, beside it, all cases as CSV; returns both."""
        path = Path(path)
        columns = sorted({value for classes in self.classes.values() for value in classes})
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*FIELDS, *(PROBABILITY + plain(value) for value in columns)])
        for row in self.judged:
            given = dict(zip(self.classes[row.target], row.probabilities or (), strict=False))
            cells = [*(getattr(row, name) for name in FIELDS), *map(given.get, columns)]
            writer.writerow(["" if cell is None else cell for cell in cells])
        beside = path.with_suffix(".csv")
        write_json(path, self.as_json())
        write_text(beside, text.getvalue())
        return path, beside


def class_arrays(
    rows: tuple[Judged, ...], classes: tuple[float, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Places of the true classes `n`, of the predicted ones `n`, and probabilities `n k`.

    A case without prediction has the place `NONE`, and scores that lose against all others.
    """
    place = {value: number for number, value in enumerate(classes)}
    truth = np.array([place[row.truth] for row in rows], np.int64)
    predicted = np.array(
        [NONE if row.predicted is None else place[row.predicted] for row in rows], np.int64
    )
    return truth, predicted, np.array([_shares(row, classes) for row in rows], np.float64)


def _shares(row: Judged, classes: tuple[float, ...]) -> tuple[float, ...]:
    if row.probabilities is not None:
        return row.probabilities
    return tuple(NEVER if value == row.truth else ALWAYS for value in classes)


def holds_target_results(path: Path | str) -> bool:
    """Whether a JSON file is one of results on targets, sound or not."""
    try:
        content = read_document(path)
    except (OSError, DocumentError):
        return False
    return isinstance(content, dict) and content.get("kind") == KIND


def read_target_results(path: Path | str) -> TargetResults:
    """Reads `results.json` back; all scores are taken anew from its cases.

    Raises:
        UserError: the file is not one, or of another format.
    """
    try:
        content = read_document(path)
        if content["kind"] != KIND or content["format"] != FORMAT:
            raise ValueError("of another kind or format")
        results = TargetResults(
            tuple(_judged(row) for row in content["cases"]),
            {
                convert(name, str): convert(row["classes"], tuple[float, ...])
                for name, row in content["targets"].items()
            },
            convert(content["bootstrap"]["resamples"], int),
            convert(content["bootstrap"]["confidence"], float),
            tuple(convert(note, str) for note in content["notes"]),
        )
        _check(results)
        return results
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"`{Path(path).name}` does not hold results of `mim3d evaluate`, or of another version",
            remedy="`mim3d evaluate predictions.csv LABELS --out results.json` makes one",
            code="not-results",
        ) from error


def _judged(row: Mapping[str, Any]) -> Judged:
    return Judged(
        convert(row["case_id"], str),
        convert(row["subject"], str),
        convert(row["target"], str),
        convert(row["truth"], float),
        convert(row["predicted"], float | None),
        convert(row["probabilities"], tuple[float, ...] | None),
    )


def _check(results: TargetResults) -> None:
    """`ValueError` where the scores of what was read cannot be taken."""
    pairs = {(row.case_id, row.target) for row in results.judged}
    is_sound = (
        len(pairs) == len(results.judged)
        and {target for _, target in pairs} == set(results.classes)
        and 0 <= results.resamples <= MOST_RESAMPLES
        and 0 < results.confidence < 1
        and all(_fits(row, results.classes[row.target]) for row in results.judged)
        and all(
            known or any(row.predicted is not None for row in results.of(name))
            for name, known in results.classes.items()
        )
    )
    if not is_sound:
        raise ValueError("cases of other targets or classes than it lists, or twice")


def _fits(row: Judged, classes: tuple[float, ...]) -> bool:
    if not classes:
        return row.probabilities is None
    has_all = row.probabilities is not None and len(row.probabilities) == len(classes)
    is_complete = has_all and row.predicted in classes
    is_missing = row.predicted is None and row.probabilities is None
    return row.truth in classes and (is_complete or is_missing)
