"""`mim3d evaluate predictions.csv LABELS`: what `evaluate` does, of classes and numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mim3d.config.verbs import EvaluateConfig
from mim3d.data.store import file_name
from mim3d.evaluation.classification import roc_curve
from mim3d.evaluation.predictions import NAME
from mim3d.evaluation.target_pairs import evaluate_targets
from mim3d.evaluation.target_table import target_table
from mim3d.evaluation.targets import TargetResults, class_arrays
from mim3d.foundation.disk import check_written
from mim3d.foundation.reporting import Reporter
from mim3d.pictures.targets import Roc, draw_classes, draw_numbers
from mim3d.workflows.result import Result
from mim3d.workflows.results_place import results_place


def predictions_file(predictions: str) -> Path | None:
    """The file of predicted classes and numbers that is meant; None where label maps are."""
    path = Path(predictions)
    if path.is_dir():
        return path / NAME if (path / NAME).is_file() else None
    return path if path.suffix.lower() == ".csv" else None


def evaluate_file(
    predictions: Path,
    labels: str,
    out: str | None,
    config: EvaluateConfig,
    notes: tuple[str, ...],
    reporter: Reporter,
) -> Result:
    """Scores of predicted classes and numbers, with intervals.

    Args:
        predictions: `predictions.csv`.
        labels: a store, a CSV with `target_<name>`, or an archive.
        out: `results.json`; a CSV and pictures are written beside it. None only prints.
        config: bootstrap and list.
        notes: what a reader must know, one sentence each.
        reporter: told what is left out.

    Raises:
        UserError: nothing to compare, a case without prediction, results over an input, or an
            `out` that is no `.json`.
    """
    path = None if out is None else results_place(out, (predictions, Path(labels)))
    results = evaluate_targets(
        predictions, labels, config.evaluation, part=config.part, notes=notes, reporter=reporter
    )
    files: list[Path] = []
    if path is not None:
        files += results.write(path)
        files += [draw_target(results, name, path) for name in results.classes]
        check_written(files)
    return Result(text=target_table(results), facts=results.as_json(), files=tuple(files))


def draw_target(results: TargetResults, target: str, out: Path) -> Path:
    """Draws confusions and curves of a target, or its numbers against the true ones.

    Args:
        results: scores of all targets.
        target: which of them.
        out: the picture is named after this file and, of several targets, after the target.
    """
    ending = f"_{file_name(target)}.png" if len(results.classes) > 1 else ".png"
    path = out.with_name(out.stem + ending)
    if not results.classes[target]:
        return _number_chart(results, target, path)
    scores, known = results.class_scores[target], results.classes[target]
    truth, _, probabilities = class_arrays(results.of(target), known)
    names = [f"{value:g}" for value in known]
    # Of two classes, the curve of one is that of the other turned round.
    places = [1] if len(known) == 2 else range(len(known))
    curves = []
    for place in places:
        is_it = truth == place
        if is_it.any() and not is_it.all():
            false_rate, true_rate = roc_curve(probabilities[:, place], is_it)
            name = f"{names[place]}: AUC {scores.classes[place].auc}"
            curves.append(Roc(name, false_rate.tolist(), true_rate.tolist()))
    title = f"{target}: accuracy {scores.accuracy}"
    return draw_classes(path, scores.confusion, names, curves, title=title)


def _number_chart(results: TargetResults, target: str, path: Path) -> Path:
    rows = [row for row in results.of(target) if row.predicted is not None]
    scores = results.number_scores[target]
    return draw_numbers(
        path,
        np.array([row.truth for row in rows]),
        np.array([row.predicted for row in rows], np.float64),
        title=target,
        text=f"mean absolute error {scores.mae.told('.4g')}, Pearson {scores.pearson}",
    )
