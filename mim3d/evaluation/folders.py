"""From a folder of predictions and a folder of labels to results: pairing, reading, scoring."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mim3d.config.inference import EvaluationConfig
from mim3d.config.read import ReadConfig
from mim3d.data.classes import ClassTable
from mim3d.data.cohort.cases import stem
from mim3d.data.files import check_same_grid, read_label
from mim3d.data.regions import RegionScheme
from mim3d.data.volume import Volume
from mim3d.evaluation.cases import Score, score_case
from mim3d.evaluation.described import (
    Described,
    is_label_file,
    of_classes,
    of_regions,
    read_dataset_json,
    read_labels_json,
)
from mim3d.evaluation.intervals import check_evaluation
from mim3d.evaluation.overlap import Structure
from mim3d.evaluation.results import Results
from mim3d.evaluation.surface import diagonal_mm
from mim3d.foundation.documents import read_object
from mim3d.foundation.errors import UserError
from mim3d.foundation.reporting import Reporter, Silent

DEFAULT = EvaluationConfig()
READ = ReadConfig()
NAMED = 5
"""Cases that an error lists by name."""


def evaluate_folder(
    predictions: Path | str,
    labels: Path | str,
    config: EvaluationConfig = DEFAULT,
    *,
    classes: ClassTable | None = None,
    regions: RegionScheme | None = None,
    subjects: Mapping[str, str] | None = None,
    part: str | None = None,
    notes: Sequence[str] = (),
    read: ReadConfig = READ,
    reporter: Reporter | None = None,
) -> Results:
    """Scores every label file against the prediction of the same stem.

    What is scored comes from `regions`, else `classes`, else `labels.json` beside the predictions,
    else `dataset.json` beside the labels; without any of them it is every value that occurs.
    Subjects come from `subjects`, else from that `dataset.json`; else each case is one.

    Args:
        predictions: a folder, or one file.
        labels: a folder, a folder that holds `labelsTr`, or one file.
        config: tolerance, bootstrap, and whether a prediction may be missing.
        classes: values and names; other values in a file are an error.
        regions: scores these regions.
        subjects: case id to subject.
        part: only cases of this list of the labels' `dataset.json`.
        notes: sentences that belong to the results.
        read: limits of the reader.
        reporter: told how far it is.

    Raises:
        UserError: nothing to compare, a label without prediction, two grids, a foreign value, or
            a setting out of its range.
    """
    check_evaluation(config)
    reporter = reporter or Silent()
    guesses, beside_guesses = _listed(_existing(predictions))
    references, beside_labels = _listed(_existing(labels))
    known = _described(beside_guesses, beside_labels, classes, regions)
    if part is not None:
        references = _only(part, references, known)
    _check_pairs(guesses, references, config.allow_missing)
    extra = sorted(set(guesses) - set(references))
    if extra:
        reporter.warn(f"{len(extra)} prediction(s) without a label are left out: {_some(extra)}")

    structures = known.structures
    if structures is None:
        paths = [*references.values(), *(guesses[case] for case in references if case in guesses)]
        structures = _occurring(paths, read)
    scores: dict[str, list[Score]] = {}
    missing = [case_id for case_id in references if case_id not in guesses]
    largest_mm = max((_diagonal_mm(references[case_id], known, read) for case_id in missing),
                     default=0.0)  # fmt: skip
    # Those without prediction last: what they are charged hangs on all the others.
    for done, case_id in enumerate([*(c for c in references if c in guesses), *missing]):
        reporter.progress(done, len(references), f"evaluating {case_id}")
        reference = _read(references[case_id], known, read)
        guess = _read(guesses[case_id], known, read) if case_id in guesses else None
        if guess is not None:
            check_same_grid(reference, guess, where=guesses[case_id].name)
        largest_mm = max(largest_mm, diagonal_mm(reference.shape, reference.spacing_mm))
        scores[case_id] = score_case(
            reference.voxels[0],
            None if guess is None else guess.voxels[0],
            reference.spacing_mm,
            structures,
            case_id=case_id,
            subject=(subjects if subjects is not None else known.subjects).get(case_id),
            nsd_tolerance_mm=config.nsd_tolerance_mm,
            ignore_value=known.ignore_value,
            largest_mm=largest_mm,
        )
    return Results(
        structures=tuple(structure.name for structure in structures),
        scores=tuple(score for case_id in references for score in scores[case_id]),
        nsd_tolerance_mm=config.nsd_tolerance_mm,
        resamples=config.resamples,
        confidence=config.confidence,
        notes=tuple(notes),
    )


def _read(path: Path, known: Described, read: ReadConfig) -> Volume:
    labels = read_label(path, known.values, known.ignore_value, read)
    if known.scheme is not None:
        found = set(np.unique(labels.voxels).tolist())
        known.scheme.check_values(found - {known.ignore_value})
    return labels


def _diagonal_mm(path: Path, known: Described, read: ReadConfig) -> float:
    labels = _read(path, known, read)
    return diagonal_mm(labels.shape, labels.spacing_mm)


def _existing(path: Path | str) -> Path:
    path = Path(path)
    if not path.exists():
        raise UserError(f"`{path}` does not exist", code="missing-file")
    return path


def label_files(source: Path | str) -> dict[str, Path]:
    """The label files of a source by their stem, as `evaluate_folder` pairs them."""
    return _listed(_existing(source))[0]


def class_table(predictions: Path | str, labels: Path | str, read: ReadConfig = READ) -> ClassTable:
    """Values, names and colours for pictures: from `labels.json`, else every value that occurs.

    Args:
        predictions: as `evaluate_folder` takes them.
        labels: likewise.
        read: limits of the reader.
    """
    beside = _listed(_existing(predictions))[1] / "labels.json"
    if beside.is_file():
        return ClassTable.from_json(read_object(beside))
    paths = [*label_files(predictions).values(), *label_files(labels).values()]
    return ClassTable.from_values(v for s in _occurring(paths, read) for v in s.values)


def _listed(source: Path) -> tuple[dict[str, Path], Path]:
    """Label files by stem, in the order of their names, and the folder with what describes them."""
    if source.is_file():
        if source.name == "dataset.json":
            return _listed(source.parent)
        return {stem(source): source}, source.parent
    folder = source / "labelsTr" if (source / "labelsTr").is_dir() else source
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not is_label_file(path):
            continue
        other = files.setdefault(stem(path), path)
        if other is not path:
            raise UserError(
                f"`{other.name}` and `{path.name}` are both label maps of `{stem(path)}`",
                remedy="keep one of them in the folder",
                code="two-of-one-name",
            )
    if not files:
        raise UserError(f"`{folder}` holds no label maps", code="empty-cohort")
    return files, folder


def _described(
    guesses: Path, labels: Path, classes: ClassTable | None, regions: RegionScheme | None
) -> Described:
    """What is known of classes and cases, the caller's word first."""
    known = Described()
    for folder in (labels.parent, labels):
        if (folder / "dataset.json").is_file():
            known = read_dataset_json(folder / "dataset.json")
    if regions is not None:
        return replace(known, structures=of_regions(regions), scheme=regions)
    if classes is not None:
        return replace(known, structures=of_classes(classes), ignore_value=classes.ignore_value)
    if (guesses / "labels.json").is_file():
        said = read_labels_json(guesses / "labels.json")
        ignore = known.ignore_value if said.ignore_value is None else said.ignore_value
        return replace(said, ignore_value=ignore, subjects=known.subjects, parts=known.parts)
    return known


