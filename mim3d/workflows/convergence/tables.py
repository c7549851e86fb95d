"""The Markdown tables of a convergence benchmark: short enough to paste."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mim3d.evaluation.costs import cost, encoder_use, replaced_labels, subjects
from mim3d.evaluation.estimates import Estimate
from mim3d.evaluation.ranking import Comparison, comparisons
from mim3d.evaluation.study import HEADLINE, TARGETS, Study
from mim3d.foundation.reporting import duration

NONE = "-"


def markdown(study: Study, summary: Mapping[str, Any]) -> str:
    """The whole report as Markdown.

    Args:
        study: the records.
        summary: what stands in the JSON file, for the lines that need no computing.
    """
    parts = [
        ["# Convergence benchmark"],
        _reading(study),
        [f"- note: {note}" for note in summary["notes"]],
        _speed_up(study),
        *(_fraction(study, labels) for labels in study.labels if study.present(labels)),
        _label_efficiency(study),
        _costs(study),
        _encoder_use(study),
        _pretraining(study),
        _dead(study),
        _about(study, summary),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _reading(study: Study) -> list[str]:
    level = f"{100 * study.confidence:g} %"
    return [
        f"`steps to x` is where the mean curve first reaches x of the best Dice of "
        f"`{study.reference}` with the same labels; `faster than B` is B's steps over the "
        f"arm's. [low, high]: {level} bootstrap over replicates and subjects, paired across arms "
        "and widened for few replicates; `>`, `<` and `open` mark what lies beyond the judged "
        "steps. p: Wilcoxon's signed-rank test over subjects, Holm-corrected over the comparisons "
        "with the same labels; it speaks of these trained models on other subjects, the "
        "interval also of other runs. **Bold**: the interval of a factor excludes 1; for Dice, "
        "interval and p agree that there is a difference.",
    ]


def _speed_up(study: Study) -> list[str]:
    """The headline: how much faster each arm is than the reference and the best contrastive."""
    found = [labels for labels in study.labels if study.reference in study.present(labels)]
    if not found:
        return []
    others = {labels: _others(study, labels) for labels in found}
    head = ["arm"]
    for labels in found:
        head += [f"labels {labels}: faster than `{other}`" for other in others[labels]]
    rows = []
    for arm in study.arms:
        cells = []
        for labels in found:
            cells += [_factor(study, arm, other, labels, HEADLINE) for other in others[labels]]
        rows.append([arm, *cells])
    title = f"## Speed-up at {HEADLINE:.2f} of the best Dice of `{study.reference}`"
    return [title, "", *_table(head, rows)]


def _fraction(study: Study, labels: str) -> list[str]:
    """Final Dice, area and speed of one label fraction: two tables."""
    present, others = study.present(labels), _others(study, labels)
    tested = {(row.arm, row.other): row for row in comparisons(study, labels)}
    quality = [
        [
            arm,
            str(len(study.runs(arm, labels))),
            _text(study.final(arm, labels), 3),
            *(_difference(tested, arm, other) for other in others),
            _text(study.area(arm, labels, log=True), 3),
            _text(study.area(arm, labels, log=False), 3),
        ]
        for arm in present
    ]
    head = ["arm", "runs", "final Dice", *(f"less `{other}`" for other in others)]
    speed = [
        [
            arm,
            *(_text(study.time(arm, labels, x), 0) for x in TARGETS),
            *(_factor(study, arm, other, labels, HEADLINE) for other in others),
        ]
        for arm in present
    ]
    quick = ["arm", *(f"steps to {x:.2f}" for x in TARGETS)]
    quick += [f"faster than `{other}` at {HEADLINE:.2f}" for other in others]
    return [
        f"## Labels {labels}: {_counts(study, labels)}",
        "",
        *_table([*head, "mean height, log steps", "mean height, steps"], quality),
        "",
        *_table(quick, speed),
        *_other_targets(study, labels, others),
    ]


def _others(study: Study, labels: str) -> list[str]:
    """Whom arms are compared with: the reference and the best contrastive arm, where sound."""
    best = study.best_contrastive(labels)
    wanted = (study.reference, best) if best is not None else (study.reference,)
    return [other for other in wanted if other in study.present(labels)]


def _other_targets(study: Study, labels: str, others: Sequence[str]) -> Iterator[str]:
    """Speed-up at the targets beside the headline's."""
    beside = [x for x in TARGETS if x != HEADLINE]
    pairs = [(other, x) for other in others for x in beside]
    if pairs:
        head = ["arm", *(f"faster than `{other}` at {x:.2f}" for other, x in pairs)]
        rows = [
            [arm, *(_factor(study, arm, other, labels, x) for other, x in pairs)]
            for arm in study.present(labels)
        ]
        yield ""
        yield from _table(head, rows)


def _label_efficiency(study: Study) -> list[str]:
    """Final Dice by label fraction, and how many labels of the reference that replaces."""
    if len(study.labels) < 2:
        return []
    rows = [
        [arm, *(_final_and_worth(study, arm, labels) for labels in study.labels)]
        for arm in study.arms
    ]
    return [
        "## Label efficiency",
        "",
        f"Final Dice; behind `=`, with how many labelled subjects `{study.reference}` ends there.",
        "",
        *_table(["arm", *(f"labels {labels}" for labels in study.labels)], rows),
    ]


