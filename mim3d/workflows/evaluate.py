"""`mim3d evaluate`: from predictions and labels to a table that cannot flatter."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mim3d.config.verbs import EvaluateConfig
from mim3d.data.cohort import read_cohort
from mim3d.data.files import read_label
from mim3d.data.prepare import read_images
from mim3d.evaluation.folders import class_table, evaluate_folder, label_files
from mim3d.evaluation.results import Results
from mim3d.evaluation.table import table
from mim3d.foundation.disk import check_written
from mim3d.foundation.documents import read_object
from mim3d.foundation.reporting import PlainReporter, Reporter
from mim3d.pictures.colours import paints
from mim3d.pictures.curves import draw_cases
from mim3d.pictures.overlay import draw_overlay
from mim3d.workflows.evaluate_targets import evaluate_file, predictions_file
from mim3d.workflows.prediction_jobs import RECORD
from mim3d.workflows.result import Result
from mim3d.workflows.results_place import results_place


def evaluate(
    predictions: str,
    labels: str,
    *,
    out: str | None = None,
    config: EvaluateConfig | None = None,
    reporter: Reporter | None = None,
) -> Result:
    """Dice, HD95 and NSD of every case and class, their means and intervals.

    Of predicted classes and numbers: accuracy, F1, ROC-AUC and errors, with intervals alike.

    Args:
        predictions: a folder of label maps, or one file; or `predictions.csv`, or a folder of it.
        labels: the true ones under the same names: a folder, an MSD folder, or one file; of
            `predictions.csv` a store, a CSV with `target_<name>`, or an archive.
        out: `results.json`; a CSV and pictures are written beside it. None only prints.
        config: tolerance, bootstrap, list, images to draw on.
        reporter: where progress goes.

    Returns:
        The table.

    Raises:
        UserError: a label without prediction, two grids, a foreign value, results over an input,
            or an `out` that is no `.json`.
    """
    config = config or EvaluateConfig()
    reporter = reporter or PlainReporter()
    file = predictions_file(predictions)
    if file is not None:
        notes = training_notes(str(file.parent))
        return evaluate_file(file, labels, out, config, notes, reporter)
    path = None
    if out is not None:
        images = [] if config.images is None else [Path(config.images)]
        path = results_place(out, [*_read_of(predictions), *_read_of(labels), *images])
    results = evaluate_folder(
        predictions,
        labels,
        config.evaluation,
        part=config.part,
        notes=training_notes(predictions),
        read=config.read,
        reporter=reporter,
    )
    files: list[Path] = []
    if path is not None:
        files += results.write(path)
        files.append(_chart(results, path.with_suffix(".png")))
        if config.images is not None:
            files += _overlays(config, predictions, labels, results, path, reporter)
        check_written(files)
    return Result(text=table(results), facts=results.as_json(), files=tuple(files))


def _read_of(source: str) -> list[Path]:
    """Label maps, and what describes them beside them or, of a labelled folder, above them."""
    files = list(label_files(source).values())
    beside = [files[0].with_name(name) for name in ("labels.json", "dataset.json", RECORD)]
    return [*files, *beside, files[0].parent.with_name("dataset.json")]


def training_notes(predictions: str) -> tuple[str, ...]:
    """What `mim3d predict` noted beside its files: cases that the run was trained on."""
    record = Path(predictions) / RECORD
    if not record.is_file():
        return ()
    made = read_object(record)
    seen = sorted(name for name, key in made.items() if key.get("trained_on"))
    if not seen:
        return ()
    listed = ", ".join(seen[:5]) + (" ..." if len(seen) > 5 else "")
    return (f"{len(seen)} predictions are of cases the run was trained on and flatter: {listed}",)


def _chart(results: Results, path: Path) -> Path:
    """Every case's Dice as a dot."""
    dice = results.values("dice")
    classes = {
        name: {
            case_id: float(value)
            for case_id, value in zip(results.case_ids, dice[:, column], strict=True)
            if np.isfinite(value)
        }
        for column, name in enumerate(results.structures)
    }
    return draw_cases(path, classes, title="Dice by case")


def _overlays(
    config: EvaluateConfig,
    predictions: str,
    labels: str,
    results: Results,
    out: Path,
    reporter: Reporter,
) -> list[Path]:
    """An overlay of each case whose image is found, in a folder beside the results."""
    assert config.images is not None
    guesses, truths = label_files(predictions), label_files(labels)
    cohort = read_cohort(config.images, series=config.read.series)
    images = {case.case_id: case for case in cohort.cases}
    folder = out.with_suffix("")
    table_of_paints = paints(class_table(predictions, labels, config.read))
    drawn = []
    for done, case_id in enumerate(results.case_ids):
        if case_id not in guesses:
            continue
        if case_id not in images:
            reporter.warn(f"`{case_id}` has no image in `{config.images}`, so no overlay")
            continue
        reporter.progress(done, len(results.case_ids), f"drawing {case_id}")
        image = read_images(images[case_id].images, align=False, read=config.read)
        truth = read_label(truths[case_id], read=config.read).voxels[0]
        guess = read_label(guesses[case_id], read=config.read).voxels[0]
        drawn.append(
            draw_overlay(
                folder / f"{case_id}.png",
                image=np.asarray(image.voxels[0], np.float32),
                prediction=guess,
                truth=truth,
                spacing_mm=image.spacing_mm,
                table=table_of_paints,
                title=case_id,
            )
        )
    return drawn
