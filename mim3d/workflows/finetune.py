"""`mim3d finetune`: from a store with labels, and mostly a pre-trained run, to a segmenter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mim3d.config.reading import to_mapping
from mim3d.config.sections import Triple
from mim3d.config.verbs import FinetuneConfig
from mim3d.data.batch import IGNORE_INDEX
from mim3d.data.classes import ClassTable
from mim3d.data.feed import Feed, make_feed
from mim3d.data.regions import RegionScheme
from mim3d.data.splits import inner_split, training_cases, validation_cases
from mim3d.data.store import Store, StoreCase
from mim3d.evaluation.overlap import Structure, dice, index_maps, meetings, sizes
from mim3d.foundation.documents import read_object
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.reporting import PlainReporter, Reporter
from mim3d.inference.blinding import blind
from mim3d.inference.sliding_window import slabs
from mim3d.inference.windows import check_inference, fitted, plan_sweep
from mim3d.models.unetr import UNETR
from mim3d.models.weights import encoder_metadata
from mim3d.objectives.base import Moment, Task
from mim3d.objectives.linear_start import start_linearly
from mim3d.objectives.segmentation import Segmentation
from mim3d.training.fabric import choose_device
from mim3d.training.loop import FitResult, Validator, fit
from mim3d.training.run import CURVE, Run
from mim3d.workflows.assembly import (
    initialising,
    preparation_record,
    run_folder,
    skipped,
    store_of,
)
from mim3d.workflows.initial import SCRATCH, encoder_for
from mim3d.workflows.loading import (
    INIT,
    initial_record,
    keep_preparation,
    network_of,
    scheme_of,
    start_from,
)
from mim3d.workflows.memory import training_need, within_memory
from mim3d.workflows.result import Result


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
    """Fine-tunes an encoder with a decoder on the labelled training cases of a store.

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
        The run folder and the Dice of its validation cases, on the store's grid.

    Raises:
        ConfigError: `init` says nothing, or config and store do not agree.
        WeightsError: the run's encoder does not fit; every key is listed.
        Interrupted: a signal came; the same call continues.
    """
    reporter = reporter or PlainReporter()
    store = store_of(config.data)
    config = resolved(config, store, said)
    classes = _labelled(store)
    scheme = scheme_of(config, classes)
    cases = training_cases(store, config.data, config.training.seed)
    cases, choosing = inner_split(
        store, cases, config.training.seed, config.data.selection_fraction
    )
    judging = validation_cases(store, config.data)
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
        keep_preparation(run, preparation_record(store, cases, "finetune"))
        with initialising(config.training.seed, "finetune"):
            network = network_of(config, classes)
        network.encoder.carry(store.channel_names)
        if config.init != SCRATCH:
            where = str(config.init), config.init_checkpoint
            start_from(network.encoder, *where, reporter, config.init_adapt)
            record = initial_record(*where, asked=config.encoder, adapt=config.init_adapt)
            run.write_json(INIT, record)
        task = Segmentation(
            network, config.objective, classes.count, regions=scheme, values=classes.values
        )
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
        if config.decoder.direct in PROBED and run.checkpoints.find() is None:
            _start_linearly(task, feed, reporter, refines=config.decoder.direct == "linear")
        look = _look(config, store, classes, scheme)
        curve = Curve(run, {case: store.subject(case) for case in judging})
        done = fit(
            task,
            feed,
            config.optim,
            config.training,
            run,
            validators=_validators(config, look, judging, choosing, curve),
            reporter=reporter,
            metadata=encoder_metadata(config.encoder),
        )
        results = {**done.as_json(), "training_cases": len(cases), "training_subjects": subjects}
        run.write_json("results.json", results)
    return _result(done, results, str(folder))


PROBED = ("ridge", "linear")
"""Words of `decoder.direct` for a path that is fitted before the first step."""
PROBED_CROPS = 32
"""Crops, not augmented, that a linear start is fitted to; each training case in turn."""


def _start_linearly(task: Segmentation, feed: Feed, reporter: Reporter, *, refines: bool) -> None:
    found = start_linearly(task, feed.fixed(PROBED_CROPS), refines=refines)
    reporter.say(
        f"linear start from {found.tokens:,} tokens of {found.crops} crops: cross-entropy "
        f"{found.entropy:.3f} nats, {found.chance:.3f} with the classes' shares alone"
    )


def resolved(
    config: FinetuneConfig, store: Store, said: Collection[str] | None = None
) -> FinetuneConfig:
    """The config with what store and initial run decide filled in.

    Where config and line are silent on the encoder, it is the initial run's (`encoder_for`).

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
    return replace(config, encoder=encoder_for(config, store, said))


