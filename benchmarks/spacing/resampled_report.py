"""What was judged, as estimates with intervals, tables and a picture.

Seeds are replicates with a pre-training each, and cases belong to subjects: intervals come from the
bootstrap of the convergence benchmark over both, in which all arms share the draws. What is
compared is compared within a seed and a case.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mim3d.data.palette import colour
from mim3d.evaluation.draws import Draws, draw
from mim3d.evaluation.estimates import Estimate, Ranges
from mim3d.evaluation.intervals import group_by_subject
from mim3d.foundation.atomic import write_json, write_text
from mim3d.foundation.versions import versions
from mim3d.pictures.canvas import LARGE, NORMAL, SMALL, axes_at, new_figure, plain_axes, write_at
from mim3d.pictures.canvas import save as save_figure
from mim3d.pictures.colours import unit
from mim3d.workflows.throughput.machine import machine

Array = NDArray[np.float64]

REFERENCE = "mm"
"""The arm that all others are compared with."""
RESAMPLES = 2000
CONFIDENCE = 0.95
COLUMNS = ("seed", "arm", "factor", "axes", "window", "case_id", "subject", "structure", "dice",
           "hd95_mm", "counted_as")  # fmt: skip
TONES = (4, 5, 2, 6, 0, 1, 3, 7)
"""Colours of the palette in the order of the arms."""


class Condition(Protocol):
    """What the report needs of a condition."""

    @property
    def factor(self) -> float:
        """Multiple of the spacing of training."""
        ...

    @property
    def axes(self) -> str:
        """Along which, `xyz` or `z`."""
        ...

    @property
    def is_whole(self) -> bool:
        """Whether one window held the volume."""
        ...

    @property
    def name(self) -> str:
        """For files and tables."""
        ...


Rows = list[dict[str, Any]]
Judged = dict[int, dict[str, dict[str, Rows]]]
"""Scores by seed, arm and name of the condition."""


@dataclass(frozen=True)
class Curves:
    """Dice of one arm in every draw, `rows conditions`; of the seeds that have all of them."""

    dice: Array
    draws: Draws

    def estimate(self, number: Callable[[Array], Array]) -> Estimate:
        """A number of the mean Dice by condition, with its interval."""
        values = Ranges.exact(number(self.dice))
        replicates = self.draws.replicates.shape[1]
        return self.draws.estimate(values, confidence=CONFIDENCE, pretrainings=replicates)


def write(
    out: Path, facts: Mapping[str, Any], arms: Iterable[str], conditions: Sequence[Condition]
) -> list[Path]:
    """Writes `results.json`, `.csv`, `.md` and `.png` of all scores below `out`.

    Args:
        out: folder with `judged/seed-<n>/<training>/<condition>.json`.
        facts: what the scores depend on.
        arms: in the order of the tables.
        conditions: likewise; the first is the spacing of training.
    """
    judged = read_scores(out / "judged")
    rows = [row for arm in arms for row in estimates(judged, arm, conditions)]
    content = {
        "machine": machine(_cpu()),
        "versions": versions(),
        "facts": dict(facts),
        "seeds": sorted(judged),
        "resamples": RESAMPLES,
        "confidence": CONFIDENCE,
        "rows": [{**row, **{k: v.as_json() for k, v in row.items() if isinstance(v, Estimate)}}
                 for row in rows],
    }  # fmt: skip
    write_json(out / "results.json", content)
    write_text(out / "results.csv", _csv(judged, conditions))
    write_text(out / "results.md", markdown(rows, conditions, sorted(judged)))
    draw_lines(out / "results.png", rows)
    return [out / f"results.{ending}" for ending in ("json", "csv", "md", "png")]


def read_scores(folder: Path) -> Judged:
    """All that was judged."""
    judged: Judged = {}
    for path in sorted(folder.glob("seed-*/*/*.json")):
        content = json.loads(path.read_text())
        arms = judged.setdefault(content["seed"], {})
        for arm, rows in content["arms"].items():
            arms.setdefault(arm, {})[path.stem] = rows
    return judged


def estimates(judged: Judged, arm: str, conditions: Sequence[Condition]) -> list[dict[str, Any]]:
    """A row a condition: Dice, what is lost since the spacing of training, and the lead of `mm`.

    Args:
        judged: all scores.
        arm: whose rows.
        conditions: the first is the spacing of training.
    """
    names = [condition.name for condition in conditions]
    own = curves(judged, (arm,), names)
    both = curves(judged, (arm, REFERENCE), names)
    if own is None:
        return []
    rows = []
    for place, condition in enumerate(conditions):
        row: dict[str, Any] = {
            "arm": arm, "factor": condition.factor, "axes": condition.axes,
            "is_whole": condition.is_whole,
            "dice": own[0].estimate(lambda dice, at=place: dice[:, at]),  # type: ignore[misc]
            "lost": own[0].estimate(lambda dice, at=place: dice[:, 0] - dice[:, at]),  # type: ignore[misc]
        }  # fmt: skip
        if both is not None and arm != REFERENCE:
            mine, its = both
            lead = Curves(its.dice - mine.dice, its.draws)
            row["mm_leads_by"] = lead.estimate(lambda dice, at=place: dice[:, at])  # type: ignore[misc]
            row["mm_loses_less_by"] = lead.estimate(
                lambda dice, at=place: dice[:, at] - dice[:, 0]  # type: ignore[misc]
            )
        rows.append(row)
    return rows


def curves(judged: Judged, arms: Sequence[str], conditions: Sequence[str]) -> list[Curves] | None:
    """Each arm's Dice in the same draws of the seeds that all of them have; None without any."""
    seeds = [
        seed
        for seed, found in sorted(judged.items())
        if all(name in found.get(arm, {}) for arm in arms for name in conditions)
    ]
    if not seeds:
        return None
    tables = {arm: [_by_case(judged[seed][arm], conditions) for seed in seeds] for arm in arms}
    subjects = [tuple(sorted(set(whose))) for _, whose in tables[arms[0]]]
    draws = draw(seeds, range(len(seeds)), subjects, resamples=RESAMPLES, seed=0)
    found = []
    for arm in arms:
        grouped = [group_by_subject(values, whose) for values, whose in tables[arm]]
        # Every case has something to score under every condition.
        sums, counts = [s for s, _ in grouped], [c[:, 0] for _, c in grouped]
        found.append(Curves(draws.curves(sums, counts), draws))
    return found


