"""What a cheaper pretext decoder costs in Dice: full, a quarter decoded, and a light quarter.

    mim3d prepare MOUSE --out stores/mouse
    python benchmarks/throughput/dice_check/run.py --store stores/mouse --out work

Each arm is pre-trained with the same seeds, crops and masks, then fine-tuned by the same recipe.
Every run is resumable, and one that is done is not repeated. Seconds are those of the runs' logs.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from mim3d.config.objective import PretextConfig
from mim3d.config.reading import read_config
from mim3d.config.verbs import FinetuneConfig, PretrainConfig
from mim3d.foundation.atomic import write_json, write_text
from mim3d.foundation.versions import versions
from mim3d.workflows.finetune import finetune
from mim3d.workflows.pretrain import pretrain

ARMS = ("full", "quarter", "light", "scratch")
EVERY = 100
"""Steps between two points of a curve."""
HEAD = (
    "| pretext decoder | seed | Dice after {steps} | best on the way | pre-training, min | "
    "fine-tuning, min |\n|---|---|---|---:|---:|---:|"
)
CLOSED_FORM = {"decoder.direct": "ridge"}
"""The linear start as it was when the table was made."""


def decoder_of(arm: str, full: PretextConfig) -> PretextConfig:
    """The recipe's pretext task with an arm's decoder."""
    if arm == "full":
        return replace(full, decoder="full", decode_fraction=1.0)
    quarter = replace(full, decoder="cross", decode_fraction=0.25)
    if arm == "quarter":
        return quarter
    return replace(
        quarter, decoder_width=full.decoder_width // 2, decoder_depth=full.decoder_depth // 2
    )


def one_run(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Pre-trains and fine-tunes one arm with one seed."""
    store = str(options.store)
    before = read_config("mouse", PretrainConfig)
    after = read_config("mouse", FinetuneConfig, CLOSED_FORM)
    init, seconds = "none", 0.0
    if arm != "scratch":
        init = str(options.out / f"pretrain-{arm}-{seed}")
        before = replace(
            before,
            data=replace(before.data, store=store),
            objective=decoder_of(arm, before.objective),
            training=replace(before.training, seed=seed, threads=1),
        )
        seconds = float(pretrain(before, out=init).facts["seconds"])
    after = replace(
        after,
        data=replace(after.data, store=store),
        training=replace(after.training, seed=seed, threads=1, validate_every=EVERY),
        init=init,
    )
    folder = options.out / f"finetune-{arm}-{seed}"
    done = finetune(after, out=str(folder)).facts
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {
        "arm": arm,
        "seed": seed,
        "curve": [(one["step"], one["dice"]) for one in lines if one["kind"] == "validation"],
        "dice": done["validation"]["validation"]["dice"],
        "pretraining_minutes": seconds / 60,
        "finetuning_minutes": float(done["seconds"]) / 60,
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line a run, then the mean and the deviation of each arm over its seeds."""
    last = rows[0]["curve"][-1][0]
    lines = [HEAD.format(steps=f"{last} steps")]
    for row in rows:
        best = max(value for _, value in row["curve"])
        lines.append(
            f"| {row['arm']} | {row['seed']} | {row['dice']:.3f} | {best:.3f} | "
            f"{row['pretraining_minutes']:.1f} | {row['finetuning_minutes']:.1f} |"
        )
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        dice = [row["dice"] for row in mine]
        spread = f" ± {statistics.stdev(dice):.3f}" if len(dice) > 1 else ""
        before = statistics.mean(row["pretraining_minutes"] for row in mine)
        after = statistics.mean(row["finetuning_minutes"] for row in mine)
        lines.append(
            f"| **{arm}** | mean of {len(mine)} | {statistics.mean(dice):.3f}{spread} | | "
            f"{before:.1f} | {after:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs what is asked for and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [one_run(arm, seed, options) for seed in options.seeds for arm in options.arms]
    print(markdown(rows))
    content = {
        "rows": rows,
        "versions": versions(),
        "pretrain": asdict(read_config("mouse", PretrainConfig)),
        "finetune": asdict(read_config("mouse", FinetuneConfig, CLOSED_FORM)),
    }
    write_json(options.out / "results.json", content)
    write_text(options.out / "results.md", markdown(rows))


if __name__ == "__main__":
    main()