def _labelled(store: Store) -> ClassTable:
    if store.classes is None:
        raise UserError(
            f"store `{store.path}` has no labels",
            remedy="prepare a source that has labels for some of its cases",
            code="no-labels",
        )
    return store.classes


@dataclass(frozen=True)
class Scores:
    """Dice of a network on some cases.

    Args:
        mean: over structures, of each structure's mean over the cases that have it.
        cases: of each case by itself, the mean over its structures; a case where nothing is
            and nothing is predicted has 1.
    """

    mean: float
    cases: dict[str, float]


Look = Callable[[Task, Sequence[str]], Scores]
"""Dice of a segmentation task's network over cases."""


class Curve:
    """`curve.json` of a run: Dice of every judged case at every step where it was judged.

    Args:
        run: whose folder it lies in.
        subjects: whom each judged case belongs to, by case.
    """

    def __init__(self, run: Run, subjects: Mapping[str, str]) -> None:
        self._run = run
        self._subjects = dict(subjects)

    def note(
        self, step: int, dice: Mapping[str, float], zeroed: Mapping[str, float] | None = None
    ) -> None:
        """Adds a step; one that was judged before an interruption is written over.

        Args:
            step: where it was judged.
            dice: of each case.
            zeroed: the same with the encoder's output set to zero; None: not looked at.
        """
        steps = read_curve(self._run.folder).get("dice", {})
        # Later ones belong to work that is done again.
        kept = {key: value for key, value in steps.items() if int(key) < step}
        content = {"subjects": self._subjects, "dice": {**kept, str(step): dict(dice)}}
        audit = {} if zeroed is None else {"zeroed": dict(zeroed)}
        self._run.write_json(CURVE, {**content, **audit})


def read_curve(folder: Path) -> dict[str, Any]:
    """`curve.json`: `subjects` by case, `dice` by step and case, `zeroed` by case once it is done.

    Empty where there is none.
    """
    path = folder / CURVE
    return read_object(path) if path.is_file() else {}


def _look(
    config: FinetuneConfig, store: Store, classes: ClassTable, scheme: RegionScheme | None
) -> Look:
    structures = structures_of(classes, scheme)
    window = config.inference.window or config.data.crop_size
    check_inference(config.inference)

    def scores_of(task: Task, cases: Sequence[str]) -> Scores:
        network = network_in(task)
        device = next(network.parameters()).device
        by_structure: dict[str, list[float]] = {structure.name: [] for structure in structures}
        by_case: dict[str, float] = {}
        for case_id in cases:
            with store.open(case_id) as case:
                scores = _case_dice(
                    network, case, structures, classes, scheme, config, window, device
                )
            for structure_name, score in scores.items():
                by_structure[structure_name].append(score)
            by_case[case_id] = float(np.mean(list(scores.values()))) if scores else 1.0
        means = [float(np.mean(scores)) for scores in by_structure.values() if scores]
        return Scores(float(np.mean(means)) if means else 0.0, by_case)

    return scores_of


def network_in(task: Task) -> UNETR:
    """The network of the one kind of task that fine-tuning runs."""
    assert isinstance(task, Segmentation)
    network = task.network
    assert isinstance(network, UNETR)
    return network


