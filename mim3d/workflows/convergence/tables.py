"""The Markdown tables of a convergence benchmark: short enough to paste."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from mim3d.evaluation.costs import cost, encoder_use, replaced_labels, subjects
from mim3d.evaluation.study import HEADLINE, Study
from mim3d.foundation.reporting import duration
from mim3d.workflows.convergence.cells import NONE, fewer, named, number, table, word
from mim3d.workflows.convergence.health import why_unlearnt
from mim3d.workflows.convergence.versus import fraction, speed_up


def markdown(study: Study, summary: Mapping[str, Any]) -> str:
    """The whole report as Markdown.

    Args:
        study: the records.
        summary: what stands in the JSON file, for the lines that need no computing.
    """
    parts = [
        ["# Convergence benchmark"],
        [f"**{warning}**" for warning in summary["warnings"]],
        _reading(study),
        [f"- note: {note}" for note in summary["notes"]],
        speed_up(study),
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
    named_partners = any(study.partner(arm) not in (arm, study.reference) for arm in study.arms)
    return [
        f"`steps to x` is where the mean curve first reaches x of the best Dice of "
        f"`{study.reference}` with the same labels; `faster than B` is B's steps over the "
        "arm's."
        + (
            f" Where a name stands behind a number, that arm takes the place of "
            f"`{study.reference}`, target included."
            if named_partners
            else ""
        )
        + f" [low, high]: {level} bootstrap over pre-trainings, the replicates from each, and "
        "subjects, paired across arms and widened for few of them; `>`, `<` and `open` mark what "
        "lies beyond the judged steps, of which 0 is none. Behind an interval are the replicates "
        "x pre-trainings of its arm, or `of` those that it names. p: Wilcoxon's signed-rank test "
        "over subjects, Holm-corrected over the comparisons with the same labels; it speaks of "
        "these trained models on other subjects, the interval also of other runs. **Bold**: the "
        "interval of a factor excludes 1; for Dice, interval and p agree that there is a "
        "difference; never with a single replicate or pre-training.",
    ]


def _fraction(study: Study, labels: str) -> list[str]:
    return [f"## Labels {labels}: {_counts(study, labels)}", "", *fraction(study, labels)]


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
        f"Final Dice; behind `=`, with how many labelled subjects `{study.reference}` ends there, "
        "both on the replicates that the arm has with these labels and "
        f"`{study.reference}` with all.",
        "",
        *table(["arm", *(f"labels {labels}" for labels in study.labels)], rows),
    ]


def _final_and_worth(study: Study, arm: str, labels: str) -> str:
    final, worth = study.final(arm, labels), replaced_labels(study, arm, labels)
    if final is None or final.value is None:
        return NONE
    if worth is None or worth.value is None:
        return f"{final.value:.3f}"
    sign = "" if worth.bound else "= "
    cell = f"{final.value:.3f} {sign}{worth.text(0)}"
    return named(cell, study.partner(arm), study.reference) + fewer(study, arm, labels, worth)


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
                    number(paid.in_finetunings("flop")),
                    number(paid.in_finetunings("seconds")),
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
        f"`{study.reference}` save as much as one pre-training costs; `open`: it may never pay, "
        "`never [35.0, open]`: it saves nothing, and pays after 35 at best. Times and FLOP are "
        "medians over runs.",
        "",
        *table(head, rows),
    ]


def _encoder_use(study: Study) -> list[str]:
    """Dice with the encoder's output set to zero: a gain needs an encoder that is used."""
    rows, alike = [], True
    for labels in study.labels:
        for arm in study.present(labels):
            used = encoder_use(study, arm, labels)
            if used is not None:
                alike &= used.is_alike
                lost = f"{used.dice - used.zeroed:.3f}" + ("" if used.is_alike else " ~")
                runs = len(study.runs(arm, labels))
                audited = str(runs) if used.runs == runs else f"{used.runs} of {runs}"
                rows.append([arm, labels, audited, f"{used.dice:.3f}", f"{used.zeroed:.3f}", lost])
    if not rows:
        return []
    head = ["arm", "labels", "runs", "Dice", "encoder's output zeroed", "lost"]
    note = "`~`: records of an older version; zeroed is a mean over structures, Dice over cases."
    return ["## Encoder use", "", *table(head, rows), *([] if alike else ["", note])]


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
         "; ".join(filter(None, (one.dead, why_unlearnt(one.facts, one.steps))))]
        for one in found.values()
    ]  # fmt: skip
    return ["## Pre-training runs", "",
            *table(["run", "method", "steps", "time", *names, "note"], rows)]  # fmt: skip


def _dead(study: Study) -> list[str]:
    if not study.dead:
        return []
    rows = [
        [record.arm, record.labels, str(record.replicate), record.why_dead or ""]
        for record in study.dead
    ]
    return [f"## Dead runs: {len(rows)} of {len(study.records)}, in no number above", "",
            *table(["arm", "labels", "replicate", "why"], rows, words=True)]  # fmt: skip


def _about(study: Study, summary: Mapping[str, Any]) -> list[str]:
    """What was equal, how much there is, and which machines and versions made it."""
    sound = [record for record in study.records if record.why_dead is None]
    cases = {case for record in sound for case in record.cases}
    judged = {subject for record in sound for subject in record.case_subjects}
    found = summary["versions"]
    used = ("mim3d", "commit", "python", "torch", "numpy", "scipy")
    said = summary["about"].items()
    rows = [[key, word(value)] for key, value in said if not isinstance(value, Mapping)]
    rows += [[key, "in `convergence.json`"] for key, value in said if isinstance(value, Mapping)]
    rows += [
        ["records", f"{len(study.records)}, {len(study.dead)} dead"],
        ["replicates", str(len({record.replicate for record in sound}))],
        ["judged", f"{len(cases)} cases of {len(judged)} subjects"],
        ["bootstrap", f"{study.resamples} resamples, seed {study.seed}"],
        *(
            [f"{what} {word_of}", "; ".join(f"{name} ({runs})" for name, runs in made.items())]
            for key, word_of in (("machines", "on"), ("made_by", "by"))
            for what, made in summary[key].items()
            if made
        ),
        [
            "report written on",
            f"{summary['written_on']['processor']}, {summary['written_on']['system']}",
        ],
        ["versions", ", ".join(f"{name} {found.get(name, NONE)}" for name in used)],
    ]
    return ["## How it was run", "", *table(["", "what"], rows, words=True)]


def _counts(study: Study, labels: str) -> str:
    present = study.present(labels)
    count = statistics.fmean(subjects(study, arm, labels) for arm in present)
    most = max(len(study.runs(arm, labels)) for arm in present)
    return f"{count:g} subjects with labels, up to {most} replicates"
