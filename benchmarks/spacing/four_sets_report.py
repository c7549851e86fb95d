"""What the fine-tunings found, as a table with intervals.

Seeds are replicates with a pre-training each, and cases belong to subjects: intervals come from the
bootstrap of the convergence benchmark over both. Arms are compared within a seed and a case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mim3d.evaluation.draws import draw
from mim3d.evaluation.estimates import Estimate, Ranges
from mim3d.evaluation.intervals import group_by_subject
from mim3d.foundation.atomic import write_json, write_text
from mim3d.foundation.documents import read_object
from mim3d.foundation.versions import versions
from mim3d.training.run import read_status
from mim3d.workflows.run_weights import INIT
from mim3d.workflows.tasks.curve import read_curve
from mim3d.workflows.throughput.machine import machine

RESAMPLES = 2000
CONFIDENCE = 0.95


def write(
    out: Path, facts: Mapping[str, Any], sets: Sequence[str], arms: Sequence[str]
) -> tuple[Path, Path]:
    """Writes `results.json` and `results.md` of all fine-tunings below `out` that are done.

    Args:
        out: folder with `pretrain/<name>-seed-<n>` and `finetune/<set>/<arm>-seed-<n>`.
        facts: what the numbers depend on.
        sets: in the order of the table.
        arms: likewise; all others are compared with each but the first.
    """
    runs = [run for name in sets for arm in arms for run in read_runs(out, name, arm)]
    rows = [row for name in sets for row in rows_of(name, runs, arms)]
    content = {
        "machine": machine(torch.device("cpu")),
        "versions": versions(),
        "facts": dict(facts),
        "resamples": RESAMPLES,
        "confidence": CONFIDENCE,
        "pretrain": {path.name: read_status(path).get("training")
                     for path in sorted((out / "pretrain").glob("*-seed-*"))},
        "runs": runs,
        "rows": [{key: value.as_json() if isinstance(value, Estimate) else value
                  for key, value in row.items()} for row in rows],
    }  # fmt: skip
    write_json(out / "results.json", content)
    write_text(out / "results.md", markdown(rows, runs))
    return out / "results.json", out / "results.md"


def read_runs(out: Path, name: str, arm: str) -> list[dict[str, Any]]:
    """The fine-tunings of an arm that are done, by seed."""
    found = []
    for folder in (out / "finetune" / name).glob(f"{arm}-seed-*"):
        if not (folder / "results.json").is_file():
            continue
        results, curve = read_object(folder / "results.json"), read_curve(folder)
        start = read_object(folder / INIT) if (folder / INIT).is_file() else {}
        found.append({
            "set": name,
            "arm": arm,
            "seed": int(folder.name.rpartition("-")[2]),
            "dice": curve["dice"],
            "zeroed": curve.get("zeroed"),
            "subjects": curve["subjects"],
            "training_cases": results["training_cases"],
            "training_subjects": results["training_subjects"],
            "seconds": results["seconds"],
            "encoder_digest": start.get("encoder_digest"),
        })  # fmt: skip
    return sorted(found, key=lambda run: int(run["seed"]))


def rows_of(
    name: str, runs: Sequence[Mapping[str, Any]], arms: Sequence[str]
) -> list[dict[str, Any]]:
    """A row an arm and judged step of one set: Dice, and its lead over each other arm."""
    by_arm = {arm: {run["seed"]: run for run in runs if (run["set"], run["arm"]) == (name, arm)}
              for arm in arms}  # fmt: skip
    rows = []
    for arm, mine in by_arm.items():
        steps = sorted({int(step) for run in mine.values() for step in run["dice"]})
        for step in steps:
            row: dict[str, Any] = {"set": name, "arm": arm, "step": step,
                                   "dice": lead_of(mine, None, step)}  # fmt: skip
            for other in arms:
                if other != arm and set(mine) & set(by_arm[other]):
                    row[f"over_{other}"] = lead_of(mine, by_arm[other], step)
            rows.append(row)
    return rows


def lead_of(
    mine: Mapping[int, Mapping[str, Any]], others: Mapping[int, Mapping[str, Any]] | None, step: int
) -> Estimate:
    """Mean Dice at a step, or what it leads by, over the seeds that both have."""
    seeds = sorted(set(mine) if others is None else set(mine) & set(others))
    tables = [_cases(mine[seed], None if others is None else others[seed], step) for seed in seeds]
    subjects = [tuple(sorted(set(whose))) for _, whose in tables]
    draws = draw(seeds, range(len(seeds)), subjects, resamples=RESAMPLES, seed=0)
    grouped = [group_by_subject(values, whose) for values, whose in tables]
    curve = draws.curves([sums for sums, _ in grouped], [counts[:, 0] for _, counts in grouped])
    return draws.estimate(Ranges.exact(curve[:, 0]), confidence=CONFIDENCE, pretrainings=len(seeds))


def _cases(
    run: Mapping[str, Any], other: Mapping[str, Any] | None, step: int
) -> tuple[NDArray[np.float64], list[str]]:
    """Dice of each case, `cases 1`, less another run's, and whose case it is."""
    dice = run["dice"][str(step)]
    less = dict.fromkeys(dice, 0.0) if other is None else other["dice"][str(step)]
    values = np.array([[dice[case] - less[case]] for case in dice])
    return values, [run["subjects"][case] for case in dice]


def markdown(rows: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> str:
    """One line a set, arm and step; and whether one encoder served all sets."""
    leads = [key for key in ("over_own", "over_scratch") if any(key in row for row in rows)]
    titles = {"over_own": "more than `own`", "over_scratch": "more than `scratch`"}
    lines = [
        f"Dice of whole validation volumes, mean over cases and seeds, with {CONFIDENCE:.0%} "
        "intervals over seeds and subjects.",
        "",
        f"| set | labelled | arm | step | Dice |{''.join(f' {titles[k]} |' for k in leads)}",
        f"|---|---:|---|---:|---:|{'---:|' * len(leads)}",
    ]
    for row in rows:
        same = [run for run in runs if (run["set"], run["arm"]) == (row["set"], row["arm"])]
        told = [row[key].text(3) if key in row else "" for key in leads]
        lines.append(
            f"| {row['set']} | {same[0]['training_subjects']} | {row['arm']} | {row['step']} | "
            f"{row['dice'].text(3)} |{''.join(f' {text} |' for text in told)}"
        )
    return "\n".join([*lines, "", *_shared(runs)]) + "\n"


def _shared(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line a seed: the encoder that all fine-tunings of the arm `four` began with."""
    lines = []
    for seed in sorted({run["seed"] for run in runs if run["arm"] == "four"}):
        mine = [run for run in runs if (run["arm"], run["seed"]) == ("four", seed)]
        digests = {str(run["encoder_digest"])[:12] for run in mine}
        sets = ", ".join(run["set"] for run in mine)
        lines.append(f"- Seed {seed}: encoder {', '.join(sorted(digests))} served {sets}.")
    return lines
