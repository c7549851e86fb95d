"""A convergence benchmark on the page: its own tables, its figures, its cases and its runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from mim3d.evaluation.case_dice import case_means, final_dice
from mim3d.pages.report.elements import (
    Details,
    Element,
    Notes,
    Row,
    Section,
    Table,
    numeric,
)
from mim3d.pages.report.figures import Gallery, Picture
from mim3d.pages.report.markdown import sections
from mim3d.pictures.boxes import draw_boxes
from mim3d.workflows.convergence.report import draw_study_curves, draw_study_labels
from mim3d.workflows.convergence.tables import markdown
from mim3d.workflows.report.cases import anchor
from mim3d.workflows.report.desk import Desk
from mim3d.workflows.report.progress import curves_of
from mim3d.workflows.report.runs import grouped
from mim3d.workflows.report.setup import data_of, settings_of
from mim3d.workflows.report.sources import Benchmarked


def benchmarks_of(benchmarks: Sequence[Benchmarked], desk: Desk) -> Iterator[Element]:
    """Every benchmark."""
    for one in benchmarks:
        yield Section(f"`{one.name}`", tuple(_one(one, desk)), anchor=anchor(one.name), rank=3)


def _one(one: Benchmarked, desk: Desk) -> Iterator[Element]:
    lines = []
    if one.later:
        lines.append(f"{one.later} records of the folder are not in its report yet: the command "
                     "that began the benchmark takes them in")  # fmt: skip
    yield Notes([*lines, *one.unread], "warning")
    head, *parts = sections(markdown(one.study, one.summary))
    yield from head.children
    yield Gallery(_figures(one, desk), is_wide=True)
    yield from parts
    yield from _cases(one, desk)
    yield from _losses(one, desk)


def _figures(one: Benchmarked, desk: Desk) -> list[Picture]:
    study = one.study
    if not any(study.present(labels) for labels in study.labels):
        return []
    arms = ", ".join(study.arms)
    return [
        desk.picture(
            lambda path: draw_study_curves(study, path),
            f"Dice against steps of fine-tuning at labels {', '.join(study.labels)}, one line each "
            f"for {arms}",
            "Convergence: mean over replicates; band: lowest to highest.",
        ),
        desk.picture(
            lambda path: draw_study_labels(study, path),
            f"Dice after the last step against labelled subjects, one line each for {arms}",
            "Label efficiency: mean over replicates; bars: lowest to highest.",
        ),
    ]


def _cases(one: Benchmarked, desk: Desk) -> Iterator[Element]:
    """Final Dice case by case at every label fraction, worst first."""
    study, most = one.study, max(1, desk.settings.rows)
    for labels in study.labels:
        arms = study.present(labels)
        means = {arm: case_means(study, arm, labels) for arm in arms}
        if not means:
            continue
        lowest: dict[str, float] = {}
        for found in means.values():
            for case, dice in found.items():
                lowest[case] = min(dice, lowest.get(case, dice))
        ranked = sorted(lowest, key=lambda case: (lowest[case], case))
        rows: list[Row] = [
            [case, numeric(lowest[case], 3, is_share=True),
             *(numeric(means[arm].get(case), 3) for arm in arms)]
            for case in ranked[:most]
        ]  # fmt: skip
        left = f" The worst {most} of {len(ranked)}." if len(ranked) > most else ""
        table = Table(
            ["case", "lowest", *(f"`{arm}`" for arm in arms)], rows, sorted_by=1,
            caption=f"Final Dice of each case, mean over replicates; worst first.{left}",
        )  # fmt: skip
        values = {
            arm: {"": [dice for each in final_dice(study, arm, labels).values() for dice in each]}
            for arm in arms
        }
        boxes = desk.picture(
            partial(
                draw_boxes, groups=values, quantity="Dice", title=f"Final Dice, labels {labels}"
            ),
            f"box plots of final Dice with labels {labels} for {', '.join(arms)}",
            "One dot a case and replicate.",
        )
        heading = f"Cases with labels {labels}"
        yield Section(heading, (Gallery([boxes], is_wide=True), table), rank=4)


def _losses(one: Benchmarked, desk: Desk) -> Iterator[Element]:
    """Losses of the pre-trainings, where the folder still has them."""
    before = [group for group in grouped(one.runs) if group.verb == "pretrain"]
    curves = tuple(curves_of(before, desk))
    if curves:
        yield Details("Curves of the pre-trainings", curves)


def setup_of(benchmarks: Sequence[Benchmarked], desk: Desk) -> Iterator[Element]:
    """Data and settings of the runs behind benchmarks, where their folders still have them."""
    for one in benchmarks:
        groups = grouped(one.runs)
        if groups:
            settings = Details(
                f"Settings of its {len(one.runs)} runs", tuple(settings_of(groups, desk))
            )
            yield Section(f"Runs of `{one.name}`", (*data_of(groups, desk), settings), rank=3)
