"""Cells and tables of the Markdown report of a convergence benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mim3d.evaluation.estimates import Estimate
from mim3d.evaluation.ranking import Comparison
from mim3d.evaluation.study import Study

NONE = "-"
Tested = Mapping[tuple[str, str], Comparison]
"""Comparisons of final Dice by arm and other."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: bool = False) -> list[str]:
    """The lines of a table; columns after the first are numbers unless they are `words`."""
    rule = ["---", *("---" if words else "---:" for _ in head[1:])]
    cleaned = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)
    return [f"| {' | '.join(row)} |" for row in (head, rule, *cleaned)]


def text(estimate: Estimate | None, digits: int) -> str:
    """An estimate with its interval."""
    return NONE if estimate is None else estimate.text(digits)


def number(value: float | None) -> str:
    """A number without an interval."""
    return NONE if value is None else f"{value:.1f}"


def word(value: object) -> str:
    """A setting as one says it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def behind(study: Study, arm: str, labels: str) -> str:
    """Replicates x pre-trainings x judged subjects of an arm: `6 x 2 x 16`."""
    runs = len(study.runs(arm, labels))
    return f"{_pair(runs, study.pretrainings(arm, labels))} x {study.judged_subjects(arm, labels)}"


def factor(study: Study, arm: str, other: str | None, labels: str, target: float) -> str:
    """How much faster the arm is; bold where the interval excludes 1."""
    if other is None or arm == other:
        return NONE
    found = study.factor(arm, other, labels, target)
    if found is None:
        return NONE
    several = study.judged_subjects(arm, labels) > 1
    sure = several and found.is_repeated and found.excludes(1.0)
    return _bold(found.text(), sure) + fewer(study, arm, labels, found)


def difference(study: Study, tested: Tested, arm: str, other: str | None, labels: str) -> str:
    """How much higher the arm ends; bold where interval and test say so."""
    row = tested.get((arm, other)) if other is not None else None
    if row is None:
        return NONE
    said = f"{row.difference.text(3)}, p {row.p_holm:.2g}"
    return _bold(said, row.shown) + fewer(study, arm, labels, row.difference)


def fewer(study: Study, arm: str, labels: str, found: Estimate) -> str:
    """What is behind a comparison, where it is not what is behind the arm alone."""
    own = (len(study.runs(arm, labels)), study.pretrainings(arm, labels))
    both = (found.replicates, found.pretrainings)
    return "" if both == own else f", of {_pair(*both)}"


def named(cell: str, other: str | None, column: str | None) -> str:
    """A cell, with whom the arm is compared where the head of the column names another."""
    return cell if cell == NONE or other == column else f"{cell} (`{other}`)"


def _pair(replicates: int, pretrainings: int) -> str:
    return f"{replicates} x {pretrainings or NONE}"


def _bold(cell: str, sure: bool) -> str:
    return f"**{cell}**" if sure else cell
