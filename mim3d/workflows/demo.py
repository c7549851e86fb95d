"""`mim3d demo`: the whole path on a synthetic cohort, in a few minutes, with no data at hand."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from mim3d.config.reading import read_config
from mim3d.config.report import ReportConfig, ReportSettings
from mim3d.config.verbs import (
    DemoConfig,
    EvaluateConfig,
    FinetuneConfig,
    PredictConfig,
    PrepareConfig,
    PretrainConfig,
)
from mim3d.data.phantom import make_cohort
from mim3d.evaluation.results import Results, read_results
from mim3d.foundation.reporting import PlainReporter, Reporter, duration
from mim3d.workflows.evaluate import evaluate
from mim3d.workflows.finetune import finetune
from mim3d.workflows.predict import predict
from mim3d.workflows.prepare import prepare
from mim3d.workflows.pretrain import pretrain
from mim3d.workflows.report.report import report
from mim3d.workflows.result import Result

DEFAULT_FOLDER = "mim3d-demo"
ARMS = {"pre-trained": "pretrain", "scratch": None}
"""Name of an arm to the run its encoder comes from."""


def demo(
    *,
    out: str | None = None,
    config: DemoConfig | None = None,
    reporter: Reporter | None = None,
    overwrite: bool = False,
) -> Result:
    """Makes a cohort, pre-trains, fine-tunes twice, predicts, evaluates, and compares.

    Args:
        out: the folder for everything; `mim3d-demo` under the current one if left out.
        config: the seed and the device.
        reporter: where progress goes.
        overwrite: start again where a demo already stands; else it is continued.

    Returns:
        A table of both arms and the paths of the pictures and of the report on all of it.
    """
    config = config or DemoConfig()
    reporter = reporter or PlainReporter()
    folder = Path(out or DEFAULT_FOLDER)
    began = time.monotonic()
    source, store, run = folder / "cohort", folder / "store", folder / "runs" / "pretrain"

    reporter.say("1 of 5  a synthetic cohort: organs, a tumour, noise, thick slices")
    make_cohort(source, seed=config.seed)
    reporter.say("2 of 5  preparing it")
    prepare(str(source), out=str(store), config=PrepareConfig(), reporter=reporter)
    reporter.say("3 of 5  pre-training without labels")
    pretraining = read_config("demo", PretrainConfig)
    pretraining = replace(
        pretraining,
        data=replace(pretraining.data, store=str(store)),
        training=replace(pretraining.training, seed=config.seed, device=config.device),
    )
    pretrain(pretraining, out=str(run), reporter=reporter, overwrite=overwrite)

    results: dict[str, Results] = {}
    pictures: list[Path] = [*sorted((run / "pictures").glob("*.png"))[-1:]]
    for arm, init in ARMS.items():
        reporter.say(f"4 of 5  fine-tuning on four labelled subjects: {arm}")
        tuned = folder / "runs" / f"finetune-{arm}"
        finetuning = read_config("demo", FinetuneConfig)
        finetuning = replace(
            finetuning,
            data=replace(finetuning.data, store=str(store)),
            training=replace(finetuning.training, seed=config.seed, device=config.device),
            init="none" if init is None else str(run),
        )
        finetune(finetuning, out=str(tuned), reporter=reporter, overwrite=overwrite)
        reporter.say(f"5 of 5  predicting and evaluating: {arm}")
        predictions = folder / "predictions" / arm
        inputs = [str(path) for path in sorted((source / "imagesVal").glob("*.nii.gz"))]
        predict(
            str(tuned), inputs, out=str(predictions), config=PredictConfig(), reporter=reporter,
            overwrite=overwrite,
        )  # fmt: skip
        table = folder / f"results-{arm}.json"
        evaluated = evaluate(
            str(predictions), str(source / "labelsVal"), out=str(table),
            config=EvaluateConfig(images=str(source / "imagesVal")), reporter=reporter,
        )  # fmt: skip
        results[arm] = read_results(table)
        # The chart of all cases, and the first case's overlay.
        pictures += [path for path in evaluated.files if path.suffix == ".png"][:2]
    runs = [run, *(folder / "runs" / f"finetune-{arm}" for arm in ARMS)]
    tables = [folder / f"results-{arm}.json" for arm in ARMS]
    page = folder / "report.html"
    settings = ReportConfig(ReportSettings(title="mim3d demo"))
    report(list(map(str, [*runs, *tables])), out=str(page), config=settings, reporter=reporter)
    seconds = time.monotonic() - began
    return Result(
        text=f"{comparison(results)}\n\nthe whole path took {duration(seconds)}; one seed and a "
        "phantom prove nothing about real scans",
        facts={"seconds": seconds},
        files=(*pictures, page),
    )


def comparison(results: dict[str, Results]) -> str:
    """Dice of every structure and arm as a Markdown table."""
    names = list(results)
    lines = [f"| Dice | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    summaries = {arm: result.summary() for arm, result in results.items()}
    for structure in summaries[names[0]]:
        means = (summaries[arm][structure]["dice"].mean for arm in names)
        cells = ("-" if mean is None else f"{mean:.3f}" for mean in means)
        lines.append(f"| {structure} | {' | '.join(cells)} |")
    return "\n".join(lines)
