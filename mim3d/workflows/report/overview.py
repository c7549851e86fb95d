"""The first thing on the page: everything that was given in one table, and what to beware of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mim3d.evaluation.results import MEAN
from mim3d.evaluation.study import HEADLINE
from mim3d.pages.report.elements import Cell, Element, Row, Table, Tiles
from mim3d.workflows.report.cases import anchor
from mim3d.workflows.report.desk import listed
from mim3d.workflows.report.progress import headline, spread, unfinished
from mim3d.workflows.report.runs import VERBS, Group
from mim3d.workflows.report.sources import Benchmarked, Evaluated, EvaluatedTargets, Material


def overview_of(material: Material, groups: Sequence[Group]) -> Iterator[Element]:
    """Runs, results and benchmarks, one line each."""
    yield unfinished(groups)
    if groups:
        yield _runs(groups)
    rows: list[Row] = [_result(one) for one in material.results]
    if rows:
        yield Table(["results", "of", "cases", "mean Dice", "mean HD95 mm", "missed"], rows)
    if material.targets:
        head = ["results", "targets", "cases"]
        yield Table(head, [_target_result(one) for one in material.targets])
    if material.benchmarks:
        head = ["benchmark", "arms", "labels", "fine-tunings", "dead"]
        yield Table(head, [_benchmark(one) for one in material.benchmarks])


def _runs(groups: Sequence[Group]) -> Table:
    rows: list[Row] = []
    for group in groups:
        _, name, values = headline(group)
        states = ", ".join(dict.fromkeys(run.state for run in group.runs))
        seeds = ", ".join(str(run.seed) for run in group.runs)
        verb = VERBS.get(group.verb, group.verb)
        rows.append([f"`{group.name}`", verb, _origin(group), seeds, states, name, spread(values)])
    head = ["run", "verb", "starts from", "seeds", "state", "measured", "at the end"]
    return Table(head, rows)


def _origin(group: Group) -> str:
    """Names of the runs that a group started from."""
    starts = [run.settings.get("init") for run in group.runs]
    names = [Path(str(one)).name for one in starts if one not in (None, "none")]
    return listed(list(dict.fromkeys(names)), 3) or "scratch"


def _result(one: Evaluated) -> Row:
    results = one.results
    summary = results.summary()[MEAN]
    cases = len(results.case_ids)
    dice, distance = summary.get("dice"), summary.get("hd95_mm")
    mean = None if dice is None else dice.mean
    far = None if distance is None else distance.mean
    return [
        Cell(f"`{one.name}`", anchor=anchor(one.name)),
        f"{len(results.structures)} classes",
        Cell(str(cases), float(cases)),
        Cell("-") if mean is None else Cell(f"{mean:.3f}", mean, mean),
        Cell("-") if far is None else Cell(f"{far:.2f}", far),
        Cell("-") if dice is None else Cell(str(dice.missed), float(dice.missed)),
    ]


def _target_result(one: EvaluatedTargets) -> Row:
    cases = len({row.case_id for row in one.results.judged})
    names = ", ".join(one.results.classes)
    return [Cell(f"`{one.name}`", anchor=anchor(one.name)), names, Cell(str(cases), float(cases))]


def _benchmark(one: Benchmarked) -> Row:
    study = one.study
    return [
        Cell(f"`{one.name}`", anchor=anchor(one.name)),
        ", ".join(study.arms),
        ", ".join(study.labels),
        Cell(str(len(study.records)), float(len(study.records))),
        Cell(str(len(study.dead)), float(len(study.dead))),
    ]


def tiles_of(material: Material, groups: Sequence[Group]) -> Tiles:
    """At most a handful of numbers in large letters."""
    tiles: dict[str, tuple[str, str]] = {}
    for one in material.benchmarks[:1]:
        tiles |= _speeds(one)
    for result in material.results[:4]:
        summary = result.results.summary()[MEAN].get("dice")
        if summary is not None and summary.mean is not None:
            below = f"{len(result.results.case_ids)} cases"
            if summary.low is not None and summary.high is not None:
                below = f"[{summary.low:.3f}, {summary.high:.3f}], {below}"
            tiles[f"Dice, `{result.name}`"] = (f"{summary.mean:.3f}", below)
    for group in [g for g in groups if g.verb != "convert"][: max(0, 5 - len(tiles))]:
        _, name, values = headline(group)
        if values:
            shown = spread(values)
            below = name + (f", {len(values)} seeds" if len(values) > 1 else "")
            tiles[f"`{group.name}`"] = (shown.text.split(" ")[0], below)
    return Tiles(tiles)


def _speeds(one: Benchmarked, most: int = 5) -> dict[str, tuple[str, str]]:
    """How much faster each arm is than whom it is compared with, at the fewest labels told."""
    study = one.study
    for labels in study.labels:
        found: dict[str, tuple[str, str]] = {}
        for arm in study.present(labels):
            partner = study.partner(arm)
            factor = None if arm == partner else study.factor(arm, partner, labels, HEADLINE)
            if factor is not None and factor.value is not None:
                number, _, interval = factor.text().partition(" [")
                below = f"[{interval}, labels {labels}" if interval else f"labels {labels}"
                found[f"`{arm}`: speed over `{partner}`"] = (f"{number} x", below)
        if found:
            return dict(list(found.items())[:most])
    return {}
