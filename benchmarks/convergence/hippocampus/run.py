"""Hippocampus MR: pre-trained, scratch, and the plain U-Net a user would take instead.

    mim3d prepare DATA --out stores/hippocampus
    python benchmarks/convergence/hippocampus/run.py --data DATA --store stores/hippocampus \
        --out runs/hippocampus --seeds 0 1 2 --short

`DATA` is the folder with `dataset.json`. Every arm is trained by mim3d's loop on the same crops and
judged by `mim3d evaluate` on the files of the validation list, at their own resolution. A run that
is done is not repeated; a killed one goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mim3d.config.reading import read_config
from mim3d.config.verbs import EvaluateConfig, FinetuneConfig, PredictConfig, PretrainConfig
from mim3d.config.writing import to_mapping
from mim3d.data.cohort import read_cohort
from mim3d.data.feed import make_feed
from mim3d.data.files import read_volume, write_label
from mim3d.data.prepare import VolumeRule
from mim3d.data.splits import training_cases
from mim3d.data.store import Store, open_store
from mim3d.foundation.atomic import write_json, write_text
from mim3d.foundation.versions import versions
from mim3d.inference.predict import predict_volume
from mim3d.inference.segmenter import Segmenter
from mim3d.objectives.segmentation import Segmentation
from mim3d.training.checkpoints import Checkpoints, read_weights
from mim3d.training.loop import fit
from mim3d.training.run import Run
from mim3d.workflows.assembly import initialising
from mim3d.workflows.evaluate import evaluate
from mim3d.workflows.finetune import finetune
from mim3d.workflows.predict import predict
from mim3d.workflows.pretrain import pretrain

HERE = Path(__file__).parent
ARMS = ("pre-trained", "scratch", "unet")
UNET_STEPS_A_STEP = 1.2
"""Its steps for each of the transformer's: it sees two crops in about the time of one."""


