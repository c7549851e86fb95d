"""`mim3d probe`: what is a checkpoint worth, read by the smallest reader up to full fine-tuning?

Every choice is made on an inner split by subject of the training list; the validation list is for a
report. Beside the run stand an encoder with random weights and raw voxels, read alike.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mim3d.config.probe import ProbeConfig
from mim3d.config.tree import settings, value_of
from mim3d.config.writing import to_mapping
from mim3d.evaluation.intervals import check_evaluation
from mim3d.foundation.atomic import make_folder, write_json
from mim3d.foundation.disk import check_written
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.reporting import PlainReporter, Reporter
from mim3d.foundation.versions import versions
from mim3d.inference.windows import check_inference
from mim3d.workflows.assembly import store_of
from mim3d.workflows.frozen import FrozenEncoder, config_of, drops_air, load_encoder
from mim3d.workflows.networks import scheme_of
from mim3d.workflows.probing.label_maps import LabelledStore, read_label_maps
from mim3d.workflows.probing.question import Question, question_of, task_for
from mim3d.workflows.probing.rows import LONG, Row, Scored, scored, table_of
from mim3d.workflows.probing.trained import (
    Adapt,
    Task,
    judged_answers,
    judged_dice,
    random_run,
    train_reader,
    training_config,
)
from mim3d.workflows.probing.views import RANDOM, RUN, VOXELS, Views
from mim3d.workflows.probing.volumes import TargetStore, read_volumes
from mim3d.workflows.result import Result
from mim3d.workflows.run_record import load_preparation
from mim3d.workflows.run_weights import run_digest
from mim3d.workflows.seen_cases import seen_before
from mim3d.workflows.tasks.registry import TRAININGS
from mim3d.workflows.tasks.segmentation import structures_of

FORMAT = 1
RESULTS = "probe.json"
RANDOM_RUN = "random"
"""The folder of the encoder with random weights."""
TRAINED: tuple[Adapt, ...] = ("frozen", "lora", "full")
SLUGS = {RUN: "run", RANDOM: "random"}


def probe(
    run: str,
    *,
    out: str | None = None,
    config: ProbeConfig | None = None,
    said: Collection[str] | None = None,
    reporter: Reporter | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> Result:
    """Compares readers of a run's encoder on a store with labels or targets.

    The same command goes on where it was interrupted.

    Args:
        run: a folder that `pretrain`, `finetune` or `convert` wrote.
        out: folder of the trainings and of `probe.json`; `runs/probe-<run>` if left out.
        config: store, readers, who judges, and the recipe of the trained ones.
        said: dotted settings that were written down; None takes those that differ from the
            defaults.
        reporter: where progress goes.
        overwrite: begin again.
        dry_run: say what would be compared, and stop.

    Returns:
        The table.

    Raises:
        ConfigError: settings that do not go together.
        UserError: the store has nothing to read, or nobody who judges; or no such run.
    """
    config, reporter = config or ProbeConfig(), reporter or PlainReporter()
    said = _differing(config) if said is None else said
    store = store_of(config.data)
    task = task_for(config, store)
    config = _resolved(config, run, task, said)
    frozen = load_encoder(
        run, checkpoint=config.checkpoint, device=config.training.device,
        precision=config.training.precision,
    ).for_channels(store.channel_names, f"`{store.path}`")  # fmt: skip
    question = question_of(config, task, store)
    folder = Path(out) if out is not None else Path("runs") / f"probe-{Path(run).name}"
    plan = _planned(config)
    for line in _told(config, question, frozen, plan, folder):
        reporter.say(line)
    notes = seen_before(frozen.run, frozen.record, store, question.judging)
    for note in notes:
        (reporter.warn if note.flatters else reporter.say)(note.text)
    if dry_run:
        lines = [f"{reader} of {view}" for reader, view in plan]
        return Result("\n".join([*lines, "nothing was written (--dry_run)"]))
    make_folder(folder)
    comparison = _Comparison(config, question, frozen, folder, frozenset(said), reporter, overwrite)
    rows = scored([*comparison.read(plan), *comparison.trained(plan)], question.judge)
    return _result(config, question, frozen, rows, [note.text for note in notes], folder)


def _differing(config: ProbeConfig) -> frozenset[str]:
    plain = ProbeConfig()
    keys = settings(ProbeConfig)
    return frozenset(key for key in keys if value_of(config, key) != value_of(plain, key))


def _resolved(config: ProbeConfig, run: str, task: Task, said: Collection[str]) -> ProbeConfig:
    """With the run's crop and air, who judges, and how crops lie, where nothing was said."""
    check_inference(config.inference)
    check_evaluation(config.evaluation)
    if "optim.adapt" in said:
        raise ConfigError(
            "`optim.adapt` is what a comparison compares",
            remedy="name readers with `--readers frozen,lora,full`",
            code="adapt",
        )
    if not config.probe.readers:
        raise ConfigError("`probe.readers` names no reader", code="readers")
    if config.probe.neighbours < 1 or config.probe.tokens < 1 or config.probe.temperature <= 0:
        raise ConfigError(
            "`probe.neighbours` and `probe.tokens` are 1 or more, `probe.temperature` above 0",
            code="range",
        )
    data = TRAININGS[task].data(config.data, said)
    of_run = config_of(run, load_preparation(run))
    if "data.crop_size" not in said:
        data = replace(data, crop_size=of_run.data.crop_size)
    classification = config.classification
    if "classification.drop_air" not in said:
        # Nearest neighbours and linear maps read what the run is shown; so do the trainings.
        classification = replace(classification, drop_air=drops_air(of_run))
    if config.probe.judge == "inner":
        data = replace(data, inner_fold=data.inner_fold or 0)
    elif data.inner_fold is not None:
        raise ConfigError(
            "`data.inner_fold` is part of the training list, and `probe.judge` is the validation "
            "list",
            remedy="leave one of the two out",
            code="inner-fold",
        )
    return replace(config, data=data, classification=classification, task=task)


