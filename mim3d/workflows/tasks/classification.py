"""Fine-tuning to a classifier of whole volumes, or to one that says a number of each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mim3d.config.data import DataConfig
from mim3d.config.verbs import FinetuneConfig
from mim3d.data.asked_target import AskedTarget
from mim3d.data.body import Air, body_mask
from mim3d.data.feed import Feed
from mim3d.data.store import Store, StoreCase
from mim3d.data.target_table import asked_names, target_table
from mim3d.evaluation.classification import score_classes, score_labels
from mim3d.evaluation.predictions import Prediction, write_predictions
from mim3d.evaluation.regression import score_numbers
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.reporting import Reporter
from mim3d.inference.classifier import Answer, answers, mean_outputs, numbers, patch_of_body
from mim3d.inference.seen import Seen
from mim3d.inference.sliding_window import Predictor
from mim3d.inference.windows import check_inference
from mim3d.models.classifier import VolumeClassifier
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment, Task
from mim3d.objectives.classification import Classification
from mim3d.training.fabric import choose_device, choose_precision, processes
from mim3d.training.run import Run
from mim3d.training.validation import Validator
from mim3d.workflows.case_facts import volume_grids
from mim3d.workflows.networks import classifier_network
from mim3d.workflows.run_record import TARGETS
from mim3d.workflows.tasks.linear_head import start_head

VALIDATION = "validation.csv"
"""What the last look said of every case that judges, as `mim3d predict` writes it."""
Look = Callable[[Task, Sequence[str]], tuple[list[NDArray[np.float64]], dict[str, float]]]
"""Answers for cases, by target, and their scores."""


class _WholeVolumes:
    """A class, or a number, for every volume.

    Args:
        config: resolved.
        store: with the targets that are learned.

    Raises:
        ConfigError: settings that do not go together.
        UserError: the store has no such targets, or nothing to tell apart.
    """

    is_regression = False

    def __init__(self, config: FinetuneConfig, store: Store) -> None:
        self.config, self.store = config, store
        self.targets = asked_names(config.classification.target, store)
        self.table: tuple[AskedTarget, ...] = ()  # of the cases `build` is told of
        check_company(config)

    @staticmethod
    def data(data: DataConfig, said: Collection[str] | None) -> DataConfig:
        """Crops from anywhere where nothing was said: what decides need not be a labelled voxel."""
        is_said = said is not None and "data.placement" in said
        return data if is_said or data.placement != "label" else replace(data, placement="uniform")

    def build(self, cases: Sequence[str]) -> tuple[Task, VolumeViT]:
        """The task with a fresh network."""
        self.table, self._cases = self._table(cases), tuple(cases)
        network = classifier_network(self.config, self.table)
        self._task = Classification(network, self.config.classification, self.table)
        if self._task.guide is not None:
            self._task.remember(volume_grids(self.store, cases))
        return self._task, network.encoder

    def record(self, cases: Sequence[str]) -> dict[str, Any]:
        """What the outputs stand for."""
        return {TARGETS: [one.as_json() for one in self._table(cases)]}

    def begin(self, feed: Feed, reporter: Reporter) -> None:
        """Tells what is learned, warns of classes that no case has, and fits the last map."""
        for one in self.table:
            reporter.say(_learned(one))
            for value, count in zip(one.classes or (), one.counts, strict=True):
                if not count:
                    reporter.warn(
                        f"class {value:g} of `{one.name}` has no training case: it will never be "
                        "predicted"
                    )

        if self.config.classification.start == "linear":
            for warning in _of_start(self.config):
                reporter.warn(warning)
            chosen = start_head(
                self._task,
                self._features(reporter),
                truths_of(self.table, self.store, self._cases),
                [self.store.subject(case_id) for case_id in self._cases],
            )
            strengths = ", ".join(f"{strength:g}" for strength in chosen)
            reporter.say(
                f"linear start from {len(self._cases):,} volumes: penalty {strengths} by "
                "cross-validation"
            )

    @torch.no_grad()
    def _features(self, reporter: Reporter) -> Tensor:
        """What prediction will make outputs of, `n d`: the mean over windows and mirrors.

        The last map is linear, so its output of this mean is the mean of its outputs.
        """
        task, training = self._task, self.config.training
        device = choose_device(training.device)
        is_bf16 = choose_precision(training.precision, device) == "bf16"
        was_training = task.training
        task.to(device).eval()
        rows = []
        with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
            for row in whole_volumes(
                self.config, self.store, self._cases, task.network, task.network.features
            ):
                rows.append(row)
                reporter.progress(len(rows), len(self._cases), "volumes of the linear start")
        task.train(was_training)
        return torch.stack(rows)

    def validators(
        self, run: Run, judging: Sequence[str], choosing: Sequence[str]
    ) -> list[Validator]:
        """Scores of whole volumes; the last answers are kept beside."""
        training, look = self.config.training, _look(self.config, self.store)

        def report(task: Task, moment: Moment) -> dict[str, float]:
            found, scores = look(task, judging)
            made = zip(judging, answers(_table_of(task), found), strict=True)
            rows = [row for case_id, each in made for row in predictions_of(case_id, each)]
            write_predictions(run.folder / VALIDATION, rows)
            return scores

        def choose(task: Task, moment: Moment) -> dict[str, float]:
            return look(task, choosing)[1]

        every, at = training.validate_every, training.validate_at
        validators = [Validator("validation", every, report, at=at)] if judging else []
        if choosing:
            best = Validator("selection", every, choose, best=("loss", "min"), at=at)
            validators.append(best)
        return validators

    def told(self, scores: Mapping[str, float]) -> str:
        """The scores that are defined."""
        errors = [name for name in scores if name.startswith("mae of ")]
        return "validation " + ", ".join(
            f"{name} {scores[name]:.3f}" for name in (*SAID, *errors) if name in scores
        )

    def _table(self, cases: Sequence[str]) -> tuple[AskedTarget, ...]:
        config = self.config.classification
        return target_table(config, self.store, cases, is_regression=self.is_regression)


class ClassificationTraining(_WholeVolumes):
    """A class for every volume."""


class RegressionTraining(_WholeVolumes):
    """A number for every volume."""

    is_regression = True


SAID = ("auc", "accuracy", "balanced_accuracy", "mae", "pearson", "loss")
"""Scores that are told in the end; the log has all."""
IN_UNITS = ("mae",)
"""Scores in the target's own unit, of which there is no mean over targets."""


