"""A convergence benchmark as rows for other tools: the curves, and every number of the report."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from mim3d.evaluation.study import Study

CURVES = (
    "arm", "kind", "labels", "subjects", "replicate", "fold", "lr", "step", "dice", "cases",
    "dead",
)  # fmt: skip
NUMBERS = (
    "labels", "subjects", "arm", "kind", "measure", "other", "target", "value", "bound", "low",
    "high", "replicates", "pretrainings", "p", "p_holm",
)  # fmt: skip
MEASURES = ("final", "mean_height_steps", "mean_height_log_steps", "replaces_subjects")
"""Numbers of an arm by itself."""


def curve_rows(study: Study) -> str:
    """One row a run and judged step; a run that died without a curve has one row."""
    return _csv(CURVES, _judged(study))


def _judged(study: Study) -> Iterator[dict[str, Any]]:
    for record in study.records:
        fixed = {name: getattr(record, name) for name in CURVES if name not in ("step", "dice")}
        fixed |= {"cases": len(record.cases), "dead": record.why_dead}
        heights = [float(np.mean(row)) if row else None for row in record.dice]
        judged = zip(record.steps, heights, strict=True) if record.steps else [(None, None)]
        yield from ({**fixed, "step": step, "dice": dice} for step, dice in judged)


def number_rows(summary: Mapping[str, Any]) -> str:
    """One row a number with its interval.

    `measure` is `final` (Dice after the last step), `mean_height_steps`, `mean_height_log_steps`,
    `replaces_subjects` (labelled subjects with which the arm's partner ends there), `steps_to` the
    `target`, `faster_than` the arm `other` at the `target` (a factor), or `final_less` that of the
    arm `other`, with the p-values of the paired test.

    Args:
        summary: what stands in the JSON file.
    """
    return _csv(NUMBERS, _numbers(summary))


def _numbers(summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for labels, found in summary["labels"].items():
        for arm, numbers in found["arms"].items():
            own = {"labels": labels, "subjects": numbers["subjects"], "arm": arm,
                   "kind": summary["arms"][arm]}  # fmt: skip
            for measure in MEASURES:
                yield _row(own, numbers[measure], measure=measure)
            for target, steps in numbers["steps_to"].items():
                yield _row(own, steps, measure="steps_to", target=target)
            for other, factors in numbers["faster_than"].items():
                for target, factor in factors.items():
                    yield _row(own, factor, measure="faster_than", other=other, target=target)
            for row in found["comparisons"]:
                if row["arm"] == arm:
                    tested = {"p": row["p"], "p_holm": row["p_holm"]}
                    yield _row(own, row["difference"], measure="final_less", other=row["other"],
                               **tested)  # fmt: skip


def _row(own: Mapping[str, Any], estimate: Mapping[str, Any] | None, **more: Any) -> dict[str, Any]:
    return {**own, **(estimate or {}), **more}


def _csv(fields: tuple[str, ...], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
