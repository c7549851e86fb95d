"""The tables that set arms against each other: the headline, and all arms at one label fraction."""

from __future__ import annotations

from collections.abc import Iterator

from mim3d.evaluation.ranking import comparisons
from mim3d.evaluation.study import HEADLINE, TARGETS, Study
from mim3d.workflows.convergence.cells import (
    NONE,
    Tested,
    behind,
    difference,
    factor,
    named,
    table,
    text,
)


def speed_up(study: Study) -> list[str]:
    """The headline: how much faster each arm is than its partner and the best contrastive."""
    found = [labels for labels in study.labels if study.present(labels)]
    columns = [(labels, other) for labels in found for other in _columns(study, labels)]
    if not columns:
        return []
    head = ["arm", *(f"labels {labels}: faster than `{other}`" for labels, other in columns)]
    rows = [
        [arm, *(_beside(study, arm, other, labels, HEADLINE) for labels, other in columns)]
        for arm in study.arms
        if study.partner(arm) != arm
    ]
    title = f"## Speed-up at {HEADLINE:.2f} of the best Dice of `{study.reference}`"
    return [title, "", *table(head, rows)] if rows else []


def fraction(study: Study, labels: str) -> Iterator[str]:
    """All arms at one label fraction: how high, how fast, and against each contrastive arm."""
    present = study.present(labels)
    tested = {(row.arm, row.other): row for row in comparisons(study, labels)}
    reference = study.reference

    def less(arm: str) -> str:
        partner = study.partner(arm)
        return named(difference(study, tested, arm, partner, labels), partner, reference)

    yield from table(
        ["arm", "replicates x pre-trainings x subjects", "final Dice", f"less `{reference}`",
         "mean height, log steps", "mean height, steps"],
        [
            [arm, behind(study, arm, labels), text(study.final(arm, labels), 3), less(arm),
             text(study.area(arm, labels, log=True), 3),
             text(study.area(arm, labels, log=False), 3)]
            for arm in present
        ],
    )  # fmt: skip
    yield ""
    yield from table(
        ["arm", *(f"steps to {x:.2f}" for x in TARGETS),
         f"faster than `{reference}` at {HEADLINE:.2f}"],
        [
            [arm, *(text(study.time(arm, labels, x), 0) for x in TARGETS),
             _beside(study, arm, reference, labels, HEADLINE)]
            for arm in present
        ],
    )  # fmt: skip
    yield from _against_each(study, labels, tested)
    yield from _other_targets(study, labels)


def _against_each(study: Study, labels: str, tested: Tested) -> Iterator[str]:
    """Arms against the reference and each contrastive arm: speed, and the height of the others.

    Contrastive arms are not tested against each other: the correction for many tests would cost
    what is asked here.
    """
    reference, present = study.reference, study.present(labels)
    led = [arm for arm in present if study.partner(arm) != arm]
    rows = [arm for arm in led if study.kind(arm) != "contrastive"]
    rivals = [arm for arm in present if study.kind(arm) == "contrastive"]
    if not rows or not rivals:
        return
    best = study.best_contrastive(labels)
    heads = [f"`{other}` (best)" if other == best else f"`{other}`" for other in rivals]

    def speed(arm: str, other: str) -> str:
        if other == reference:
            return _beside(study, arm, reference, labels, HEADLINE)
        alike = study.partner(other) == study.partner(arm)
        return factor(study, arm, other, labels, HEADLINE) if alike else NONE

    def height(arm: str, other: str) -> str:
        other = study.partner(arm) if other == reference else other
        cell = difference(study, tested, arm, other, labels)
        return cell if other in rivals else named(cell, other, reference)

    for title, cell, arms in (
        (f"faster at {HEADLINE:.2f} than", speed, led),
        ("final Dice less", height, rows),
    ):
        yield ""
        yield from table(
            [f"{title}:", f"`{reference}`", *heads],
            [[arm, *(cell(arm, other) for other in (reference, *rivals))] for arm in arms],
        )


def _other_targets(study: Study, labels: str) -> Iterator[str]:
    """Speed-up at the targets beside the headline's."""
    beside = [x for x in TARGETS if x != HEADLINE]
    pairs = [(other, x) for other in _columns(study, labels) for x in beside]
    rows = [
        [arm, *(_beside(study, arm, other, labels, x) for other, x in pairs)]
        for arm in study.present(labels)
        if study.partner(arm) != arm
    ]
    if pairs and rows:
        yield ""
        yield from table(
            ["arm", *(f"faster than `{other}` at {x:.2f}" for other, x in pairs)], rows
        )


def _columns(study: Study, labels: str) -> list[str]:
    """Whom arms are compared with: the reference and the best contrastive arm, where sound."""
    best = study.best_contrastive(labels)
    wanted = (study.reference, best) if best is not None else (study.reference,)
    return [other for other in wanted if other in study.present(labels)]


def _beside(study: Study, arm: str, column: str, labels: str, target: float) -> str:
    """Speed-up of an arm over whom a column stands for: its partner, or the best contrastive."""
    other: str | None = study.partner(arm)
    if column != study.reference:
        other = study.best_contrastive(labels, partner=other)
    return named(factor(study, arm, other, labels, target), other, column)