def _planned(config: ProbeConfig) -> list[tuple[str, str]]:
    """Reader and view of every row, in the order in which they are made."""
    rows: list[tuple[str, str]] = [(reader, RUN) for reader in dict.fromkeys(config.probe.readers)]
    if config.probe.references:
        rows += [(reader, RANDOM) for reader, _ in rows if reader != "lora"]
        rows += [(reader, VOXELS) for reader, view in rows
                 if view == RUN and reader not in TRAINED]  # fmt: skip
    return rows


def _told(
    config: ProbeConfig,
    question: Question,
    frozen: FrozenEncoder,
    plan: Sequence[tuple[str, str]],
    folder: Path,
) -> list[str]:
    steps = config.training.steps
    trained = sum(reader in TRAINED for reader, _ in plan)
    who = f"inner fold {config.data.inner_fold} of the training list"
    who = "the validation list" if config.probe.judge == "validation" else who
    lines = [
        f"probing `{frozen.run}` (step {frozen.step:,}) on `{question.store.path}`: "
        f"{question.task} of {len(question.fit)} cases of {question.people(question.fit)} "
        f"subjects, judged by {len(question.judging)} cases of "
        f"{question.people(question.judging)} others ({who})"
    ]
    trainings = f", of which {trained} are trainings of {steps:,} steps" if trained else ""
    return [*lines, f"{len(plan)} rows{trainings}, into `{folder}`"]


