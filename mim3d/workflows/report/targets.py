"""Results on classes and numbers of whole volumes: scores, pictures, and the worst cases first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mim3d.evaluation.intervals import Measure
from mim3d.evaluation.targets import Judged, TargetResults
from mim3d.pages.report.elements import (
    Cell,
    Element,
    Notes,
    Prose,
    Row,
    Section,
    Table,
    numeric,
)
from mim3d.pages.report.figures import Gallery, Picture, read_picture
from mim3d.workflows.evaluate_targets import draw_target
from mim3d.workflows.report.cases import anchor
from mim3d.workflows.report.desk import Desk
from mim3d.workflows.report.sources import EvaluatedTargets


def targets_of(evaluated: Sequence[EvaluatedTargets], desk: Desk) -> Iterator[Element]:
    """Every results file of targets."""
    for one in evaluated:
        yield Section(f"`{one.name}`", tuple(_one(one, desk)), anchor=anchor(one.name), rank=3)


def _one(one: EvaluatedTargets, desk: Desk) -> Iterator[Element]:
    results = one.results
    cases = len({row.case_id for row in results.judged})
    yield Prose(
        f"{cases} cases of {results.subjects} subjects. [low, high]: "
        f"{100 * results.confidence:g} % bootstrap over subjects, {results.resamples} resamples.",
        is_small=True,
    )
    yield Notes(results.notes, "warning")
    yield from _scores(results)
    for target in results.classes:
        yield Section(f"`{target}`", tuple(_target(one, target, desk)), rank=4)


def _scores(results: TargetResults) -> Iterator[Element]:
    """The tables that `mim3d evaluate` prints."""
    if results.class_scores:
        head = ["target", "accuracy", "balanced accuracy", "macro F1", "ROC-AUC", "n", "missing"]
        rows: list[Row] = [
            [name, *map(_measure, (s.accuracy, s.balanced_accuracy, s.macro_f1, s.auc)),
             *_counts(results, name)]
            for name, s in results.class_scores.items()
        ]  # fmt: skip
        labels = results.label_scores
        if labels is not None:
            means = (labels.accuracy, labels.balanced_accuracy, labels.macro_f1, labels.auc)
            rows.append(["labels 0 or 1, mean", *map(_measure, means), Cell("-"), Cell("-")])
        yield Table(head, rows)
    if results.number_scores:
        head = ["target", "mean absolute error", "Pearson", "Spearman", "n", "missing"]
        rows = [
            [name, _measure(s.mae, ".4g", is_share=False), _measure(s.pearson),
             _measure(s.spearman), *_counts(results, name)]
            for name, s in results.number_scores.items()
        ]  # fmt: skip
        yield Table(head, rows)


def _counts(results: TargetResults, name: str) -> list[Cell]:
    numbers = (len(results.of(name)), results.missing(name))
    return [Cell(str(number), float(number)) for number in numbers]


def _measure(measure: Measure, form: str = ".3f", *, is_share: bool = True) -> Cell:
    return Cell(measure.told(form), measure.value, measure.value if is_share else None)


def _target(one: EvaluatedTargets, target: str, desk: Desk) -> Iterator[Element]:
    results, classes = one.results, one.results.classes[target]
    yield Gallery([_picture(results, target, desk)], is_wide=True)
    if classes:
        scores = results.class_scores[target].classes
        rows: list[Row] = [
            [f"{value:g}", *map(_measure, (s.recall, s.precision, s.f1, s.auc)),
             Cell(str(s.count), float(s.count))]
            for value, s in zip(classes, scores, strict=True)
        ]  # fmt: skip
        yield Table([f"{target} is", "recall", "precision", "F1", "ROC-AUC", "n"], rows)
    ranked = sorted(results.of(target), key=lambda row: (_merit(row, classes), row.case_id))
    most = max(1, desk.settings.rows)
    cells: list[Row] = [[row.case_id, numeric(row.truth, _digits(classes)),
              numeric(row.predicted, _digits(classes)), _how(row, classes)]
             for row in ranked[:most]]  # fmt: skip
    last = "probability of the true class" if classes else "absolute error"
    left = f" The worst {most} of {len(ranked)}." if len(ranked) > most else ""
    caption = f"Every case, worst first.{left}"
    head = ["case", "true", "predicted", last]
    yield Table(head, cells, caption=caption, sorted_by=3, falls=not classes)


def _picture(results: TargetResults, target: str, desk: Desk) -> Picture:
    path: Path = draw_target(results, target, desk.folder / "target.json")
    return read_picture(path, f"predictions of {target} against the truth", is_chart=True)


def _digits(classes: tuple[float, ...]) -> int:
    return 0 if classes and all(value == int(value) for value in classes) else 3


def _merit(row: Judged, classes: tuple[float, ...]) -> float:
    """How well a case is predicted; one without prediction is worst."""
    if row.predicted is None:
        return float("-inf")
    if not classes:
        return -abs(row.predicted - row.truth)
    return (row.probabilities or ())[classes.index(row.truth)]


def _how(row: Judged, classes: tuple[float, ...]) -> Cell:
    if row.predicted is None:
        return Cell("no prediction")
    merit = _merit(row, classes)
    return numeric(merit, 3, is_share=True) if classes else numeric(-merit, 3)
