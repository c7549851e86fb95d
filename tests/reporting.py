"""Run folders, results and a benchmark as mim3d leaves them behind, without any training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from synthetic_study import record, rising

from mim3d.config.verbs import FinetuneConfig, PretrainConfig
from mim3d.config.writing import dump, to_mapping
from mim3d.evaluation.cases import Score
from mim3d.evaluation.results import Results
from mim3d.evaluation.targets import Judged, TargetResults
from mim3d.foundation.atomic import make_folder, write_json
from mim3d.foundation.documents import write_sealed
from mim3d.pictures.curves import draw_loss
from mim3d.workflows.convergence.report import write_report

KEPT = {
    "format": 2,
    "preparation": {"spacing_mm": [1.0, 1.5, 2.0], "modality": "auto"},
    "modalities": ["mr"],
    "channel_names": ["T1"],
    "classes": {"classes": [{"value": 0, "name": "background", "colour": [0, 0, 0]},
                            {"value": 1, "name": "organ", "colour": [230, 159, 0]}]},
    "fingerprint": {
        "cases": 9, "labelled": 8, "subjects": 7,
        "stored": {"shape": {"min": [9, 8, 7], "median": [11, 13, 7], "max": [12, 14, 7]},
                   "spacing_mm": {"min": [1, 1.5, 2], "median": [1, 1.5, 2], "max": [1, 1.5, 2]}},
    },
}  # fmt: skip
VERSIONS = {"python": "3.11.7", "mim3d": "0.1.0", "torch": "2.13.0", "commit": "abc"}


def make_run(
    folder: Path,
    *,
    seed: int = 0,
    dice: Sequence[float] = (0.4, 0.6, 0.7),
    init: str | None = "none",
    lr: float = 1e-3,
    pretrain: bool = False,
    state: str = "done",
    cases: Sequence[str] = ("a", "b", "c"),
) -> Path:
    """A run of 30 steps whose validation says `dice` at steps 10, 20, 30; losses for one that
    pre-trains."""
    folder.mkdir(parents=True)
    kind: Any = PretrainConfig if pretrain else FinetuneConfig
    config = kind(init=None if pretrain else init)
    config = replace(
        config,
        training=replace(config.training, steps=30, seed=seed),
        optim=replace(config.optim, lr=lr),
        data=replace(config.data, store="/home/jane doe/stores/heart"),
    )
    (folder / "config.yaml").write_text(dump(to_mapping(config)))
    trained = {case: f"hash-{case}" for case in cases}
    verb = "pretrain" if pretrain else "finetune"
    write_sealed(folder / "preparation.json", {**KEPT, "verb": verb, "trained_on": trained})
    write_json(folder / "versions.json", VERSIONS)
    name = "fixed_loss" if pretrain else "dice"
    lines: list[dict[str, Any]] = []
    for number, value in enumerate(dice, 1):
        step = 10 * number
        lines.append({"kind": "train", "step": step, "loss": 2.0 - value, "lr": lr})
        lines.append({"kind": "validation", "step": step, "name": "validation", name: value})
    if not pretrain:
        lines[-1]["dice_encoder_zeroed"] = 0.125
        each = {"c1": dice[-1] - 0.25, "c2": dice[-1]}
        write_json(
            folder / "curve.json", {"subjects": {"c1": "s", "c2": "s"}, "dice": {"30": each}}
        )
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    training = {"steps": 30, "seconds": 90.0, "crops_per_second": 12.5, "skipped": 0}
    write_json(folder / "status.json", {"state": state, "step": 30, "steps": 30, "reason": None,
                                        "training": training})  # fmt: skip
    return folder


def make_results(path: Path, *, cases: int = 15, pictures: Sequence[int] = ()) -> Results:
    """Results of two structures; case n has Dice n / 20 and (n + 3) / 20, the last none at all."""
    scores = []
    for n in range(cases):
        for more, name in ((0, "left <b>"), (3, "right")):
            counted: Any = "missed" if n + more == 0 else "case"
            scores.append(Score(f"case_{n:02d}", f"subject_{n // 2}", name, (n + more) / 20,
                                30.0 - n, n / 20, counted))  # fmt: skip
    none: Any = (None, None, None, "absent")
    scores += [Score("case_zz", "subject_z", name, *none) for name in ("left <b>", "right")]
    results = Results(("left <b>", "right"), tuple(scores), resamples=50, notes=("beware",))
    path.parent.mkdir(parents=True, exist_ok=True)
    results.write(path)
    for n in pictures:
        draw_loss(path.with_suffix("") / f"case_{n:02d}.png", [1, 2], [1.0, 0.5])
    return results


def make_targets(path: Path) -> TargetResults:
    """Results of a class and a number of five cases."""
    judged = [
        Judged(f"t{n}", f"t{n}", "grade", float(n % 2), float(n > 2), (1 - n / 5, n / 5))
        for n in range(5)
    ]
    judged += [Judged(f"t{n}", f"t{n}", "age", 10.0 * n, 11.0 * n) for n in range(5)]
    results = TargetResults(tuple(judged), {"grade": (0.0, 1.0), "age": ()}, resamples=20)
    path.parent.mkdir(parents=True, exist_ok=True)
    results.write(path)
    return results


def make_benchmark(folder: Path) -> Path:
    """A benchmark of two arms, two label fractions and two replicates, with its report."""
    records = [
        record(arm, lambda steps, s=speed: rising(steps, speed=s), replicate=replicate,
               labels=labels, subjects=subjects, cases=6, noise=0.05)
        for arm, speed in (("scratch", 1.0), ("mae", 2.0))
        for labels, subjects in (("0.1", 2), ("1.0", 20))
        for replicate in (0, 1)
    ]  # fmt: skip
    for one in records:
        name = f"{one.arm}-labels{one.labels}-{one.replicate}.json"
        make_folder(folder / "records")
        write_json(folder / "records" / name, one.as_json())
    write_report(records, folder, about={"budget": "equal"}, resamples=30)
    return folder
