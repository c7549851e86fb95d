"""The table that `mim3d evaluate` prints of predicted classes and numbers."""

from __future__ import annotations

from mim3d.evaluation.classification import ClassScores
from mim3d.evaluation.table import aligned, count
from mim3d.evaluation.targets import TargetResults

MOST_SHOWN = 12
"""Classes whose confusions fit on a page."""


def target_table(results: TargetResults) -> str:
    """Scores of each target and class, confusions and what the intervals are of.

    Returns:
        Several lines without a final line break.
    """
    blocks = []
    if results.class_scores:
        blocks.append(_of_classes(results))
    for name, scores in results.class_scores.items():
        blocks.append(_by_class(name, results.classes[name], scores))
        if len(results.classes[name]) <= MOST_SHOWN:
            blocks.append(_confusion(name, results, scores))
    if results.number_scores:
        blocks.append(_of_numbers(results))
    cases = len({row.case_id for row in results.judged})
    legend = f"{count(cases, 'case')} of {count(results.subjects, 'subject')}"
    if results.resamples:
        legend += f"; [low, high]: {100 * results.confidence:g} % bootstrap over subjects"
    blocks.append(["\n".join([legend, *(f"note: {note}" for note in results.notes)])])
    return "\n\n".join("\n".join(block) for block in blocks)


def _of_classes(results: TargetResults) -> list[str]:
    head = ["target", "accuracy", "balanced accuracy", "macro F1", "ROC-AUC", "n", "missing"]
    rows = [
        [
            name,
            *map(str, (scores.accuracy, scores.balanced_accuracy, scores.macro_f1, scores.auc)),
            *_counts(results, name),
        ]
        for name, scores in results.class_scores.items()
    ]
    labels = results.label_scores
    if labels is None:
        return aligned(head, rows)
    means = (labels.accuracy, labels.balanced_accuracy, labels.macro_f1, labels.auc)
    rows.append(["labels 0 or 1", *map(str, means), "", ""])
    told = (
        "labels 0 or 1: means over those targets, F1 of 1; all of them are right in "
        f"{labels.exact_match} of the cases"
    )
    return [*aligned(head, rows), "", told]


def _by_class(name: str, classes: tuple[float, ...], scores: ClassScores) -> list[str]:
    rows = [
        [f"{value:g}", *map(str, (one.recall, one.precision, one.f1, one.auc)), str(one.count)]
        for value, one in zip(classes, scores.classes, strict=True)
    ]
    return aligned([f"{name} is", "recall", "precision", "F1", "ROC-AUC", "n"], rows)


def _confusion(name: str, results: TargetResults, scores: ClassScores) -> list[str]:
    """True classes down, predicted ones across."""
    missing = results.missing(name)
    rows = []
    for value, row, one in zip(
        results.classes[name], scores.confusion.tolist(), scores.classes, strict=True
    ):
        cells = [*row, one.count - sum(row)] if missing else row
        rows.append([f"{value:g}", *map(str, cells)])
    across = [f"predicted {value:g}" for value in results.classes[name]]
    return aligned([f"{name} is", *across, *(["no prediction"] if missing else [])], rows)


def _of_numbers(results: TargetResults) -> list[str]:
    head = ["target", "mean absolute error", "Pearson", "Spearman", "n", "missing"]
    rows = [
        [
            name,
            scores.mae.told(".4g"),
            *map(str, (scores.pearson, scores.spearman)),
            *_counts(results, name),
        ]
        for name, scores in results.number_scores.items()
    ]
    return aligned(head, rows)


def _counts(results: TargetResults, target: str) -> tuple[str, str]:
    return str(len(results.of(target))), str(results.missing(target))
