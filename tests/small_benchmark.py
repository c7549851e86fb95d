"""A convergence benchmark that runs in seconds: a phantom cohort, a tiny encoder, few steps."""

from __future__ import annotations

import json
from pathlib import Path

from mim3d.config.reading import read_config
from mim3d.config.verbs import BenchmarkConfig, PreparationConfig, PrepareConfig
from mim3d.data.phantom import PhantomRule, make_cohort
from mim3d.foundation.reporting import Reporter, Silent
from mim3d.workflows.benchmark import benchmark
from mim3d.workflows.prepare import prepare
from mim3d.workflows.result import Result

SHAPE = (22, 18, 14)
PRETRAIN = """
data: {crop_size: [16, 16, 12]}
encoder: {preset: tiny, width: 24, depth: 4, heads: 2, patch: [4, 4, 4]}
objective: {decoder_width: 24, decoder_depth: 1, decoder_heads: 2}
training: {steps: 4, batch_size: 2, precision: fp32, pictures_every: 0, checkpoint_every: 2}
probes: {every: 0}
"""
FINETUNE = """
data: {crop_size: [16, 16, 12]}
encoder: {preset: tiny, width: 24, depth: 4, heads: 2, patch: [4, 4, 4]}
decoder: {name: light}
inference: {overlap: 0}
optim: {lr: 0.002}
training: {steps: 12, batch_size: 2, precision: fp32, checkpoint_every: 6}
"""
ARMS = """\
  scratch: {}
  mae: {pretrain: {}}
  simmim: {pretrain: {objective: {name: simmim}}}
"""
TIMES = ("seconds",)


def make_store(folder: Path, subjects: int = 12) -> Path:
    """A store of two labelled organs with a validation list of two subjects."""
    rule = PhantomRule(shape=SHAPE, organs=1)
    make_cohort(folder / "cohort", seed=1, training=subjects - 2, validation=2, rule=rule)
    config = PrepareConfig(PreparationConfig(workers=0))
    prepare(str(folder / "cohort"), out=str(folder / "store"), config=config, reporter=Silent())
    return folder / "store"


def write_benchmark(folder: Path, store: Path | str, arms: str, **settings: object) -> Path:
    """The three files of a benchmark; returns the one with the arms."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pretrain.yaml").write_text(PRETRAIN)
    (folder / "finetune.yaml").write_text(FINETUNE)
    said = {
        "pretrain": "pretrain.yaml",
        "finetune": "finetune.yaml",
        "store": store,
        "labels": [2, 0.5],
        "replicates": 1,
        "pretraining_seeds": 1,
        "points": 3,
        "threads": 1,
        **settings,
    }
    lines = "".join(f"  {key}: {value}\n" for key, value in said.items())
    path = folder / "convergence.yaml"
    path.write_text(f"convergence:\n{lines}arms:\n{arms}")
    return path


def run(
    source: Path,
    out: Path,
    reporter: Reporter | None = None,
    dry_run: bool = False,
    **settings: object,
) -> Result:
    """Runs a benchmark, or what of it is not there; settings are of `convergence`."""
    given = {f"convergence.{key}": value for key, value in settings.items()}
    config = read_config(source, BenchmarkConfig, given)
    return benchmark("convergence", source=str(source), out=str(out), config=config,
                     reporter=reporter or Silent(), dry_run=dry_run)  # fmt: skip


def records(out: Path) -> dict[str, dict]:
    """What the records say, without what a clock said."""
    found = {}
    for path in sorted((out / "records").glob("*.json")):
        content = json.loads(path.read_text())
        for part in filter(None, (content, content["pretraining"])):
            for name in TIMES:
                part.pop(name)
        found[path.stem] = content
    return found
