"""Results of an evaluation: every score, summaries with intervals, and how they are printed."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim3d.config.values import convert
from mim3d.evaluation.cases import CONVENTION, Counted, Score
from mim3d.evaluation.intervals import (
    MOST_RESAMPLES,
    group_by_subject,
    interval,
    resampled_means,
    row_means,
)
from mim3d.foundation.atomic import write_json, write_text
from mim3d.foundation.documents import read_document
from mim3d.foundation.errors import UserError
from mim3d.foundation.versions import versions

FORMAT = 1
METRICS = ("dice", "hd95_mm", "nsd")
MEAN = "mean"
"""Name of the row that averages over the structures."""
FIELDS = ("case_id", "subject", "class", *METRICS, "counted_as")


@dataclass(frozen=True)
class Summary:
    """One metric of one structure over the cohort.

    Attributes:
        mean: over all cases in which the structure is present or predicted; None without any.
        low: lower end of the bootstrap interval over subjects.
        high: upper end.
        n: cases in the mean.
        missed: cases in which the reference has it and the prediction does not.
        hallucinated: cases in which the prediction has it and the reference does not.
        absent: cases in which neither has it; not in the mean.
        mean_where_both_present: the flattering mean, over cases with it on both sides.
        n_where_both_present: their number.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int
    missed: int
    hallucinated: int
    absent: int
    mean_where_both_present: float | None
    n_where_both_present: int


