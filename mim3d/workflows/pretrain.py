"""`mim3d pretrain`: from a store to a pre-trained encoder, from no labels unless asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mim3d.config.data import AugmentationConfig
from mim3d.config.objective import PretextConfig
from mim3d.config.verbs import PretrainConfig
from mim3d.config.writing import to_mapping
from mim3d.data.batch import CropBatch
from mim3d.data.feed import Feed, make_feed
from mim3d.data.splits import pretraining_cases
from mim3d.foundation.randomness import RandomStream
from mim3d.foundation.reporting import PlainReporter, Reporter
from mim3d.models.low_rank import check_learns_whole
from mim3d.models.vit import VolumeViT
from mim3d.models.weights import encoder_metadata
from mim3d.objectives.base import Moment, Task
from mim3d.objectives.contrast_masks import check_contrasts
from mim3d.objectives.drawn_patches import check_patches
from mim3d.objectives.masked import Masked
from mim3d.objectives.registry import OWN, TaskBuilder, task_builder
from mim3d.pictures.reconstruction import draw_reconstruction
from mim3d.training.fabric import choose_device
from mim3d.training.loop import fit
from mim3d.training.run import Run
from mim3d.training.standing import FitResult
from mim3d.training.validation import Validator
from mim3d.workflows.assembly import (
    initialising,
    preparation_record,
    run_folder,
    shares_of,
    skipped,
    store_of,
)
from mim3d.workflows.case_facts import tell_of_cases, with_classes
from mim3d.workflows.initial import encoder_for, is_fresh
from mim3d.workflows.learning import draw_learning
from mim3d.workflows.memory import training_need, within_memory
from mim3d.workflows.prepared_window import with_window
from mim3d.workflows.probes import NAME, probe_validators, probed
from mim3d.workflows.result import Result
from mim3d.workflows.run_record import keep_preparation
from mim3d.workflows.run_weights import INIT, initial_record, start_from

FIXED_CROPS = 16
"""Crops whose loss is taken at every validation, always with the same masks."""
RECONSTRUCTS = frozenset({"mae", "simmim", "smit", "autoencoder", "denoising"})
"""Pretext tasks that predict voxels, whose loss says more the smaller it is. That of a task which
compares views is smallest where it collapsed, and falls or rises with its schedules."""


OWN_MEAN = "targets were normalised by patch; shown with each patch's own mean and deviation"
NOTES = {
    "normalised": OWN_MEAN,
    "normalised_per_channel": OWN_MEAN,
    "multiscale": "several scales were predicted; shown is the finest",
    "windows": "windows were predicted; shown is the narrowest that is neither black nor white",
    "gradient": "derivatives were predicted, which are no voxels",
    "hog": "histograms of gradients were predicted, which are no voxels",
    "teacher": "features were predicted, which are no voxels",
}
"""What a panel says of its target."""


def pretrain(
    config: PretrainConfig,
    *,
    out: str | None = None,
    name: str = "run",
    said: Collection[str] | None = None,
    reporter: Reporter | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    own_task: TaskBuilder | None = None,
) -> Result:
    """Pre-trains an encoder on the training volumes of a store.

    Args:
        config: what to do; what the store decides (channels, spacing) is filled in.
        out: the run folder; `runs/pretrain-<name>` if left out.
        name: the config's name.
        said: dotted settings that were written down; with `init` they must agree with the run or
            be listed in `init_adapt`. None takes those that differ from the defaults.
        reporter: where progress goes.
        overwrite: start again where a run already stands.
        dry_run: say what would be done, and stop.
        own_task: builds a pretext task of the caller's own around an encoder, mostly its class, in
            place of the one that `objective.name` says. The run notes its name alone: to go on
            with the run takes the same call.

    Returns:
        The run folder, its losses and its pictures.

    Raises:
        ConfigError: `objective.name own` and no `own_task`.
        UserError: no store, a run of another config in the folder, weights that do not fit.
        Interrupted: a signal came; the same call continues.
    """
    reporter = reporter or PlainReporter()
    check_learns_whole(config.optim)
    if own_task is not None:
        config = replace(config, objective=replace(config.objective, name=OWN))
    build = own_task or task_builder(config.objective.name)
    store = store_of(config.data, several=True)
    config = replace(
        config,
        encoder=encoder_for(config, store, said),
        objective=with_classes(with_window(config.objective, config.data, store), store),
    )
    sizes = config.data.crop_sizes or (config.data.crop_size,)
    check_patches(config.objective, config.encoder, sizes)
    cases = pretraining_cases(store, config.data, config.training.seed)
    folder, shares = run_folder(out, "pretrain", name), shares_of(store, cases)
    reporter.say(
        f"pre-training by {config.objective.name} on {len(cases)} volumes of "
        f"{shares}: {config.training.steps:,} steps of "
        f"{config.training.batch_size} crops into `{folder}`"
    )
    if dry_run:
        if own_task is None:
            reporter.say(str(training_need(config)))
        return Result(text="nothing was written (--dry_run)")
    run = Run.create_or_continue(
        folder, to_mapping(config), defaults=to_mapping(PretrainConfig()), overwrite=overwrite
    )
    if run.is_done:
        return Result(text=f"`{folder}` is done", facts=run.results(), files=(folder,))

    # Only a task of ours is known to take a step on tensors without content.
    memory = within_memory(config, reporter) if own_task is None else nullcontext()
    with run, memory:
        own = {} if own_task is None else {"own_task": _named(own_task)}
        keep_preparation(run, preparation_record(store, cases, "pretrain") | own)
        task = pretext_task(config, reporter, store.channel_names, build)
        if isinstance(task, Masked):
            tell_of_cases(task, config, store, cases)
        if not is_fresh(config):
            where = str(config.init), config.init_checkpoint
            record = initial_record(*where, asked=config.encoder, adapt=config.init_adapt)
            run.write_json(INIT, record)
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
        if task.needs.views > 1 and config.augmentation == AugmentationConfig():
            reporter.warn(
                "every `augmentation` is off, so that the two views of a case differ in place "
                "alone: tasks that compare views are made for changes of shape and intensity too, "
                "as those of the recipe `hippocampus`"
            )
        done = fit(
            task,
            feed,
            config.optim,
            config.training,
            run,
            validators=[
                fixed_loss(feed, config),
                *probe_validators(store, config, feed, run, reporter),
            ],
            reporter=reporter,
            metadata=encoder_metadata(config.encoder),
            on_pictures=panels(folder / "pictures", config.objective.target),
        )
        curves = draw_learning(folder, f"{config.objective.name}, {name}") if run.writes else None
    return _result(done, folder, curves, config.objective)


def pretext_task(
    config: PretrainConfig,
    reporter: Reporter,
    channel_names: Sequence[str] = (),
    build: TaskBuilder | None = None,
) -> Task:
    """The pretext task around its encoder, freshly initialised or as `init` has it.

    Args:
        config: with the encoder that the store and the initial run decide.
        reporter: is told what was loaded.
        channel_names: of the store, for an encoder that knows contrasts; empty is all of these.
        build: makes the task; None is what makes the one that `objective.name` says.
    """
    with initialising(config.training.seed, "pretrain"):
        encoder = VolumeViT(config.encoder)
        if not is_fresh(config):
            where = str(config.init), config.init_checkpoint
            start_from(encoder, *where, reporter, config.init_adapt)
        if channel_names:
            encoder.carry(channel_names)
        check_contrasts(encoder, config.objective)
        # Behind it: a teacher begins as a copy of the encoder.
        return (build or task_builder(config.objective.name))(encoder, config.objective)


def _named(build: TaskBuilder) -> str:
    """What a run calls a task that is not ours: where it was defined, and its name there."""
    name = getattr(build, "__qualname__", type(build).__qualname__)
    return f"{build.__module__}.{name}"


def chooses_best(objective: PretextConfig) -> bool:
    """Whether the fixed loss of a task chooses `best`; where it does not, `best` is the last."""
    if objective.name == "smit" and objective.teacher.voxel_weight == 0:
        return False  # then it is iBOT, which predicts a teacher's answers alone
    if objective.target == "teacher":
        return False  # whose answers change with it: errors of two steps do not compare
    return objective.name in RECONSTRUCTS


def fixed_loss(feed: Feed, config: PretrainConfig) -> Validator:
    """Loss on crops and masks that are the same at every validation.

    It chooses `best` where the task predicts voxels, and nothing where it compares views.
    """
    size = feed.batch_size
    # Whole batches where crops are compared with each other: a last one of one crop has no other.
    is_compared = feed.needs.views > 1
    batches: list[CropBatch] = feed.fixed(
        max(size, FIXED_CROPS // size * size) if is_compared else FIXED_CROPS
    )

    def validate(task: torch.nn.Module, moment: Moment) -> dict[str, float]:
        still = replace(moment, random=RandomStream(seed=0, step=0), wants_pictures=False)
        device = next(task.parameters()).device
        losses = [float(task(batch.to(device), still).loss) for batch in batches]
        return {"fixed_loss": sum(losses) / len(losses)}

    every, at = config.training.validate_every, config.training.validate_at
    if chooses_best(config.objective):
        return Validator("fixed_loss", every, validate, best=("fixed_loss", "min"), at=at)
    return Validator("fixed_loss", every, validate, at=at)


def panels(folder: Path, target: str) -> Callable[[int, dict[str, Tensor]], None]:
    """Draws a panel for the first crop of a step: what was masked, and what was made of it.

    Args:
        folder: where it is written.
        target: of the pretext task, which says how a prediction became voxels, if it did.
    """

    def draw(step: int, pictures: dict[str, Tensor]) -> None:
        arrays = {key: value[0].float().cpu().numpy() for key, value in pictures.items()}
        draw_reconstruction(
            folder / f"reconstruction_{step:07d}.png",
            original=arrays["original"],
            reconstructed=arrays.get("reconstructed"),
            mask=arrays["mask"],
            spacing_mm=tuple(arrays["spacing_mm"].tolist()),
            step=step,
            note=NOTES.get(target),
        )

    return draw


def _result(done: FitResult, folder: Path, curves: Path | None, objective: PretextConfig) -> Result:
    facts = {"run": str(folder), **done.as_json()}
    panels = sorted((folder / "pictures").glob("reconstruction_*.png"))
    text = f"pre-trained for {done.steps:,} steps; last loss {done.loss:.4f}{skipped(done)}"
    probes = done.validation.get(NAME, {})
    if "probe_r2" in probes:
        text += f"; {probed(probes)}"
    if not chooses_best(objective):
        text += f"\n`best` is the last checkpoint: the loss of {objective.name} chooses nothing"
    drawn = (*panels[-1:], *(() if curves is None else (curves,)))
    return Result(text=text, facts=facts, files=(folder, *drawn))