def _by_case(judged: Mapping[str, Rows], conditions: Sequence[str]) -> tuple[Array, list[str]]:
    """Mean Dice over the structures of each case, `cases conditions`, and the cases' subjects."""
    subjects = {row["case_id"]: row["subject"] for row in judged[conditions[0]]}
    values = np.zeros((len(subjects), len(conditions)))
    for column, name in enumerate(conditions):
        by_case: dict[str, list[float]] = {case_id: [] for case_id in subjects}
        for row in judged[name]:
            if row["dice"] is not None:
                by_case[row["case_id"]].append(row["dice"])
        # Nothing there and nothing predicted is right.
        values[:, column] = [np.mean(dice) if dice else 1.0 for dice in by_case.values()]
    return values, list(subjects.values())


def _csv(judged: Judged, conditions: Sequence[Condition]) -> str:
    by_name = {condition.name: condition for condition in conditions}
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for seed, arms in sorted(judged.items()):
        for arm, found in arms.items():
            for name, condition in by_name.items():
                told = {
                    "seed": seed, "arm": arm, "factor": condition.factor, "axes": condition.axes,
                    "window": "whole" if condition.is_whole else "of training",
                }  # fmt: skip
                for row in found.get(name, ()):
                    writer.writerow({**told, **{k: row[k] for k in COLUMNS if k in row}})
    return text.getvalue()


def markdown(
    rows: Sequence[Mapping[str, Any]], conditions: Sequence[Condition], seeds: Sequence[int]
) -> str:
    """Three tables, a column an arm: Dice, Dice lost, and how much less `mm` loses."""
    tables = (
        ("Dice", "dice"),
        ("Dice lost since the spacing of training", "lost"),
        (f"Dice that `{REFERENCE}` leads by", "mm_leads_by"),
    )
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    found = {(row["arm"], row["factor"], row["axes"], row["is_whole"]): row for row in rows}
    text = [f"Seeds {', '.join(map(str, seeds))}; means over cases with "
            f"{CONFIDENCE:.0%} intervals over seeds and subjects.", ""]  # fmt: skip
    for title, key in tables:
        shown = [arm for arm in arms if any(key in row for row in rows if row["arm"] == arm)]
        text += [f"## {title}", "", f"| spacing | {' | '.join(shown)} |",
                 f"|---|{'---|' * len(shown)}"]  # fmt: skip
        for condition in conditions:
            place = (condition.factor, condition.axes, condition.is_whole)
            cells = [found[(arm, *place)][key].text(3) for arm in shown]
            text.append(f"| {_told(condition)} | {' | '.join(cells)} |")
        text.append("")
    return "\n".join(text)


def _told(condition: Condition) -> str:
    if condition.factor == 1:
        return "that of training"
    axes = "" if condition.axes == "xyz" else f" along {condition.axes}"
    return f"{condition.factor:g} times{axes}{', one window' if condition.is_whole else ''}"


def draw_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Dice over the factor, a line an arm with its intervals: isotropic, and along z alone."""
    figure = new_figure(8.4, 3.9)
    write_at(figure, 0.12, 0.1, "Dice at other spacings than that of training", size=LARGE,
             weight="bold")  # fmt: skip
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    for place, (axes_of, title) in enumerate((("xyz", "all axes"), ("z", "z alone"))):
        left = 0.6 + 4.0 * place
        write_at(figure, left, 0.42, title, size=NORMAL)
        axes = plain_axes(axes_at(figure, left, 0.65, 3.5, 2.75))
        for number, arm in enumerate(arms):
            mine = [row for row in rows if row["arm"] == arm and not row["is_whole"]
                    and (row["axes"] == axes_of or row["factor"] == 1)]  # fmt: skip
            mine.sort(key=lambda row: float(row["factor"]))
            estimates_ = [row["dice"] for row in mine]
            values = [one.value for one in estimates_]
            ends = [(one.value - (one.low if one.low is not None else one.value),
                     (one.high if one.high is not None else one.value) - one.value)
                    for one in estimates_]  # fmt: skip
            axes.errorbar(
                [row["factor"] for row in mine], values, yerr=np.clip(np.array(ends).T, 0, None),
                label=arm, color=unit(colour(TONES[number % len(TONES)])), linewidth=1.4,
                marker="o", markersize=3, capsize=2,
            )  # fmt: skip
        axes.set_ylim(0, 1)
        axes.set_xlabel("times the spacing of training", fontsize=SMALL)
        if place == 0:
            axes.legend(fontsize=SMALL - 1, frameon=False)
    return save_figure(figure, path)


def _cpu() -> Any:
    import torch

    return torch.device("cpu")
