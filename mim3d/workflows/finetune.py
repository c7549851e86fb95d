"""`mim3d finetune`: from a store with labels, and mostly a pre-trained run, to a predictor."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from mim3d.config.verbs import FinetuneConfig
from mim3d.config.writing import to_mapping
from mim3d.data.feed import make_feed
from mim3d.data.splits import inner_split, training_cases, validation_cases
from mim3d.data.store import Store
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.reporting import PlainReporter, Reporter
from mim3d.models.weights import encoder_metadata
from mim3d.training.fabric import choose_device
from mim3d.training.loop import fit
from mim3d.training.run import Run
from mim3d.training.standing import FitResult
from mim3d.workflows.adapting import adapt_encoder, counts_told, parameter_counts
from mim3d.workflows.assembly import (
    initialising,
    preparation_record,
    run_folder,
    skipped,
    store_of,
)
from mim3d.workflows.initial import SCRATCH, encoder_for
from mim3d.workflows.memory import training_need, within_memory
from mim3d.workflows.result import Result
from mim3d.workflows.run_record import keep_preparation, load_preparation
from mim3d.workflows.run_weights import INIT, initial_record, start_from
from mim3d.workflows.seen_cases import seen_before
from mim3d.workflows.tasks.face import Training
from mim3d.workflows.tasks.registry import TRAININGS


def finetune(
    config: FinetuneConfig,
    *,
    out: str | None = None,
    name: str = "run",
    said: Collection[str] | None = None,
    reporter: Reporter | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Result:
    """Fine-tunes an encoder with a decoder or head on the labelled training cases of a store.

    Args:
        config: what to do; `init` must say a run or `none`.
        out: the run folder; `runs/finetune-<name>` if left out.
        name: the config's name.
        said: dotted settings that were written down; with `init` they must agree with the run.
            None takes those that differ from the defaults.
        reporter: where progress goes.
        overwrite: start again where a run already stands.
        dry_run: say what would be done, and stop.

    Returns:
        The run folder and the numbers of its validation cases, by their task.

    Raises:
        ConfigError: `init` says nothing, or config and store do not agree.
        WeightsError: the run's encoder does not fit; every key is listed.
        Interrupted: a signal came; the same call continues.
    """
    reporter = reporter or PlainReporter()
    store = store_of(config.data)
    config = resolved(config, store, said)
    kind = TRAININGS[config.task](config, store)
    cases = training_cases(store, config.data, config.training.seed, kind.targets)
    cases, choosing = inner_split(
        store, cases, config.training.seed, config.data.selection_fraction
    )
    judging = validation_cases(store, config.data, kind.targets)
    folder = run_folder(out, "finetune", name)
    subjects = len({store.subject(case) for case in cases})
    reporter.say(
        f"fine-tuning on {len(cases)} labelled cases of {subjects} subjects, from "
        f"{'scratch' if config.init == SCRATCH else f'`{config.init}`'}; {len(judging)} validation "
        f"cases report: {config.training.steps:,} steps of {config.training.batch_size} crops into "
        f"`{folder}`"
    )
    if dry_run:
        reporter.say(str(training_need(config)))
        return Result(text="nothing was written (--dry_run)")
    run = Run.create_or_continue(
        folder, to_mapping(config), defaults=to_mapping(FinetuneConfig()), overwrite=overwrite
    )
    if run.is_done:
        return Result(text=f"`{folder}` is done", facts=run.results(), files=(folder,))

    with run, within_memory(config, reporter):
        record = preparation_record(store, cases, "finetune") | kind.record(cases)
        keep_preparation(run, record)
        with initialising(config.training.seed, "finetune"):
            task, encoder = kind.build(cases)
        encoder.carry(store.channel_names)
        if config.init != SCRATCH:
            where = str(config.init), config.init_checkpoint
            start_from(encoder, *where, reporter, config.init_adapt)
            before = load_preparation(str(config.init))
            for note in seen_before(str(config.init), before, store, judging):
                (reporter.warn if note.flatters else reporter.say)(note.text)
            run.write_json(
                INIT, initial_record(*where, asked=config.encoder, adapt=config.init_adapt)
            )
        adapt_encoder(encoder, config, reporter)
        counts = parameter_counts(task)
        reporter.say(counts_told(counts, config))
        feed = make_feed(
            store,
            cases,
            data=config.data,
            augmentation=config.augmentation,
            needs=task.needs,
            batch_size=config.training.batch_size,
            seed=config.training.seed,
            device=choose_device(config.training.device),
        )
        if feed.reuse is not None:
            reporter.say(feed.reuse)
        if run.checkpoints.find() is None:
            kind.begin(feed, reporter)
        done = fit(
            task,
            feed,
            config.optim,
            config.training,
            run,
            validators=kind.validators(run, judging, choosing),
            reporter=reporter,
            metadata=encoder_metadata(config.encoder),
        )
        counts |= {"training_cases": len(cases), "training_subjects": subjects}
        results = {**done.as_json(), **counts}
        run.write_json("results.json", results)
    return _result(kind, done, results, str(folder))


def resolved(
    config: FinetuneConfig, store: Store, said: Collection[str] | None = None
) -> FinetuneConfig:
    """The config with what store and initial run decide filled in.

    Where config and line are silent on the encoder, it is the initial run's (`encoder_for`); where
    they are silent on how crops lie, it is as the task is learned best.

    Raises:
        ConfigError: `init` says nothing; or the config's encoder contradicts the run's.
        WeightsError: the run's weights cannot be adapted as `init_adapt` asks.
    """
    if config.init is None:
        raise ConfigError(
            "`init` does not say where the encoder comes from",
            remedy="add `--init RUN` with the folder of a pre-training run, or `--init none` to "
            "start from scratch",
            code="no-init",
        )
    config = replace(config, data=TRAININGS[config.task].data(config.data, said))
    return replace(config, encoder=encoder_for(config, store, said))


def _result(kind: Training, done: FitResult, results: dict[str, Any], folder: str) -> Result:
    text = f"fine-tuned for {done.steps:,} steps; last loss {done.loss:.4f}{skipped(done)}"
    numbers = done.validation.get("validation", {})
    if numbers:
        text += f"; {kind.told(numbers)}"
    text += f"\nnext: mim3d predict {folder} INPUT... --out predictions"
    return Result(text=text, facts={"run": folder, **results}, files=())