def _only(part: str, references: dict[str, Path], known: Described) -> dict[str, Path]:
    chosen = {case: path for case, path in references.items() if known.parts.get(case) == part}
    if not chosen:
        listed = sorted(set(known.parts.values()))
        raise UserError(
            f"no label belongs to the list `{part}`",
            remedy=f"the lists of `dataset.json` are {', '.join(listed)}"
            if listed
            else "there is no `dataset.json` beside the labels",
            code="no-such-list",
        )
    return chosen


def _check_pairs(
    guesses: Mapping[str, Path], references: Mapping[str, Path], allow_missing: bool
) -> None:
    missing = [case for case in references if case not in guesses]
    if len(missing) == len(references):
        raise UserError(
            f"no prediction bears the name of a label ({_some(list(guesses))} against "
            f"{_some(list(references))})",
            remedy="a prediction is named as its label; only the endings may differ",
            code="nothing-to-compare",
        )
    if missing and not allow_missing:
        raise UserError(
            f"{len(missing)} of {len(references)} labels have no prediction: {_some(missing)}",
            remedy="predict them, leave their labels out, or score them as missed with "
            "`--allow_missing`",
            code="missing-prediction",
        )


def _occurring(paths: Iterable[Path], read: ReadConfig) -> tuple[Structure, ...]:
    """One structure a value that occurs in any file."""
    values: set[int] = set()
    for path in paths:
        values.update(np.unique(read_label(path, read=read).voxels).tolist())
    values.discard(0)
    if not values:
        raise UserError("no label map holds anything but background", code="empty-cohort")
    return tuple(Structure(f"label {value}", (value,)) for value in sorted(values))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(f"`{name}`" for name in names[:NAMED]) + more