def structures_of(classes: ClassTable, scheme: RegionScheme | None) -> tuple[Structure, ...]:
    """What is scored: every class but the background, or every region."""
    if scheme is not None:
        return tuple(Structure(name, tuple(values)) for name, values in scheme.regions.items())
    pairs = zip(classes.names[1:], classes.values[1:], strict=True)
    return tuple(Structure(name, (value,)) for name, value in pairs)


def _case_dice(
    network: UNETR,
    case: StoreCase,
    structures: Sequence[Structure],
    classes: ClassTable,
    scheme: RegionScheme | None,
    config: FinetuneConfig,
    window: Triple,
    device: torch.device,
) -> dict[str, float]:
    """Dice of the structures that are present or predicted, on the store's grid."""
    size = case.shape[1:]
    _, labels = case.read((0, 0, 0), size)
    assert labels is not None  # validation cases are labelled ones
    voxels = torch.from_numpy(case.read_normalised((0, 0, 0), size)).to(device)
    x, y, z = size
    window = fitted(window, (x, y, z)) if config.data.crop_sizes else window
    sweep = plan_sweep((x, y, z), window, config.inference.overlap)
    # Rows of labels as they come: the logits of all classes of a whole volume may not fit.
    rows = [
        to_values(slab.sums, classes, scheme)
        for slab in slabs(voxels, network, config.inference, sweep, spacing_mm=case.spacing_mm)
    ]
    prediction = np.concatenate(rows, axis=sweep.axis)
    ignored = labels == IGNORE_INDEX
    reference = classes.to_value(np.where(ignored, 0, labels))
    prediction[ignored] = 0
    maps = index_maps(reference, prediction)
    table = meetings(maps)
    scores = {}
    for structure in structures:
        ours, theirs, both = sizes(table, maps.indices(structure))
        if ours or theirs:
            scores[structure.name] = dice(ours, theirs, both)
    return scores


def to_values(
    logits: torch.Tensor, classes: ClassTable, scheme: RegionScheme | None
) -> NDArray[np.integer[Any]]:
    """Logits `k x y z`, up to a positive factor a voxel, to label values `x y z`."""
    if scheme is not None:
        return np.asarray(scheme.to_values((logits > 0).cpu().numpy()))
    return np.asarray(classes.to_value(logits.argmax(0).cpu().numpy()))


def _validators(
    config: FinetuneConfig,
    look: Look,
    judging: Sequence[str],
    choosing: Sequence[str],
    curve: Curve,
) -> list[Validator]:
    def report(task: Task, moment: Moment) -> dict[str, float]:
        scores = look(task, judging)
        curve.note(moment.step, scores.cases)
        numbers = {"dice": scores.mean}
        if moment.step == moment.steps:
            with blind(network_in(task)):
                zeroed = look(task, judging)
            curve.note(moment.step, scores.cases, zeroed.cases)
            numbers["dice_encoder_zeroed"] = zeroed.mean
        return numbers

    def choose(task: Task, moment: Moment) -> dict[str, float]:
        return {"dice": look(task, choosing).mean}

    every, at = config.training.validate_every, config.training.validate_at
    validators = [Validator("validation", every, report, at=at)] if judging else []
    if choosing:
        validators.append(Validator("selection", every, choose, best=("dice", "max"), at=at))
    return validators


def _result(done: FitResult, results: dict[str, Any], folder: str) -> Result:
    text = f"fine-tuned for {done.steps:,} steps; last loss {done.loss:.4f}{skipped(done)}"
    numbers = done.validation.get("validation", {})
    if "dice" in numbers:
        text += (
            f"; validation Dice {numbers['dice']:.3f}"
            f" ({numbers['dice_encoder_zeroed']:.3f} with the encoder's output zeroed)"
        )
    text += f"\nnext: mim3d predict {folder} INPUT... --out predictions"
    return Result(text=text, facts={"run": folder, **results}, files=())
