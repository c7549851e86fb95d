"""Readers that are trained: a decoder or head on an encoder that stays, adapts or learns."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mim3d.config.data import DataConfig
from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig
from mim3d.config.probe import ProbeConfig
from mim3d.config.verbs import FinetuneConfig, PretrainConfig
from mim3d.config.writing import to_mapping
from mim3d.data.asked_target import AskedTarget
from mim3d.evaluation.predictions import read_predictions
from mim3d.foundation.reporting import NamedReporter, Reporter
from mim3d.models.vit import VolumeViT
from mim3d.models.weights import encoder_metadata
from mim3d.training.checkpoints import Saved, weights_digest
from mim3d.training.run import Run
from mim3d.workflows.assembly import initialising
from mim3d.workflows.finetune import finetune
from mim3d.workflows.run_record import PREPARATION, RECORD_FORMAT
from mim3d.workflows.tasks.classification import VALIDATION
from mim3d.workflows.tasks.curve import read_curve

Task = Literal["segmentation", "classification", "regression"]
Adapt = Literal["full", "frozen", "lora"]
"""Words of `optim.adapt`, which are the names of these readers too."""


def train_reader(
    config: FinetuneConfig,
    folder: Path,
    *,
    said: Collection[str],
    reporter: Reporter,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Fine-tunes, or goes on, or finds it done; the run's results.

    Args:
        config: of the training.
        folder: of its run.
        said: dotted settings that were written down.
        reporter: where progress goes.
        overwrite: begin again.
    """
    within = NamedReporter(reporter, folder.name)
    done = finetune(config, out=str(folder), said=said, reporter=within, overwrite=overwrite)
    return dict(done.facts)


def judged_dice(folder: Path, judging: Sequence[str]) -> NDArray[np.float64]:
    """Dice of each judged case behind the last step of a run."""
    steps = read_curve(folder)["dice"]
    last = steps[max(steps, key=int)]
    return np.array([last[case] for case in judging], np.float64)


def judged_answers(
    folder: Path, judging: Sequence[str], target: AskedTarget
) -> NDArray[np.float64]:
    """What a run says of each judged case: probabilities `n k`, or numbers `n`."""
    rows = {row.case_id: row for row in read_predictions(folder / VALIDATION)}
    if target.classes is None:
        return np.array([rows[case].value for case in judging], np.float64)
    found = []
    for case in judging:
        given = rows[case].probabilities or {}
        found.append([given[value] for value in target.classes])
    return np.array(found, np.float64)


def training_config(config: ProbeConfig, task: Task, adapt: Adapt, init: str) -> FinetuneConfig:
    """The fine-tuning that one of the trained readers is.

    Args:
        config: of the comparison, resolved.
        task: what is learned.
        adapt: word of `optim.adapt`.
        init: run that the encoder comes from.
    """
    return FinetuneConfig(
        task=task,
        data=config.data,
        augmentation=config.augmentation,
        decoder=config.decoder,
        objective=config.objective,
        classification=config.classification,
        optim=replace(config.optim, adapt=adapt),
        training=config.training,
        inference=config.inference,
        init=init,
        init_checkpoint=config.checkpoint,
    )


def random_run(
    folder: Path,
    encoder: EncoderConfig,
    data: DataConfig,
    seed: int,
    *,
    drop_air: bool = False,
    overwrite: bool = False,
) -> str:
    """A run of no steps whose encoder has random weights; made once.

    Args:
        folder: of the run.
        encoder: what it is like.
        data: the crops it would have seen.
        seed: names the weights.
        drop_air: whether it would not have seen patches of air.
        overwrite: make it again.
    """
    objective = PretextConfig(drop_air=drop_air)
    config = to_mapping(PretrainConfig(encoder=encoder, data=data, objective=objective))
    run = Run.create_or_continue(
        folder, config, defaults=to_mapping(PretrainConfig()), overwrite=overwrite
    )
    if run.is_done:
        return str(folder)
    with run:
        with initialising(seed, "probe"):
            network = VolumeViT(encoder)
        tensors = {f"encoder.{key}": value for key, value in network.state_dict().items()}
        record = {"format": RECORD_FORMAT, "verb": "probe", "preparation": {}, "modalities": [],
                  "channel_names": [], "classes": None, "trained_on": {}}  # fmt: skip
        run.write_sealed(PREPARATION, record)
        run.checkpoints.write(
            0,
            weights=tensors,
            header=encoder_metadata(encoder),
            saved=Saved({}, {"step": 0}),
            is_best=True,
        )
        run.finish({"digest": weights_digest(tensors)})
    return str(folder)
