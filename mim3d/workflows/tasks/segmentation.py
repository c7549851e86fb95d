"""Fine-tuning to a segmenter: its start, and the Dice that it is judged by."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mim3d.config.data import DataConfig, Triple
from mim3d.config.verbs import FinetuneConfig
from mim3d.data.classes import IGNORE_INDEX, ClassTable
from mim3d.data.feed import Feed
from mim3d.data.regions import RegionScheme
from mim3d.data.store import Store, StoreCase
from mim3d.evaluation.described import of_classes, of_regions
from mim3d.evaluation.overlap import Structure, dice, index_maps, meetings, sizes
from mim3d.foundation.errors import UserError
from mim3d.foundation.reporting import Reporter
from mim3d.inference.blinding import blind
from mim3d.inference.segmenter import output_pairs
from mim3d.inference.sliding_window import slabs
from mim3d.inference.windows import check_inference, fitted, plan_sweep
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Moment, Task
from mim3d.objectives.linear_start import start_linearly
from mim3d.objectives.segmentation import Segmentation
from mim3d.training.run import Run
from mim3d.training.validation import Validator
from mim3d.workflows.networks import network_of, scheme_of
from mim3d.workflows.tasks.curve import Curve

PROBED = ("ridge", "linear")
"""Words of `decoder.direct` for a path that is fitted before the first step."""
PROBED_CROPS = 32
"""Crops, not augmented, that a linear start is fitted to; each training case in turn."""


class SegmentationTraining:
    """A class, or overlapping regions, for every voxel.

    Args:
        config: resolved.
        store: with label maps.

    Raises:
        UserError: the store has no labels, or not those of the regions asked for.
    """

    targets: tuple[str, ...] = ()

    def __init__(self, config: FinetuneConfig, store: Store) -> None:
        self.config, self.store = config, store
        self.classes = _labelled(store)
        self.scheme = scheme_of(config, self.classes)

    @staticmethod
    def data(data: DataConfig, said: Collection[str] | None) -> DataConfig:
        """The section as it is: its defaults are a segmenter's."""
        return data

    def build(self, cases: Sequence[str]) -> tuple[Task, VolumeViT]:
        """The task with a fresh network."""
        network, classes = network_of(self.config, self.classes), self.classes
        self._task = Segmentation(
            network,
            self.config.objective,
            classes.count,
            regions=self.scheme,
            values=classes.values,
        )
        return self._task, network.encoder

    def record(self, cases: Sequence[str]) -> dict[str, Any]:
        """Nothing: the class table is the store's."""
        return {}

    def begin(self, feed: Feed, reporter: Reporter) -> None:
        """Fits the linear path beside the decoder, where there is one."""
        direct = self.config.decoder.direct
        if direct not in PROBED:
            return
        found = start_linearly(self._task, feed.fixed(PROBED_CROPS), refines=direct == "linear")
        reporter.say(
            f"linear start from {found.tokens:,} tokens of {found.crops} crops: cross-entropy "
            f"{found.entropy:.3f} nats, {found.chance:.3f} with the classes' shares alone"
        )

    def validators(
        self, run: Run, judging: Sequence[str], choosing: Sequence[str]
    ) -> list[Validator]:
        """Dice of whole volumes, and its curve."""
        look = _look(self.config, self.store, self.classes, self.scheme)
        curve = Curve(run, {case: self.store.subject(case) for case in judging})
        return _validators(self.config, look, judging, choosing, curve)

    def told(self, numbers: Mapping[str, float]) -> str:
        """Mean Dice, and what is left of it without the encoder."""
        return (
            f"validation Dice {numbers['dice']:.3f}"
            f" ({numbers['dice_encoder_zeroed']:.3f} with the encoder's output zeroed)"
        )


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


def _look(
    config: FinetuneConfig, store: Store, classes: ClassTable, scheme: RegionScheme | None
) -> Look:
    classes = classes.ignoring(config.data.ignore_label)
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
    """What is scored: every class but the background and what is left out, or every region."""
    return of_classes(classes) if scheme is None else of_regions(scheme)


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
    swaps = () if scheme else output_pairs(config.augmentation.swap_on_flip, classes)
    # Rows of labels as they come: the logits of all classes of a whole volume may not fit.
    found = slabs(voxels, network, config.inference, sweep, spacing_mm=case.spacing_mm, swaps=swaps)
    rows = [to_values(slab.sums, classes, scheme) for slab in found]
    prediction = np.concatenate(rows, axis=sweep.axis)
    return dice_by_structure(prediction, labels, structures, classes)


def dice_by_structure(
    prediction: NDArray[np.integer[Any]],
    labels: NDArray[np.uint8],
    structures: Sequence[Structure],
    classes: ClassTable,
) -> dict[str, float]:
    """Dice of the structures that are present or predicted; unlabelled voxels take no part.

    Args:
        prediction: `x y z`, label values; changed in place where nothing is labelled.
        labels: `x y z`, class indices of the store.
        structures: what is scored.
        classes: the store's table.
    """
    ignored = labels == IGNORE_INDEX
    if classes.ignore_value in classes.values:  # left out by the run, and a class of the store
        ignored |= labels == classes.values.index(classes.ignore_value)
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