class UNetArm(nn.Module):
    """MONAI's U-Net behind the face of a segmenter: an encoder that does nothing, and it."""

    def __init__(self, classes: int) -> None:
        from monai.networks.nets.unet import UNet

        super().__init__()
        self.encoder = nn.Identity()
        self.decoder = UNet(3, 1, classes, (16, 32, 64, 128), (2, 2, 2), num_res_units=2)

    def forward(
        self, voxels: Tensor, spacing_mm: Tensor | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """Logits `b k x y z`."""
        logits: Tensor = self.decoder(voxels)
        return logits


def unet_config(config: FinetuneConfig) -> FinetuneConfig:
    """The same recipe with the U-Net's own best settings (peak rate, batch, length, clip)."""
    steps = round(UNET_STEPS_A_STEP * config.training.steps)
    return replace(
        config,
        init="none",
        data=replace(config.data, crop_size=(48, 64, 48)),
        optim=replace(
            config.optim,
            lr=2e-3,
            encoder_lr=1.0,
            weight_decay=1e-5,
            warmup_steps=steps // 20,
            clip=12.0,
        ),
        training=replace(config.training, steps=steps, batch_size=2),
    )


def short(config: FinetuneConfig) -> FinetuneConfig:
    """The recipe in a third of its steps."""
    return replace(
        config,
        optim=replace(config.optim, warmup_steps=100, ema=0.998),
        training=replace(config.training, steps=2000, checkpoint_every=500),
    )


def train_unet(config: FinetuneConfig, store: Store, folder: Path) -> tuple[Segmenter, float]:
    """Trains the U-Net with mim3d's loop; returns it and the seconds."""
    assert store.classes is not None
    cases = training_cases(store, config.data, config.training.seed)
    with initialising(config.training.seed, "unet"):
        network = UNetArm(store.classes.count)
    run = Run.create_or_continue(folder, to_mapping(config))
    if not run.is_done:
        with run:
            task = Segmentation(network, config.objective, store.classes.count)
            feed = make_feed(
                store,
                cases,
                data=config.data,
                augmentation=config.augmentation,
                needs=task.needs,
                batch_size=config.training.batch_size,
                seed=config.training.seed,
            )
            done = fit(task, feed, config.optim, config.training, run)
            run.write_json("results.json", done.as_json())
    last = Checkpoints(folder / "checkpoints").find("last")
    assert last is not None
    network.load_state_dict(read_weights(last)[0])
    rule = VolumeRule.from_json(store.preparation)
    segmenter = Segmenter(
        network, config.data.crop_size, store.classes, rule=rule, precision="bf16"
    )
    return segmenter, float(run.results()["seconds"])


def one_run(
    arm: str, seed: int, labels: float | None, options: argparse.Namespace
) -> dict[str, Any]:
    """Trains, predicts and evaluates one arm with one seed; returns a row of the table."""
    root = options.out / f"labels-{labels or 'all'}" / f"seed-{seed}"
    row_file = root / f"{arm}.json"
    if row_file.is_file():
        return dict(json.loads(row_file.read_text()))
    store = open_store(options.store)
    config = read_config("hippocampus", FinetuneConfig)
    if options.short:
        config = short(config)
    config = replace(
        config,
        data=replace(config.data, store=str(options.store), labels=labels),
        training=replace(config.training, seed=seed, threads=1),
        init="none",
    )
    validation = [case for case in read_cohort(options.data).cases if case.part == "validation"]
    predictions = root / f"predictions-{arm}"
    pretraining_seconds = 0.0
    if arm == "unet":
        segmenter, seconds = train_unet(unet_config(config), store, root / arm)
        for case in validation:
            volume = read_volume(case.images[0])
            labels_found = predict_volume(segmenter, volume)
            write_label(predictions / f"{case.case_id}.nii.gz", labels_found.voxels[0], volume)
    else:
        if arm == "pre-trained":
            pretrained = options.out / "pretrain" / f"seed-{seed}"
            before = read_config("hippocampus", PretrainConfig)
            before = replace(
                before,
                data=replace(before.data, store=str(options.store)),
                training=replace(before.training, seed=seed, threads=1),
            )
            pretraining_seconds = float(pretrain(before, out=str(pretrained)).facts["seconds"])
            config = replace(config, init=str(pretrained))
        done = finetune(config, out=str(root / arm))
        seconds = float(done.facts["seconds"])
        inputs = [str(case.images[0]) for case in validation]
        predict(str(root / arm), inputs, out=str(predictions), config=PredictConfig(pictures=False))
    table = evaluate(
        str(predictions),
        str(options.data),
        out=str(root / f"results-{arm}.json"),
        config=EvaluateConfig(part="validation"),
    ).facts["summary"]
    row = {
        "arm": arm,
        "seed": seed,
        "labels": labels,
        "dice": {name: table[name]["dice"]["mean"] for name in table},
        "hd95_mm": {name: table[name]["hd95_mm"]["mean"] for name in table},
        "nsd": {name: table[name]["nsd"]["mean"] for name in table},
        "minutes": seconds / 60,
        "pretraining_minutes": pretraining_seconds / 60,
        "curve": curve(root / arm / "log.jsonl"),
    }
    write_json(row_file, row)
    return row


def curve(log: Path) -> list[tuple[int, float]]:
    """Validation Dice by step."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [(line["step"], line["dice"]) for line in lines if line["kind"] == "validation"]


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line a run, then means over the seeds."""
    lines = [
        "| labels | arm | seed | Dice anterior | posterior | HD95 mm | NSD @ 1 mm | fine-tuning, "
        "min of one core | pre-training, min |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(_line(row, str(row["seed"])))
    groups = dict.fromkeys((row["labels"], row["arm"]) for row in rows)
    for labels, arm in groups:
        same = [row for row in rows if (row["labels"], row["arm"]) == (labels, arm)]
        lines.append(_line(_mean(same), f"mean of {len(same)}"))
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any], seed: str) -> str:
    share = "all" if row["labels"] is None else f"{row['labels']:.0%}"
    anterior, posterior = (row["dice"][name] for name in ("Anterior", "Posterior"))
    return (
        f"| {share} | {row['arm']} | {seed} | {anterior:.4f} | {posterior:.4f} | "
        f"{row['hd95_mm']['mean']:.2f} | {row['nsd']['mean']:.3f} | {row['minutes']:.1f} | "
        f"{row['pretraining_minutes']:.1f} |"
    )


def _mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    merged = dict(rows[0])
    for metric in ("dice", "hd95_mm", "nsd"):
        merged[metric] = {
            name: mean([row[metric][name] for row in rows]) for name in rows[0][metric]
        }
    for key in ("minutes", "pretraining_minutes"):
        merged[key] = mean([row[key] for row in rows])
    return merged


def main() -> None:
    """Runs what is asked for and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--labels", nargs="+", type=float, default=[1.0])
    parser.add_argument("--short", action="store_true", help="2,000 steps instead of 6,000")
    parser.add_argument("--results", type=Path, help="folder for results.json and results.md")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    began = time.monotonic()
    rows = [
        one_run(arm, seed, None if share == 1.0 else share, options)
        for share in options.labels
        for seed in options.seeds
        for arm in options.arms
    ]
    print(markdown(rows))
    if options.results is not None:
        machine = {"processor": platform.processor() or platform.machine(), "threads": 1}
        content = {
            "rows": rows,
            "versions": versions(),
            "machine": machine,
            "finetune": asdict(read_config("hippocampus", FinetuneConfig)),
            "pretrain": asdict(read_config("hippocampus", PretrainConfig)),
            "seconds": time.monotonic() - began,
        }
        write_json(options.results / "results.json", content)
        write_text(options.results / "results.md", markdown(rows))


if __name__ == "__main__":
    main()
