"""From predicted classes and numbers, and what is true, to results: who is compared with whom."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mim3d.config.inference import EvaluationConfig
from mim3d.data.cohort.cases import listed
from mim3d.evaluation.intervals import check_evaluation
from mim3d.evaluation.known import Known, read_known
from mim3d.evaluation.predictions import Prediction, read_predictions
from mim3d.evaluation.targets import Judged, TargetResults
from mim3d.foundation.errors import UserError
from mim3d.foundation.reporting import Reporter, Silent

DEFAULT = EvaluationConfig()


def evaluate_targets(
    predictions: Path | str,
    labels: Path | str,
    config: EvaluationConfig = DEFAULT,
    *,
    part: str | None = None,
    notes: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> TargetResults:
    """Compares every predicted target with what is known of the case.

    Of a list that any prediction is of, every case whose target is known must be predicted: a file
    without the hard cases would flatter.

    Args:
        predictions: `predictions.csv`.
        labels: a store, a CSV with `target_<name>`, or an archive.
        config: bootstrap, and whether a prediction may be missing.
        part: only cases of this list.
        notes: sentences that belong to the results.
        reporter: told what is left out.

    Raises:
        UserError: nothing to compare, a case without prediction, a class that was not predicted, or
            a setting out of its range.
    """
    check_evaluation(config)
    reporter = reporter or Silent()
    known = read_known(labels)
    targets: dict[str, dict[str, Prediction]] = {}
    for row in read_predictions(predictions):
        targets.setdefault(row.target, {})[row.case_id] = row
    judged: list[Judged] = []
    classes: dict[str, tuple[float, ...]] = {}
    for target, guesses in targets.items():
        classes[target] = _classes(target, guesses.values())
        truths = _truths(known, target, guesses, part, labels)
        _check_truths(target, truths, classes[target])
        extra = [case_id for case_id in guesses if case_id not in truths]
        if extra:
            reporter.warn(
                f"{len(extra)} prediction(s) of `{target}` without a label are left out: "
                f"{listed(extra)}"
            )
        missing = [case_id for case_id in truths if case_id not in guesses]
        if missing:
            notes = (*notes, _missing(target, missing, len(truths), classes[target], config))
        judged += [
            _judged(known, case_id, target, truth, guesses.get(case_id), classes[target])
            for case_id, truth in truths.items()
        ]
    return TargetResults(tuple(judged), classes, config.resamples, config.confidence, tuple(notes))


def _classes(target: str, guesses: Iterable[Prediction]) -> tuple[float, ...]:
    """The classes that a target's predictions know, rising; none of numbers."""
    known = [tuple(sorted(row.probabilities or ())) for row in guesses]
    if len(set(known)) > 1:
        raise UserError(
            f"the predictions of `{target}` do not all know the same classes",
            remedy="every case has a probability of every class, or every case has a `value`",
            code="predictions",
        )
    return known[0]


def _truths(
    known: Known,
    target: str,
    guesses: dict[str, Prediction],
    part: str | None,
    labels: Path | str,
) -> dict[str, float]:
    """What is known of the target, of the cases that count."""
    if target not in known.names:
        raise UserError(
            f"`{target}` is predicted and not known",
            where=str(labels),
            remedy=f"it knows {', '.join(f'`{name}`' for name in known.names) or 'no target'}; "
            "a CSV gives one as `target_<name>`",
            code="no-target",
        )
    truths = {case: row[target] for case, row in known.targets.items() if target in row}
    lists = {known.parts[case] for case in truths if case in guesses} if part is None else {part}
    chosen = {case: truth for case, truth in truths.items() if known.parts[case] in lists}
    if not set(chosen) & set(guesses):
        of_list = "" if part is None else f" of the list {part}"
        raise UserError(
            f"no prediction of `{target}` is of a case{of_list} whose `{target}` is known "
            f"({listed(list(guesses))} against {listed(list(chosen or truths))})",
            where=str(labels),
            remedy="cases have the same name in both",
            code="nothing-to-compare",
        )
    return chosen


def _check_truths(target: str, truths: dict[str, float], classes: tuple[float, ...]) -> None:
    foreign = sorted(set(truths.values()) - set(classes)) if classes else []
    if foreign:
        count = list(truths.values()).count(foreign[0])
        names = ", ".join(f"{value:g}" for value in classes)
        raise UserError(
            f"`{target}` is {foreign[0]:g} in {count} case(s), and the predictions know {names}",
            remedy="correct the labels, or train anew with all classes",
            code="no-class",
        )


def _missing(
    target: str,
    missing: list[str],
    count: int,
    classes: tuple[float, ...],
    config: EvaluationConfig,
) -> str:
    """What the results say of cases without prediction, where they may be missing."""
    if not config.allow_missing:
        raise UserError(
            f"{len(missing)} of {count} cases with a known `{target}` have no prediction: "
            f"{listed(missing)}",
            remedy="predict them, name the list with `--part`, or allow it with `--allow_missing`",
            code="missing-prediction",
        )
    counted = "count as wrong" if classes else "are left out"
    return f"{len(missing)} cases without prediction of `{target}` {counted}: {listed(missing)}"


def _judged(
    known: Known,
    case_id: str,
    target: str,
    truth: float,
    guess: Prediction | None,
    classes: tuple[float, ...],
) -> Judged:
    subject = known.subjects[case_id]
    if guess is None:
        return Judged(case_id, subject, target, truth, None)
    given = guess.probabilities
    shares = None if given is None else tuple(given[value] for value in classes)
    return Judged(case_id, subject, target, truth, guess.value, shares)
