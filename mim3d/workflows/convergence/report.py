"""The report of a convergence benchmark: JSON, CSV, Markdown and two pictures, from records."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mim3d.evaluation.convergence import Pretraining, Record
from mim3d.evaluation.costs import cost, encoder_use, replaced_labels, subjects
from mim3d.evaluation.ranking import comparisons
from mim3d.evaluation.study import HEADLINE, TARGETS, Study
from mim3d.foundation.atomic import write_json, write_text
from mim3d.foundation.versions import versions
from mim3d.pictures.convergence import Band, Panel, draw_convergence, draw_label_efficiency
from mim3d.workflows.convergence.health import why_unlearnt
from mim3d.workflows.convergence.rows import curve_rows, number_rows
from mim3d.workflows.convergence.tables import markdown
from mim3d.workflows.throughput.machine import processor

FORMAT = 1
NAME = "convergence"
About = Mapping[str, Any]
UNKNOWN = "not recorded"
"""The machine and the versions in records of older versions."""


def write_report(
    records: Sequence[Record],
    folder: Path | str,
    *,
    about: About | None = None,
    arms: Sequence[str] = (),
    reference: str = "scratch",
    resamples: int = 2000,
) -> tuple[Path, ...]:
    """Writes what the records say so far, and returns the files.

    Args:
        records: one a fine-tuning that is done or dead; of a benchmark that still runs, some.
        folder: for `convergence.json`, `.csv`, `.md`, `numbers.csv`, `curves.png` and
            `labels.png`; pictures only where a sound run is there.
        about: what was equal for all arms and what else a reader must know, line by line:
            budget, folds, data set. A mapping, such as `recipe`, is in the JSON file alone.
        arms: order of the tables; arms that are left out follow. Without: the reference first.
        reference: arm whose best Dice sets the targets of all that name no other.
        resamples: of the bootstrap.

    Raises:
        UserError: a run is there twice, or runs that should be compared are not comparable.
    """
    folder = Path(folder)
    study = Study(_ordered(records, arms or (reference,)), reference, resamples)
    summary = summarised(study, about or {})
    texts = {
        f"{NAME}.csv": curve_rows(study),
        "numbers.csv": number_rows(summary),
        f"{NAME}.md": markdown(study, summary),
    }
    files = [folder / name for name in (f"{NAME}.json", *texts)]
    write_json(files[0], summary)
    for name, text in texts.items():
        write_text(folder / name, text)
    if any(study.present(labels) for labels in study.labels):
        files += [draw_study_curves(study, folder / "curves.png")]
        files += [draw_study_labels(study, folder / "labels.png")]
    return tuple(files)


def _ordered(records: Sequence[Record], arms: Sequence[str]) -> tuple[Record, ...]:
    """By arm as asked for, labels and replicate, whatever order the runs ended in."""
    known = dict.fromkeys((*arms, *(record.arm for record in records)))
    place = {arm: number for number, arm in enumerate(known)}
    return tuple(
        sorted(records, key=lambda one: (place[one.arm], one.subjects, one.labels, one.replicate))
    )


def summarised(study: Study, about: About) -> dict[str, Any]:
    """Everything as JSON: each number with its interval, and every record it came from."""
    return {
        "format": FORMAT,
        "about": dict(about),
        "reference": study.reference,
        "targets": list(TARGETS),
        "headline_target": HEADLINE,
        "bootstrap": {
            "over": "pre-trainings, the replicates from each, and subjects, paired across arms",
            "resamples": study.resamples,
            "confidence": study.confidence,
            "seed": study.seed,
        },
        "arms": {arm: study.kind(arm) for arm in study.arms},
        "labels": {labels: _fraction(study, labels) for labels in study.labels},
        "dead": [{"run": record.name, "why": record.why_dead} for record in study.dead],
        "warnings": list(warnings(study)),
        "notes": list(notes(study)),
        "records": [_compact(record) for record in study.records],
        "machines": origins(study, "machine"),
        "made_by": origins(study, "made_by"),
        "written_on": {"processor": processor(), "system": platform.platform()},
        "versions": versions(),
    }


def warnings(study: Study) -> tuple[str, ...]:
    """What leaves a report without its headline, one sentence each."""
    sound = [labels for labels in study.labels if study.runs(study.reference, labels)]
    none = [labels for labels in study.labels if labels not in sound]
    lines = []
    if not sound:
        lines.append(
            f"no sound run of the reference `{study.reference}`: no target, hence no speed-up"
        )
    elif none:
        lines.append(
            f"no sound run of the reference `{study.reference}` with labels {', '.join(none)}: "
            "no target there, hence no speed-up"
        )
    for arm in study.arms:
        partner = study.partner(arm)
        if partner != study.reference and not any(
            study.runs(partner, labels) for labels in study.labels
        ):
            lines.append(f"no sound run of `{partner}`, with which `{arm}` is compared")
    return tuple(lines)


def origins(study: Study, of: Literal["machine", "made_by"]) -> dict[str, dict[str, int]]:
    """What sound runs were made on or by, and how many of them."""
    sound = [record for record in study.records if record.why_dead is None]
    before = {
        record.pretraining.run: record.pretraining
        for record in sound
        if record.pretraining is not None
    }
    made: dict[str, Sequence[Pretraining | Record]] = {
        "pre-trained": list(before.values()),
        "fine-tuned": sound,
    }
    return {
        what: dict(Counter(getattr(run, of) or UNKNOWN for run in runs))
        for what, runs in made.items()
    }


def notes(study: Study) -> tuple[str, ...]:
    """What a reader must know before believing a number, one sentence each."""
    lines = []
    if study.dead:
        lines.append(f"dead runs, listed and in no number: {len(study.dead)}")
    lines += _unlearnt(study)
    lines += _same_subjects(study)
    lines += _other_replicates(study)
    lines += [
        f"runs were {what} by several versions: {', '.join(made)}"
        for what, made in origins(study, "made_by").items()
        if len(made) > 1
    ]
    for labels in study.labels:
        counts = {arm: len(study.runs(arm, labels)) for arm in study.present(labels)}
        if len({tuple(study.runs(arm, labels)) for arm in counts}) > 1:
            most = max(counts.values())
            listed = ", ".join(f"`{arm}` {runs}" for arm, runs in counts.items() if runs < most)
            lines.append(
                f"labels {labels}: not every arm has the same replicates"
                + (f" ({listed} of {most})" if listed else "")
                + "; arms are compared on those that both of them and their reference have"
            )
        few = [arm for arm, runs in counts.items() if runs < 3]
        if few:
            lines.append(
                f"labels {labels}: fewer than three replicates of "
                f"{', '.join(f'`{arm}`' for arm in few)}: with two an interval is a guess, with "
                "one it holds for that run alone"
            )
        shared = [arm for arm in counts if 0 < study.pretrainings(arm, labels) < counts[arm]]
        few = [arm for arm in shared if study.pretrainings(arm, labels) < 3]
        if few:
            lines.append(
                f"labels {labels}: fewer than three pre-trainings behind the replicates of "
                f"{', '.join(f'`{arm}`' for arm in few)}: from two an interval of 95 % holds some "
                "90 %, from one it holds for that one alone"
            )
    return tuple(lines)


def _same_subjects(study: Study) -> list[str]:
    """Label fractions of as many subjects as another: the same draws, told twice."""
    by_count: dict[int, list[str]] = {}
    for labels in study.labels:
        counts = {record.subjects for record in study.records if record.labels == labels}
        if len(counts) == 1:
            by_count.setdefault(counts.pop(), []).append(labels)
    return [
        f"labels {' and '.join(alike)} are the same {count} subjects: of so few there are no more "
        "fractions"
        for count, alike in by_count.items()
        if len(alike) > 1
    ]


def _other_replicates(study: Study) -> list[str]:
    """Arms whose final Dice at two label fractions is that of other replicates."""
    listed = []
    for arm in study.arms:
        runs = {labels: tuple(study.runs(arm, labels)) for labels in study.labels}
        if len({places for places in runs.values() if places}) > 1:
            counts = ", ".join(str(len(places)) for places in runs.values())
            listed.append(f"`{arm}` {counts}")
    return [
        f"not the same replicates at every label fraction ({'; '.join(listed)}, fewest labels "
        "first): final Dice and `labels.png` are over all of them, what an arm replaces in labels "
        "over those that are everywhere"
    ] if listed else []  # fmt: skip


def _unlearnt(study: Study) -> list[str]:
    """Arms whose pre-trainings learned nothing; they stay in, or a baseline would be gone."""
    arms: dict[str, dict[str, bool]] = {}
    for record in study.records:
        if (made := record.pretraining) is not None:
            runs = arms.setdefault(record.arm, {})
            runs[made.run] = why_unlearnt(made.facts, made.steps) is not None
    return [
        f"`{arm}`: {sum(runs.values())} of {len(runs)} pre-trainings ended no better than guessing "
        "at their own task; a factor over this arm is one over an encoder that learned nothing"
        for arm, runs in arms.items()
        if any(runs.values())
    ]


def _fraction(study: Study, labels: str) -> dict[str, Any]:
    """All numbers of one label fraction."""
    return {
        "best_contrastive": study.best_contrastive(labels),
        "arms": {arm: _arm(study, arm, labels) for arm in study.present(labels)},
        "comparisons": [row.as_json() for row in comparisons(study, labels)],
    }


def _arm(study: Study, arm: str, labels: str) -> dict[str, Any]:
    partner = study.partner(arm)
    others = [one for one in (partner, *study.contrastive(labels, partner)) if one != arm]
    used, replaced = encoder_use(study, arm, labels), replaced_labels(study, arm, labels)
    curve = study.curve(arm, labels)
    return {
        "subjects": subjects(study, arm, labels),
        "replicates": list(study.runs(arm, labels)),
        "pretrainings": study.pretrainings(arm, labels),
        "judged_subjects": study.judged_subjects(arm, labels),
        "partner": partner,
        "lr": sorted({record.lr for record in study.runs(arm, labels).values()}),
        "curve": None if curve is None else vars(curve),
        "final": _json(study.final(arm, labels)),
        "mean_height_steps": _json(study.area(arm, labels, log=False)),
        "mean_height_log_steps": _json(study.area(arm, labels, log=True)),
        "steps_to": {f"{x:g}": _json(study.time(arm, labels, x)) for x in TARGETS},
        "faster_than": {
            other: {f"{x:g}": _json(study.factor(arm, other, labels, x)) for x in TARGETS}
            for other in others
        },
        "replaces_subjects": _json(replaced),
        "encoder_use": used and vars(used),
        "cost": _json(cost(study, arm, labels)),
    }


def _compact(record: Record) -> dict[str, Any]:
    """The record with Dice to five digits: as much as 10^5 voxels can tell, in half the bytes."""
    zeroed = record.zeroed_cases
    return {
        **record.as_json(),
        "dice": [[round(value, 5) for value in row] for row in record.dice],
        "zeroed_cases": zeroed and [round(value, 5) for value in zeroed],
    }


def _json(value: Any) -> Any:
    return None if value is None else value.as_json()


def draw_study_curves(study: Study, path: Path) -> Path:
    """Draws Dice against steps, a panel a label fraction; a sound run must be there."""
    title = "Dice of whole volumes while fine-tuning; band: lowest to highest replicate"
    kinds = {arm: study.kind(arm) for arm in study.arms}
    return draw_convergence(path, _panels(study), kinds, title=title)


def _panels(study: Study) -> list[Panel]:
    """One panel a label fraction with sound runs."""
    panels = []
    for labels in study.labels:
        lines = {}
        for arm in study.present(labels):
            curve = study.curve(arm, labels)
            if curve is not None:
                lines[arm] = Band(curve.steps, curve.mean, curve.low, curve.high)
        best = study.curve(study.reference, labels)
        goal = None if best is None else HEADLINE * max(best.mean)
        name = f"{100 * HEADLINE:g} % of the best `{study.reference}`".replace("`", "")
        if lines:
            panels.append(Panel(f"labels {_labels_name(study, labels)}", lines, goal, name))
    return panels


def draw_study_labels(study: Study, path: Path) -> Path:
    """Draws the last Dice against the number of labels; a sound run must be there."""
    points: dict[str, list[tuple[float, float, float, float]]] = {}
    names: dict[float, str] = {}
    for labels in study.labels:
        present = study.present(labels)
        if not present:
            continue
        count = float(np.mean([subjects(study, arm, labels) for arm in present]))
        alike = f"{names[count].splitlines()[0]}, " if count in names else ""
        names[count] = f"{alike}{labels}\n({count:g})"
        for arm in present:
            curve = study.curve(arm, labels)
            if curve is not None:
                point = (count, curve.mean[-1], curve.low[-1], curve.high[-1])
                points.setdefault(arm, []).append(point)
    lines = {arm: Band(*zip(*sorted(rows), strict=True)) for arm, rows in points.items()}
    title = "Dice after the last step against labels; bars: lowest and highest replicate"
    kinds = {arm: study.kind(arm) for arm in study.arms}
    return draw_label_efficiency(path, lines, kinds, names=names, title=title)


def _labels_name(study: Study, labels: str) -> str:
    counts = {record.subjects for record in study.records if record.labels == labels}
    listed = "-".join(str(count) for count in sorted({min(counts), max(counts)}))
    return f"{labels} ({listed} subjects)"