def check_company(config: FinetuneConfig) -> None:
    """Raises `ConfigError` where crops are to be blended, or normed together, and each is alone."""
    training, world = config.training, processes().world
    shared = f" to each of {world} processes" if world > 1 else ""
    if config.classification.mixup and training.batch_size <= training.accumulation * world:
        raise _alone("`classification.mixup` blends crops that pass together", shared)
    if config.classification.norm == "batch" and training.batch_size <= training.accumulation:
        raise _alone("`classification.norm batch` is by crops that pass together")


def _of_start(config: FinetuneConfig) -> list[str]:
    """What a linear start leaves out, or does not stand."""
    said, found = config.classification, []
    if said.class_weights != "none":
        found.append(
            "`classification.class_weights` play no part in the linear start, only in the steps "
            "behind it"
        )
    if said.norm == "none" and config.optim.adapt != "frozen":
        found.append(
            "a map that starts from a probe is soon lost where the encoder learns too: take "
            "`--classification.norm batch`, or `--optim.adapt frozen`"
        )
    return found


def _alone(what: str, shared: str = "") -> ConfigError:
    return ConfigError(
        f"{what}, and each comes alone{shared}",
        remedy="take a larger `--training.batch_size` or a smaller `--training.accumulation`",
        code="alone",
    )


def _learned(asked: AskedTarget) -> str:
    """What a target is among the training cases."""
    if asked.classes is None:
        return f"learning `{asked.name}`: mean {asked.mean:.4g}, deviation {asked.deviation:.4g}"
    pairs = zip(asked.classes, asked.counts, strict=True)
    return f"learning `{asked.name}`: " + ", ".join(f"{value:g} ({n})" for value, n in pairs)


def predictions_of(case_id: str, said: Sequence[Answer]) -> list[Prediction]:
    """The rows of a case in a file of predictions."""
    return [
        Prediction(
            case_id,
            one.name,
            one.value,
            None if one.classes is None else dict(zip(one.classes, one.probabilities, strict=True)),
        )
        for one in said
    ]


def _table_of(task: Task) -> tuple[AskedTarget, ...]:
    assert isinstance(task, Classification)
    return task.table


