"""Results on label maps: class by class, case by case with the worst first, boxes and pictures."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mim3d.evaluation.cases import Score
from mim3d.evaluation.intervals import row_means
from mim3d.evaluation.results import MEAN, Results, Summary
from mim3d.evaluation.table import count
from mim3d.pages.report.elements import (
    Cell,
    Details,
    Element,
    Notes,
    Prose,
    Row,
    Section,
    Table,
    numeric,
)
from mim3d.pages.report.figures import Gallery, Picture, read_picture
from mim3d.pictures.boxes import draw_boxes
from mim3d.workflows.report.desk import Desk
from mim3d.workflows.report.progress import spread
from mim3d.workflows.report.runs import Group
from mim3d.workflows.report.sources import Evaluated, picture_of

MOST_BOXES = 40
"""Classes of a box plot."""
BOXES = (
    "Box: quartiles, with the median as a line. Whiskers: to the last value within one and a half "
    "box lengths."
)


def results_of(evaluated: Sequence[Evaluated], desk: Desk) -> Iterator[Element]:
    """All results: first beside each other, then one by one."""
    if len(evaluated) > 1:
        yield Section("Beside each other", tuple(_side_by_side(evaluated, desk)), rank=3)
    for one in evaluated:
        yield Section(f"`{one.name}`", tuple(_one(one, desk)), anchor=anchor(one.name), rank=3)


def anchor(*names: str) -> str:
    """An id for an element of the page."""
    return "-".join(re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-") or "x" for name in names)


def _side_by_side(evaluated: Sequence[Evaluated], desk: Desk) -> Iterator[Element]:
    summaries = {one.name: one.results.summary() for one in evaluated}
    names = dict.fromkeys(name for found in summaries.values() for name in found)
    ordered = [name for name in names if name != MEAN] + [MEAN]
    rows: list[Row] = []
    for name in ordered:
        found = (summaries[one.name].get(name, {}).get("dice") for one in evaluated)
        rows.append([name, *(_summary_cell(summary, 3, is_share=True) for summary in found)])
    yield Table(["Dice", *(f"`{one.name}`" for one in evaluated)], rows)
    groups: dict[str, dict[str, list[float]]] = {}
    for one in evaluated:
        values = one.results.values("dice")
        for column, name in enumerate(one.results.structures[:MOST_BOXES]):
            groups.setdefault(name, {})[one.name] = values[:, column].tolist()
    if any(math.isfinite(v) for arms in groups.values() for vs in arms.values() for v in vs):
        yield Gallery([_boxes(groups, "dice", "Dice, one dot a case", desk)], is_wide=True)


def _one(one: Evaluated, desk: Desk) -> Iterator[Element]:
    results = one.results
    yield Prose(
        f"{count(len(results.case_ids), 'case')} of {count(len(results.subjects), 'subject')}. "
        f"[low, high]: {100 * results.confidence:g} % bootstrap over subjects, "
        f"{results.resamples} resamples. A structure that is missed or hallucinated scores Dice 0, "
        "surface Dice 0 and the image's diagonal as HD95; one that is absent from both sides is in "
        "no mean.",
        is_small=True,
    )
    yield Notes(results.notes, "warning")
    if not results.scores:
        yield Prose("It holds no case.")
        return
    yield _classes(results)
    yield Section("Worst cases", tuple(_worst(one, desk)), rank=4)
    boxes = list(_box_plots(results, desk))
    if boxes:
        inside = (Prose(BOXES, is_small=True), Gallery(boxes, is_wide=True))
        yield Section("How the cases lie", inside, rank=4)
    yield Section("Every case", tuple(_every_case(one, desk)), rank=4)


def _classes(results: Results) -> Table:
    rows: list[Row] = []
    for name, metrics in results.summary().items():
        if not metrics:
            continue
        counts = metrics["dice"]
        rows.append(
            [
                f"**{name}**" if name == MEAN else name,
                _summary_cell(metrics["dice"], 3, is_share=True),
                _summary_cell(metrics["hd95_mm"], 2),
                _summary_cell(metrics["nsd"], 3, is_share=True),
                numeric(counts.mean_where_both_present, 3),
                *(Cell(str(n), float(n)) for n in
                  (counts.n, counts.missed, counts.hallucinated, counts.absent)),
            ]
        )  # fmt: skip
    near = f"surface Dice at {results.nsd_tolerance_mm:g} mm"
    head = ["class", "Dice", "HD95 mm", near, "Dice where both present", "n", "missed",
            "hallucinated", "absent"]  # fmt: skip
    return Table(head, rows, caption="Per class: mean over the cases, with interval.")


def _summary_cell(summary: Summary | None, digits: int, *, is_share: bool = False) -> Cell:
    """A mean and its interval."""
    if summary is None or summary.mean is None:
        return Cell("-")
    text = f"{summary.mean:.{digits}f}"
    if summary.low is not None and summary.high is not None:
        text += f" [{summary.low:.{digits}f}, {summary.high:.{digits}f}]"
    return Cell(text, summary.mean, summary.mean if is_share else None)


def _ranked(results: Results) -> list[tuple[str, float]]:
    """Cases and the mean of their Dice over the structures they have, worst first.

    A case that has none of the structures on either side cannot be ranked and comes last.
    """
    means = row_means(results.values("dice")).tolist()
    pairs = zip(results.case_ids, means, strict=True)
    return sorted(pairs, key=lambda pair: (math.isnan(pair[1]), pair[1], pair[0]))


def _worst(one: Evaluated, desk: Desk) -> Iterator[Element]:
    """Pictures of the worst cases that have one."""
    ranked = [pair for pair in _ranked(one.results) if not math.isnan(pair[1])]
    chosen = ranked[: max(0, desk.settings.worst)]
    by_case = _by_case(one.results)
    pictures: list[Picture] = []
    without: list[str] = []
    for case, mean in chosen:
        told = f"`{case}`: Dice {mean:.3f}. {_told(by_case[case])}"
        if case in one.pictures:
            says = f"segmentation of case {case}"
            pictures.append(
                read_picture(one.pictures[case], says, told, anchor(one.name, "case", case))
            )
        else:
            without.append(told)
    yield Gallery(pictures, is_wide=True)
    yield Notes(without)
    if without and not one.pictures:
        yield Prose(
            "No pictures of these cases were found: `mim3d evaluate ... --images FOLDER` draws "
            "them beside the results, and `--report.pictures FOLDER` takes those of `mim3d "
            "predict`.",
            is_small=True,
        )


def _by_case(results: Results) -> Mapping[str, list[Score]]:
    found: dict[str, list[Score]] = {}
    for score in results.scores:
        found.setdefault(score.case_id, []).append(score)
    return found


def _told(scores: Sequence[Score], most: int = 5) -> str:
    """The structures of a case in words, worst first."""
    there = sorted((s for s in scores if s.dice is not None), key=lambda s: s.dice or 0.0)
    words = [
        f"{s.structure} {s.dice:.3f}" + (f" ({s.counted_as})" if s.counted_as != "case" else "")
        for s in there[:most]
    ]
    more = f" and {len(there) - most} more" if len(there) > most else ""
    return ", ".join(words) + more


def _box_plots(results: Results, desk: Desk) -> Iterator[Picture]:
    names = {"dice": "Dice", "nsd": f"surface Dice at {results.nsd_tolerance_mm:g} mm",
             "hd95_mm": "HD95 in mm"}  # fmt: skip
    for metric, name in names.items():
        values = results.values(metric)
        groups = {
            structure: {"": values[:, column].tolist()}
            for column, structure in enumerate(results.structures[:MOST_BOXES])
        }
        if np.isfinite(values[:, :MOST_BOXES]).any():
            yield _boxes(groups, metric, f"{name}, one dot a case", desk)


def _boxes(
    groups: Mapping[str, Mapping[str, Sequence[float]]], metric: str, title: str, desk: Desk
) -> Picture:
    whole = None if metric == "hd95_mm" else (-0.02, 1.02)
    quantity = title.split(",")[0]
    return desk.picture(
        lambda path: draw_boxes(path, groups, quantity=quantity, title=title, whole=whole),
        f"box plots of {quantity} for {', '.join(groups)}",
    )


def _every_case(one: Evaluated, desk: Desk) -> Iterator[Element]:
    results = one.results
    rows: list[Row] = []
    by_case, most = _by_case(results), max(1, desk.settings.rows)
    ranked = _ranked(results)
    drawn = {case for case, _ in ranked[: max(0, desk.settings.worst)] if case in one.pictures}
    has_subjects = any(score.subject != score.case_id for score in results.scores)
    for case, mean in ranked[:most]:
        scores = {score.structure: score for score in by_case[case]}
        link = anchor(one.name, "case", case) if case in drawn else None
        whose = [next(iter(scores.values())).subject] if has_subjects else []
        rows.append([Cell(case, anchor=link), *whose, numeric(mean, 3, is_share=True),
                     *(_score_cell(scores.get(name)) for name in results.structures)])  # fmt: skip
    head = ["case", *(["subject"] if has_subjects else []), "mean Dice", *results.structures]
    place = 2 if has_subjects else 1
    left = f" The worst {most} of {len(ranked)}." if len(ranked) > most else ""
    caption = f"Dice of every case, worst first.{left}"
    yield Table(head, rows, caption=caption, sorted_by=place)
    yield Details("Every case and class, with distances", (_every_score(results, most),))


def _score_cell(score: Score | None) -> Cell:
    if score is None or score.dice is None:
        return Cell("-")
    said = "" if score.counted_as == "case" else f" {score.counted_as}"
    return Cell(f"{score.dice:.3f}{said}", score.dice, score.dice)


def _every_score(results: Results, most: int) -> Table:
    there = [score for score in results.scores if score.dice is not None]
    there.sort(key=lambda score: (score.dice, -(score.hd95_mm or 0.0), score.case_id))
    rows: list[Row] = [
        [score.case_id, score.structure, numeric(score.dice, 3, is_share=True),
         numeric(score.hd95_mm, 2), numeric(score.nsd, 3, is_share=True), score.counted_as]
        for score in there[:most]
    ]  # fmt: skip
    head = ["case", "class", "Dice", "HD95 mm", "surface Dice", "counted as"]
    left = f" The worst {most} of {len(there)}; the CSV beside the results holds all."
    caption = "Worst first." + (left if len(there) > most else "")
    return Table(head, rows, caption=caption, sorted_by=2)


# Cases of a run's own validation


def validation_of(groups: Sequence[Group], desk: Desk) -> Iterator[Element]:
    """Dice of the cases on which fine-tunings were judged themselves: boxes, and worst first."""
    judged = [group for group in groups if any(run.final_cases() for run in group.runs)]
    if not judged:
        return
    each: dict[str, dict[str, list[float]]] = {}
    for group in judged:
        for run in group.runs:
            for case, dice in run.final_cases().items():
                each.setdefault(case, {}).setdefault(group.name, []).append(dice)
    by_group = {
        f"{group.name}": [dice for values in each.values() for dice in values.get(group.name, ())]
        for group in judged
    }
    title = "Dice at the last look, one dot a case"
    if any(len(group.runs) > 1 for group in judged):
        title += " and seed"
    yield Gallery([_boxes({name: {"": v} for name, v in by_group.items()}, "dice", title, desk)],
                  is_wide=True)  # fmt: skip
    ranked = sorted(each, key=lambda case: (min(map(min, each[case].values())), case))
    yield Gallery(list(_drawn(ranked, desk)), is_wide=True)
    most = max(1, desk.settings.rows)
    rows: list[Row] = [
        [case, numeric(min(map(min, each[case].values())), 3, is_share=True),
         *(spread(each[case].get(group.name, ())) for group in judged)]
        for case in ranked[:most]
    ]  # fmt: skip
    head = ["case", "lowest", *(f"`{group.name}`" for group in judged)]
    left = f" The worst {most} of {len(ranked)}." if len(ranked) > most else ""
    yield Table(head, rows, sorted_by=1, caption="Dice of the cases that the runs judged "
                f"themselves on, a mean over the classes of each; worst first.{left}")  # fmt: skip


def _drawn(ranked: Sequence[str], desk: Desk) -> Iterator[Picture]:
    """Pictures of the worst cases, where a folder of them was named."""
    if desk.settings.pictures is None:
        return
    for case in ranked[: max(0, desk.settings.worst)]:
        path = picture_of(Path(desk.settings.pictures), case)
        if path is not None:
            yield read_picture(path, f"segmentation of case {case}", f"`{case}`")
