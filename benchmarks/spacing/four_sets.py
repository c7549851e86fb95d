"""Does one set of weights serve a mouse brain, a hippocampus and a thigh?

    OMP_NUM_THREADS=1 python benchmarks/spacing/four_sets.py --data DATA --out runs/four-sets

`DATA` holds the folders `hippocampus_msd`, `sts_ibsi`, `sts_ibsi_mr` and `mouse_rtg4510`. One
pre-training over all four, each at its own spacing, and one over each alone, of as many steps; then
each set is fine-tuned from both and from scratch, by one recipe for all arms (`four_sets/*.yaml`).
The same command goes on where it was stopped, and the table holds what is there: sets and seeds may
be run one after the other into one folder.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import four_sets_report as report
import torch

from mim3d.config.reading import read_config
from mim3d.config.verbs import FinetuneConfig, PreparationConfig, PrepareConfig, PretrainConfig
from mim3d.config.writing import to_mapping
from mim3d.data.store import open_store
from mim3d.foundation.reporting import PlainReporter
from mim3d.workflows.finetune import finetune
from mim3d.workflows.prepare import prepare
from mim3d.workflows.pretrain import pretrain

RECIPES = Path(__file__).resolve().parent / "four_sets"
FOUR, OWN, SCRATCH = ARMS = ("four", "own", "scratch")
"""Pre-trained on all four sets, on the one that is fine-tuned, and not at all."""
LOOKS = (0.0, 0.1, 0.3, 1.0)
"""Where a fine-tuning is judged, as shares of its steps."""


@dataclass(frozen=True)
class CohortSet:
    """One of the four sets.

    Args:
        name: in this benchmark.
        folder: below `DATA`.
        recipe: of its fine-tuning.
        modality: by which its intensities are normalised.
    """

    name: str
    folder: str
    recipe: str
    modality: Literal["auto", "other"] = "auto"


SETS = (
    CohortSet("hippocampus", "hippocampus_msd", "hippocampus"),
    CohortSet("mouse", "mouse_rtg4510", "mouse"),
    # By a window CT spans 0 to 1, and its errors are a fiftieth of those of MR, whose deviation
    # is 1: one loss over both would be of MR alone.
    CohortSet("sarcoma_ct", "sts_ibsi", "sarcoma", modality="other"),
    CohortSet("sarcoma_mr", "sts_ibsi_mr", "sarcoma"),
)


@dataclass(frozen=True)
class Bench:
    """What all runs share.

    Args:
        out: the folder of everything.
        pretrain_steps: in place of the recipe's, or None.
        finetune_steps: in place of each recipe's, by set.
        threads: of torch.
    """

    out: Path
    pretrain_steps: int | None
    finetune_steps: Mapping[str, int]
    threads: int

    def store(self, cohort: CohortSet) -> Path:
        """Where a set's store lies."""
        return self.out / "stores" / cohort.name

    def prepare(self, data: Path) -> None:
        """Prepares all four sets at their own spacings."""
        for cohort in SETS:
            prepare(
                str(data / cohort.folder),
                out=str(self.store(cohort)),
                config=PrepareConfig(PreparationConfig(modality=cohort.modality)),
                reporter=PlainReporter(),
            )

    def pretraining(self, cohorts: Sequence[CohortSet], seed: int) -> PretrainConfig:
        """The recipe on one set or on several."""
        config = read_config(RECIPES / "pretrain.yaml", PretrainConfig)
        stores = tuple(str(self.store(cohort)) for cohort in cohorts)
        if len(stores) == 1:
            data = replace(config.data, store=stores[0], store_weights=None)
        else:
            data = replace(config.data, stores=stores)
        steps = self.pretrain_steps or config.training.steps
        return replace(
            config,
            data=data,
            optim=replace(config.optim, warmup_steps=min(config.optim.warmup_steps, steps // 4)),
            training=replace(config.training, steps=steps, seed=seed, threads=self.threads),
        )

    def pretrained(self, cohorts: Sequence[CohortSet], seed: int) -> Path:
        """Runs or finishes a pre-training; the folder of its run."""
        name = cohorts[0].name if len(cohorts) == 1 else FOUR
        folder = self.out / "pretrain" / f"{name}-seed-{seed}"
        pretrain(self.pretraining(cohorts, seed), out=str(folder), reporter=PlainReporter())
        return folder

    def finetuning(self, cohort: CohortSet, seed: int, init: Path | None) -> FinetuneConfig:
        """The recipe of a set; from scratch with the encoder of the pre-trainings."""
        config = read_config(RECIPES / f"{cohort.recipe}.yaml", FinetuneConfig)
        steps = self.finetune_steps.get(cohort.name, config.training.steps)
        looks = tuple(sorted({round(share * steps) for share in LOOKS}))
        return replace(
            config,
            data=replace(config.data, store=str(self.store(cohort))),
            encoder=self.pretraining(SETS, seed).encoder,
            init="none" if init is None else str(init),
            optim=replace(config.optim, warmup_steps=min(config.optim.warmup_steps, steps // 4)),
            training=replace(
                config.training,
                steps=steps,
                seed=seed,
                threads=self.threads,
                validate_every=0,
                validate_at=looks,
            ),
        )

    def finetuned(self, cohort: CohortSet, arm: str, seed: int) -> None:
        """Runs or finishes one fine-tuning, and the pre-training that it starts from."""
        init = None
        if arm != SCRATCH:
            init = self.pretrained(SETS if arm == FOUR else (cohort,), seed)
        folder = self.out / "finetune" / cohort.name / f"{arm}-seed-{seed}"
        config = self.finetuning(cohort, seed, init)
        finetune(config, out=str(folder), name=arm, said=(), reporter=PlainReporter())

    def facts(self) -> dict[str, Any]:
        """What the numbers follow from."""
        sets = {
            cohort.name: {
                "median_spacing_mm": list(store.median_spacing_mm),
                "training": len(store.ids("training")),
                "validation": len(store.ids("validation")),
                "finetune": to_mapping(self.finetuning(cohort, 0, None)),
            }
            for cohort in SETS
            for store in [open_store(self.store(cohort))]
        }
        return {"sets": sets, "pretrain": to_mapping(self.pretraining(SETS, 0))}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is asked for and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = [cohort.name for cohort in SETS]
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sets", nargs="+", choices=names, default=names[:3])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--pretrain_steps", type=int, help="in place of the recipe's")
    parser.add_argument("--finetune_steps", nargs="+", default=[], metavar="SET=STEPS",
                        help="in place of each recipe's: `mouse=200`")  # fmt: skip
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    said = dict(pair.split("=") for pair in options.finetune_steps)
    if set(said) - set(names):
        parser.error(f"--finetune_steps knows {', '.join(names)}")
    steps = {name: int(number) for name, number in said.items()}
    bench = Bench(options.out, options.pretrain_steps, steps, options.threads)
    bench.prepare(options.data)
    for seed in options.seeds:
        for cohort in SETS:
            for arm in options.arms:
                if cohort.name in options.sets:
                    bench.finetuned(cohort, arm, seed)
        report.write(options.out, bench.facts(), names, ARMS)
    print((options.out / "results.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
