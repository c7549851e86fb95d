"""Dice at every judged step of `patch.yaml` or `stem.yaml`, and what one arm has above another.

    mim3d benchmark convergence benchmarks/spacing/patch.yaml \
        --convergence.store stores/hippocampus --out runs/patch
    python benchmarks/spacing/by_step.py benchmarks/spacing/patch.yaml --runs runs/patch \
        --compare mae-16-at-8 mae-8 --out benchmarks/spacing/results

The benchmark's own report asks when a curve arrives; the question here is what the tokens know
before and shortly after the first step. Arms are compared within a replicate and a case; intervals
are those of the benchmark, over pre-trainings, replicates and subjects.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mim3d.config.reading import read_config
from mim3d.config.verbs import BenchmarkConfig
from mim3d.evaluation.convergence import Record
from mim3d.evaluation.draws import Draws, draw
from mim3d.evaluation.estimates import Estimate, Ranges
from mim3d.evaluation.intervals import group_by_subject
from mim3d.foundation.atomic import make_folder, write_json, write_text
from mim3d.foundation.documents import read_object
from mim3d.foundation.versions import versions
from mim3d.workflows.convergence.arms import read_arms

RESAMPLES, CONFIDENCE = 2000, 0.95


def main() -> None:
    """Reads the records and writes a table named as the config, as JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config", type=Path, help="the benchmark's file")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the benchmark")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--compare", nargs=2, action="append", default=[], metavar=("ARM", "OTHER"),
                        help="besides each arm with its start from scratch")  # fmt: skip
    said = parser.parse_args()
    records = read_records(said.runs)
    rows = table_of(records, partners_of(said.config) + [(arm, one) for arm, one in said.compare])
    make_folder(said.out)
    content = {
        "versions": versions(),
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "machines": sorted({str(record.machine) for record in records}),
        "rows": rows,
    }
    write_json(said.out / f"{said.config.stem}.json", content)
    write_text(said.out / f"{said.config.stem}.md", markdown(rows))


def read_records(runs: Path) -> list[Record]:
    """The records of all fine-tunings that came to their end."""
    paths = sorted((runs / "records").glob("*.json"))
    records = [Record.from_json(read_object(path)) for path in paths]
    return [record for record in records if record.why_dead is None]


def partners_of(config: Path) -> list[tuple[str, str | None]]:
    """Each arm of the benchmark, and whom it is compared with, in the order of the table."""
    arms = read_arms(config, read_config(config, BenchmarkConfig).convergence)
    scratch = next(arm.name for arm in arms if arm.is_plain)
    return [(arm.name, None if arm.is_plain else arm.against or scratch) for arm in arms]


def table_of(
    records: Sequence[Record], pairs: Sequence[tuple[str, str | None]]
) -> list[dict[str, Any]]:
    """A row an arm, label fraction and judged step: Dice, and Dice less that of its partner."""
    rows = []
    for labels in dict.fromkeys(record.labels for record in records):
        runs = {(one.arm, one.replicate): one for one in records if one.labels == labels}
        for arm, partner in pairs:
            both = (arm,) if partner is None else (arm, partner)
            replicates = sorted(
                {number for _, number in runs if all((name, number) in runs for name in both)}
            )
            if replicates:
                chosen = [[runs[name, number] for number in replicates] for name in both]
                rows += _rows(labels, both, chosen)
    return rows


def _rows(
    labels: str, names: tuple[str, ...], chosen: Sequence[Sequence[Record]]
) -> list[dict[str, Any]]:
    own = chosen[0]
    draws = _draws(own)
    curves = [_curves(records, draws) for records in chosen]
    groups = len({_group(record) for record in own})
    rows = []
    for place, step in enumerate(own[0].steps):
        values = [curve[:, place] for curve in curves]
        row: dict[str, Any] = {"labels": labels, "arm": names[0], "step": step,
                               "dice": _estimate(draws, values[0], groups)}  # fmt: skip
        if len(names) > 1:
            row |= {"against": names[1], "more": _estimate(draws, values[0] - values[1], groups)}
        rows.append(row)
    return rows


def _group(record: Record) -> str:
    """Replicates from one pre-training are not independent of each other."""
    return str(record.replicate) if record.pretraining is None else record.pretraining.run


def _draws(records: Sequence[Record]) -> Draws:
    known = list(dict.fromkeys(_group(record) for record in records))
    groups = [known.index(_group(record)) for record in records]
    subjects = [tuple(sorted(set(record.case_subjects))) for record in records]
    numbers = [record.replicate for record in records]
    return draw(numbers, groups, subjects, resamples=RESAMPLES, seed=0)


def _curves(records: Sequence[Record], draws: Draws) -> NDArray[np.float64]:
    """Dice in every draw, `rows steps`."""
    grouped = [
        group_by_subject(np.asarray(record.dice, dtype=np.float64).T, record.case_subjects)
        for record in records
    ]
    return draws.curves([sums for sums, _ in grouped], [counts[:, 0] for _, counts in grouped])


def _estimate(draws: Draws, values: NDArray[np.float64], groups: int) -> dict[str, Any]:
    found = draws.estimate(Ranges.exact(values), confidence=CONFIDENCE, pretrainings=groups)
    return found.as_json()


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """One table a label fraction: an arm a line, a judged step a column."""
    about = (
        "Dice of whole validation volumes, mean over structures, cases and replicates, with "
        f"{CONFIDENCE:.0%} intervals over pre-trainings, replicates and subjects."
    )
    lines = [about]
    for labels in dict.fromkeys(row["labels"] for row in rows):
        mine = [row for row in rows if row["labels"] == labels]
        steps = sorted({row["step"] for row in mine})
        head = ["arm", *(f"step {step}" for step in steps)]
        lines += ["", f"## Labels {labels}", "", _line(head), _line(["---"] * len(head))]
        for key, name in (("dice", "{arm}"), ("more", "{arm} less {against}")):
            cells: dict[str, dict[int, str]] = {}
            for row in mine:
                if key in row:
                    text = Estimate(**row[key]).text(3)
                    cells.setdefault(name.format(**row), {})[row["step"]] = text
            lines += [_line([arm, *(of.get(step, "-") for step in steps)])
                      for arm, of in cells.items()]  # fmt: skip
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