@dataclass(eq=False)
class _Comparison:
    """The work of one command.

    Args:
        config: resolved.
        question: what is read of whom.
        frozen: the run's encoder.
        folder: where trainings go.
        said: settings that were written down.
        reporter: where progress goes.
        overwrite: begin trainings again.
    """

    config: ProbeConfig
    question: Question
    frozen: FrozenEncoder
    folder: Path
    said: frozenset[str]
    reporter: Reporter
    overwrite: bool

    def read(self, plan: Sequence[tuple[str, str]]) -> list[Row]:
        """The rows that are not trained by steps."""
        readers = [reader for reader, view in plan if view == RUN and reader not in TRAINED]
        if not readers:
            return []
        config, question = self.config, self.question
        encoders = {RUN: self.frozen}
        if config.probe.references:
            encoders[RANDOM] = load_encoder(
                self._random, device=config.training.device, precision=config.training.precision
            ).for_channels(question.store.channel_names, "the store")
        views = Views(
            encoders,
            question.store,
            question.fit,
            config.inference,
            window=config.inference.window or config.data.crop_size,
            pool="mean" if question.target is None else config.classification.pool,
            with_voxels=config.probe.references,
        )
        if question.target is None:
            found = read_label_maps(
                views, self._labelled(), readers, config.probe, seed=config.training.seed,
                reporter=self.reporter,
            )  # fmt: skip
        else:
            asked = TargetStore(question.store, question.target, question.fit, question.judging)
            found = read_volumes(views, asked, readers, config.probe, reporter=self.reporter)
        return [Row(reader, view, said) for (reader, view), said in found.items()]

    def trained(self, plan: Sequence[tuple[str, str]]) -> list[Row]:
        """The rows that are trainings."""
        rows, question = [], self.question
        for reader, view in plan:
            adapt = next((word for word in TRAINED if word == reader), None)
            if adapt is None:
                continue
            self.reporter.say(f"training: {reader} of {view}")
            init = self.frozen.run if view == RUN else self._random
            folder = self.folder / f"{adapt}-{SLUGS[view]}"
            facts = train_reader(
                training_config(self.config, question.task, adapt, init), folder,
                said=self.said, reporter=self.reporter, overwrite=self.overwrite,
            )  # fmt: skip
            if question.target is None:
                said = judged_dice(folder, question.judging)
            else:
                said = judged_answers(folder, question.judging, question.target)
            rows.append(Row(reader, view, said, int(facts["trained_parameters"])))
        return rows

    def _labelled(self) -> LabelledStore:
        store, question = self.question.store, self.question
        assert store.classes is not None  # `question_of` has looked
        recipe = training_config(self.config, question.task, "full", self.frozen.run)
        structures = structures_of(store.classes, scheme_of(recipe, store.classes))
        return LabelledStore(store, store.classes, structures, question.fit, question.judging)

    @cached_property
    def _random(self) -> str:
        return random_run(
            self.folder / RANDOM_RUN,
            self.frozen.encoder,
            self.config.data,
            self.config.training.seed,
            drop_air=self.frozen.drops_air,
            overwrite=self.overwrite,
        )


def _result(
    config: ProbeConfig,
    question: Question,
    frozen: FrozenEncoder,
    rows: Sequence[Scored],
    notes: Sequence[str],
    folder: Path,
) -> Result:
    headline = question.judge.headline
    facts: dict[str, Any] = {
        "format": FORMAT,
        "run": frozen.run,
        "step": frozen.step,
        "weights_sha256": run_digest(frozen.run, config.checkpoint),
        "store": str(question.store.path),
        "task": question.task,
        "target": None if question.target is None else question.target.name,
        "judge": config.probe.judge,
        "fit": {"cases": len(question.fit), "subjects": question.people(question.fit)},
        "judged": {"cases": len(question.judging), "subjects": question.people(question.judging)},
        "headline": headline,
        "rows": [row.as_json() for row in rows],
        "notes": list(notes),
    }
    record = {**facts, "config": to_mapping(config), "versions": versions()}
    write_json(folder / RESULTS, record)
    check_written([folder / RESULTS])
    share = 100 * config.evaluation.confidence
    legend = (
        f"{LONG[headline]} of {len(question.judging)} cases of {question.people(question.judging)} "
        f"subjects; [low, high]: {share:g} % bootstrap over subjects, of a gain over the same draws"
    )
    lines = [*table_of(rows, headline), "", legend, *(f"note: {note}" for note in notes)]
    return Result("\n".join(lines), facts, (folder / RESULTS,))