def _look(config: FinetuneConfig, store: Store) -> Look:
    check_inference(config.inference)

    def look(
        task: Task, cases: Sequence[str]
    ) -> tuple[list[NDArray[np.float64]], dict[str, float]]:
        assert isinstance(task, Classification)
        rows = whole_volumes(config, store, cases, task.network, task.network)
        found = numbers(task.table, torch.stack(list(rows)))
        return found, scores_of(task.table, found, store, cases)

    return look


def whole_volumes(
    config: FinetuneConfig,
    store: Store,
    cases: Sequence[str],
    network: VolumeClassifier,
    predictor: Predictor,
) -> Iterator[Tensor]:
    """What a predictor makes of each case, `k`: the mean over windows and mirrors, as `predict`.

    Args:
        config: windows, mirrors, and whether those of nothing but air are left out.
        store: where the cases are.
        cases: ids.
        network: whose input it is.
        predictor: the network, or a part of it.
    """
    window = config.inference.window or config.data.crop_size
    patch = patch_of_body(network)
    wants_body = config.inference.skip_air or patch is not None
    device = next(network.parameters()).device
    for case_id in cases:
        with store.open(case_id) as case:
            seen = stored_volume(case, wants_body=wants_body)
        yield mean_outputs(seen, predictor, config.inference, window, device, patch=patch)


def stored_volume(case: StoreCase, *, wants_body: bool) -> Seen:
    """A case of a store as a network sees it, with the body that `mim3d predict` would find."""
    _, x, y, z = case.shape
    voxels = torch.from_numpy(case.read_normalised((0, 0, 0), (x, y, z)))
    body = None
    if wants_body:
        airs = tuple(Air(one.air) for one in case.normalisation)
        body = body_mask(case.read_intensities((0, 0, 0), (x, y, z)), airs)
    return Seen(voxels, case.affine, body=body)


def scores_of(
    table: Sequence[AskedTarget],
    found: Sequence[NDArray[np.float64]],
    store: Store,
    cases: Sequence[str],
) -> dict[str, float]:
    """Scores of answers: the mean over the targets, and of several each by itself too.

    Of several targets the mean absolute error is told of each alone: years and millilitres have no
    mean.

    Args:
        table: the targets.
        found: of each, probabilities `n k`, or numbers `n 1`.
        store: where the truth is noted.
        cases: `n` of its cases, which have all targets.

    Returns:
        `loss`, and what is defined of accuracy, balanced accuracy, macro F1, AUC and, of labels,
        the share of exact matches; or of mean absolute error and correlations.
    """
    each = {}
    truths = truths_of(table, store, cases)
    for one, answer, truth in zip(table, found, truths, strict=True):
        each[one.name] = _scores(one, answer, truth)
    names = dict.fromkeys(name for scores in each.values() for name in scores)
    means = {
        name: float(np.mean([scores[name] for scores in each.values() if name in scores]))
        for name in names
    }
    if len(each) == 1:
        return means
    means = {name: value for name, value in means.items() if name not in IN_UNITS}
    if all(one.is_sigmoid for one in table):
        # As `mim3d evaluate` scores labels together: F1 is that of `yes`.
        yes = np.stack([answer[:, 1] for answer in found], axis=1)
        there = np.stack([one.places(truth) for one, truth in zip(table, truths, strict=True)], 1)
        means |= score_labels(there.astype(np.float64), yes, resamples=0).numbers()
    apart = {
        f"{name} of {target}": value
        for target, scores in each.items()
        for name, value in scores.items()
    }
    return means | apart


def truths_of(
    table: Sequence[AskedTarget], store: Store, cases: Sequence[str]
) -> list[NDArray[np.float64]]:
    """Of each target what is noted of the cases, `n`."""
    return [
        np.array([store.entry(case).targets[one.name] for case in cases], np.float64)
        for one in table
    ]


def _scores(
    asked: AskedTarget, answer: NDArray[np.float64], truth: NDArray[np.float64]
) -> dict[str, float]:
    if asked.classes is None:
        error = (answer[:, 0] - truth) / asked.deviation
        scores = score_numbers(truth, answer[:, 0], resamples=0).numbers()
        return {"loss": float(np.mean(error**2)), **scores}
    places = asked.places(truth)
    likely = np.take_along_axis(answer, places[:, None], axis=1)
    # Of float64 probabilities: below 1e-300 is as wrong as can be.
    loss = float(-np.log(np.maximum(likely, 1e-300)).mean())
    return {"loss": loss, **score_classes(places, answer, resamples=0).numbers()}