@dataclass(frozen=True)
class Results:
    """Scores of a cohort.

    Attributes:
        structures: names, in the order of the table.
        scores: every case and structure.
        nsd_tolerance_mm: distance up to which surfaces agree.
        resamples: bootstrap resamples.
        confidence: level of the intervals.
        notes: what a reader must know, one sentence each.
    """

    structures: tuple[str, ...]
    scores: tuple[Score, ...]
    nsd_tolerance_mm: float = 1.0
    resamples: int = 2000
    confidence: float = 0.95
    notes: tuple[str, ...] = ()

    @property
    def case_ids(self) -> tuple[str, ...]:
        """Cases in the order they were scored."""
        return tuple(dict.fromkeys(score.case_id for score in self.scores))

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subjects in the order of their first case."""
        return tuple(dict.fromkeys(score.subject for score in self.scores))

    def values(self, metric: str) -> NDArray[np.float64]:
        """One metric as `cases structures`; NaN where a structure is absent."""
        row = {case: place for place, case in enumerate(self.case_ids)}
        column = {name: place for place, name in enumerate(self.structures)}
        values = np.full((len(row), len(column)), np.nan)
        for score in self.scores:
            value = getattr(score, metric)
            values[row[score.case_id], column[score.structure]] = np.nan if value is None else value
        return values

    def summary(self) -> dict[str, dict[str, Summary]]:
        """For every structure, then for their mean: metric to summary.

        The mean row is the mean of the structures' means; a structure that is absent from every
        case is not in it.
        """
        subject_of = {score.case_id: score.subject for score in self.scores}
        subjects = [subject_of[case] for case in self.case_ids]
        table: dict[str, dict[str, Summary]] = {name: {} for name in (*self.structures, MEAN)}
        for metric in METRICS if self.scores else ():
            values = self.values(metric)
            draws = resampled_means(*group_by_subject(values, subjects), self.resamples)
            for place, name in enumerate(self.structures):
                scores = [score for score in self.scores if score.structure == name]
                mean = _mean(values[:, place])
                table[name][metric] = self._summary(metric, mean, draws[:, place], scores)
            mean = _mean(np.array([_nan(table[name][metric].mean) for name in self.structures]))
            overall = self._summary(metric, mean, row_means(draws), self.scores)
            table[MEAN][metric] = overall
        return table

    def _summary(
        self,
        metric: str,
        mean: float | None,
        draws: NDArray[np.float64],
        scores: Sequence[Score],
    ) -> Summary:
        counts = {
            counted: sum(score.counted_as == counted for score in scores)
            for counted in ("case", "missed", "hallucinated", "absent")
        }
        both = [getattr(score, metric) for score in scores if score.counted_as == "case"]
        low, high = interval(draws, self.confidence) or (None, None)
        return Summary(
            mean=mean,
            low=low,
            high=high,
            n=len(scores) - counts["absent"],
            missed=counts["missed"],
            hallucinated=counts["hallucinated"],
            absent=counts["absent"],
            mean_where_both_present=float(np.mean(both)) if both else None,
            n_where_both_present=counts["case"],
        )

    def as_json(self) -> dict[str, Any]:
        """What `results.json` holds."""
        return {
            "format": FORMAT,
            "classes": list(self.structures),
            "convention": CONVENTION,
            "nsd_tolerance_mm": self.nsd_tolerance_mm,
            "bootstrap": {
                "over": "subjects",
                "subjects": len(self.subjects),
                "resamples": self.resamples,
                "confidence": self.confidence,
            },
            "notes": list(self.notes),
            "cases": [_row(score) for score in self.scores],
            "summary": {
                name: {metric: vars(summary) for metric, summary in metrics.items()}
                for name, metrics in self.summary().items()
            },
            "versions": versions(),
        }

    def write(self, path: Path | str) -> tuple[Path, Path]:
        """Writes `path` (JSON) and, beside it, the scores of all cases as CSV; returns both."""
        path = Path(path)
        text = io.StringIO()
        writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(_row(score) for score in self.scores)
        beside = path.with_suffix(".csv")
        write_json(path, self.as_json())
        write_text(beside, text.getvalue())
        return path, beside


def read_results(path: Path | str) -> Results:
    """Reads `results.json` back.

    Raises:
        UserError: the file is not one, or of another format.
    """
    try:
        content = read_document(path)
        if type(content["format"]) is int and content["format"] != FORMAT:
            raise UserError(
                f"results of format {content['format']}, this version reads format {FORMAT}",
                where=f"`{Path(path).name}`",
                remedy="run `mim3d evaluate` again",
                code="other-format",
            )
        return _results(content)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"`{Path(path).name}` does not hold results of `mim3d evaluate`",
            remedy="`mim3d evaluate PREDICTIONS LABELS --out results.json` makes one",
            code="not-results",
        ) from error


def _results(content: dict[str, Any]) -> Results:
    """The results that a file describes; `ValueError` and its like where it describes none."""
    resamples = convert(content["bootstrap"]["resamples"], int)
    confidence = convert(content["bootstrap"]["confidence"], float)
    results = Results(
        structures=tuple(map(_word, content["classes"])),
        scores=tuple(_score(row) for row in content["cases"]),
        nsd_tolerance_mm=convert(content["nsd_tolerance_mm"], float),
        resamples=resamples,
        confidence=confidence,
        notes=tuple(map(_word, content["notes"])),
    )
    known = set(results.structures)
    pairs = {(score.case_id, score.structure) for score in results.scores}
    is_sound = (
        len(known) == len(results.structures)
        and len(pairs) == len(results.scores)
        and {structure for _, structure in pairs} <= known
        and 0 < resamples <= MOST_RESAMPLES
        and 0 < confidence < 1
    )
    if content["format"] != FORMAT or not is_sound:
        raise ValueError("scores of other structures than it lists, or twice")
    return results


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a word was expected")
    return value


def _row(score: Score) -> dict[str, Any]:
    row = dict(vars(score))
    row["class"] = row.pop("structure")
    return {name: row[name] for name in FIELDS}


def _score(row: dict[str, Any]) -> Score:
    return Score(
        case_id=_word(row["case_id"]),
        subject=_word(row["subject"]),
        structure=_word(row["class"]),
        dice=convert(row["dice"], float | None),
        hd95_mm=convert(row["hd95_mm"], float | None),
        nsd=convert(row["nsd"], float | None),
        counted_as=convert(row["counted_as"], Counted),
    )


def _mean(values: NDArray[np.float64]) -> float | None:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else None


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value