def _final_and_worth(study: Study, arm: str, labels: str) -> str:
    final, worth = study.final(arm, labels), replaced_labels(study, arm, labels)
    if final is None or final.value is None:
        return NONE
    if worth is None or arm == study.reference:
        return f"{final.value:.3f}"
    sign = worth[1] or "="
    return f"{final.value:.3f} {sign} {worth[0]:.0f}"


def _costs(study: Study) -> list[str]:
    """What pre-training costs, in fine-tunings, and after how many it has paid."""
    rows = []
    for labels in study.labels:
        for arm in study.present(labels):
            paid = cost(study, arm, labels)
            if paid is None or not paid.pretraining_runs:
                continue
            even = (paid.break_even_flop, paid.break_even_seconds)
            rows.append(
                [
                    arm,
                    labels,
                    f"{duration(paid.pretraining_seconds)} x {paid.pretraining_runs}",
                    f"{paid.pretraining_flop:.2e}",
                    duration(paid.finetuning_seconds),
                    _number(paid.in_finetunings("flop")),
                    _number(paid.in_finetunings("seconds")),
                    *(NONE if one is None else one.text() for one in even),
                ]
            )
    if not rows:
        return []
    head = [
        "arm", "labels", "one pre-training x runs", "FLOP", "one fine-tuning",
        "in fine-tunings, FLOP", "in time", "pays after, FLOP", "in time",
    ]  # fmt: skip
    return [
        "## What pre-training costs",
        "",
        f"`pays after`: how many fine-tunings to {HEADLINE:.2f} of the best Dice of "
        f"`{study.reference}` save as much as one pre-training costs.",
        "",
        *_table(head, rows),
    ]


def _encoder_use(study: Study) -> list[str]:
    """Dice with the encoder's output set to zero: a gain needs an encoder that is used."""
    rows = []
    for labels in study.labels:
        for arm in study.present(labels):
            used = encoder_use(study, arm, labels)
            if used is not None:
                real, zeroed = used
                rows.append([arm, labels, f"{real:.3f}", f"{zeroed:.3f}", f"{real - zeroed:.3f}"])
    head = ["arm", "labels", "Dice", "encoder's output zeroed", "lost"]
    return ["## Encoder use", "", *_table(head, rows)] if rows else []


def _pretraining(study: Study) -> list[str]:
    """Every pre-training once, with what was measured of it."""
    found = {
        record.pretraining.run: record.pretraining
        for record in study.records
        if record.pretraining is not None
    }
    if not found:
        return []
    names = sorted({name for one in found.values() for name in one.facts})
    rows = [
        [one.run, one.method, str(one.steps), duration(one.seconds),
         *(f"{one.facts[name]:.4g}" if name in one.facts else NONE for name in names),
         one.dead or ""]
        for one in found.values()
    ]  # fmt: skip
    return ["## Pre-training runs", "",
            *_table(["run", "method", "steps", "time", *names, "dead"], rows)]  # fmt: skip


def _dead(study: Study) -> list[str]:
    if not study.dead:
        return []
    rows = [
        [record.arm, record.labels, str(record.replicate), record.why_dead or ""]
        for record in study.dead
    ]
    return [f"## Dead runs: {len(rows)} of {len(study.records)}, in no number above", "",
            *_table(["arm", "labels", "replicate", "why"], rows, words=True)]  # fmt: skip


def _about(study: Study, summary: Mapping[str, Any]) -> list[str]:
    """What was equal, how much there is, and which machine and versions made it."""
    sound = [record for record in study.records if record.why_dead is None]
    cases = {case for record in sound for case in record.cases}
    judged = {subject for record in sound for subject in record.case_subjects}
    found = summary["versions"]
    used = ("mim3d", "commit", "python", "torch", "numpy", "scipy")
    rows = [[key, _word(value)] for key, value in summary["about"].items()]
    rows += [
        ["records", f"{len(study.records)}, {len(study.dead)} dead"],
        ["replicates", str(len({record.replicate for record in sound}))],
        ["judged", f"{len(cases)} cases of {len(judged)} subjects"],
        ["bootstrap", f"{study.resamples} resamples, seed {study.seed}"],
        ["report written on", f"{summary['machine']['processor']}, {summary['machine']['system']}"],
        ["versions", ", ".join(f"{name} {found.get(name, NONE)}" for name in used)],
    ]
    return ["## How it was run", "", *_table(["", "what"], rows, words=True)]


def _difference(tested: Mapping[tuple[str, str], Comparison], arm: str, other: str) -> str:
    row = tested.get((arm, other))
    if row is None:
        return NONE
    text = f"{row.difference.text(3)}, p {row.p_holm:.2g}"
    return f"**{text}**" if row.shown else text


def _factor(study: Study, arm: str, other: str, labels: str, target: float) -> str:
    if arm == other:
        return NONE
    factor = study.factor(arm, other, labels, target)
    if factor is None:
        return NONE
    sure = factor.replicates > 1 and factor.excludes(1.0)
    return f"**{factor.text()}**" if sure else factor.text()


def _counts(study: Study, labels: str) -> str:
    present = study.present(labels)
    count = statistics.fmean(subjects(study, arm, labels) for arm in present)
    most = max(len(study.runs(arm, labels)) for arm in present)
    return f"{count:g} subjects with labels, up to {most} replicates"


def _text(estimate: Estimate | None, digits: int) -> str:
    return NONE if estimate is None else estimate.text(digits)


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: bool = False) -> list[str]:
    rule = ["---", *("---" if words else "---:" for _ in head[1:])]
    cleaned = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)
    return [f"| {' | '.join(row)} |" for row in (head, rule, *cleaned)]
