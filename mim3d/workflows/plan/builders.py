"""What makes the task that is planned, as the training itself would, and with another encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, Protocol

from mim3d.config.encoder import EncoderConfig
from mim3d.config.objective import PretextConfig
from mim3d.config.plan import FinetunePlanConfig
from mim3d.config.task import SegmentationConfig
from mim3d.data.asked_target import FEWEST_CLASSES, AskedTarget
from mim3d.data.regions import region_scheme
from mim3d.data.store import Store
from mim3d.data.target_table import planned_table
from mim3d.models.low_rank import adapt
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Task
from mim3d.objectives.classification import Classification
from mim3d.objectives.registry import task_builder
from mim3d.objectives.segmentation import Segmentation
from mim3d.workflows.networks import classifier_network

CLASSES = 14
"""Where neither a store nor the plan says more: the organs of BTCV."""
TRACEABLE: tuple[Literal["dice_ce"], Literal["dice"]] = ("dice_ce", "dice")
"""The library's own losses, whose shapes follow from shapes."""


class Builder(Protocol):
    """Makes a task, and knows how to make it with another encoder."""

    def __call__(self) -> Task:
        """A fresh task."""

    @property
    def kinds(self) -> tuple[Builder, ...]:
        """What makes it as its steps are, which come in so many kinds, each equally often."""

    def with_encoder(self, encoder: EncoderConfig) -> Builder:
        """The same with another encoder."""


class PretextBuilder:
    """Makes the pretext task."""

    def __init__(self, encoder: EncoderConfig, objective: PretextConfig) -> None:
        self.encoder, self.objective = encoder, objective

    @property
    def kinds(self) -> tuple[Builder, ...]:
        """One for each patch that is drawn, which is then the only one."""
        each = tuple(replace(self.objective, patches=(one,)) for one in self.objective.patches)
        return tuple(PretextBuilder(self.encoder, one) for one in each) or (self,)

    def with_encoder(self, encoder: EncoderConfig) -> PretextBuilder:
        """The same with another encoder."""
        return PretextBuilder(encoder, self.objective)

    def __call__(self) -> Task:
        """A fresh task."""
        return task_builder(self.objective.name)(VolumeViT(self.encoder), self.objective)


class SegmenterBuilder:
    """Makes the supervised task of label maps."""

    def __init__(
        self, config: FinetunePlanConfig, encoder: EncoderConfig, values: Sequence[int]
    ) -> None:
        self.config, self.encoder, self.values = config, encoder, values

    @property
    def kinds(self) -> tuple[Builder, ...]:
        """Itself: all steps are of one kind."""
        return (self,)

    def with_encoder(self, encoder: EncoderConfig) -> SegmenterBuilder:
        """The same with another encoder."""
        return SegmenterBuilder(self.config, encoder, self.values)

    def __call__(self) -> Task:
        """A fresh task."""
        objective = self.config.objective
        scheme = None if objective.regions is None else region_scheme(objective.regions)
        outputs = len(self.values) if scheme is None else scheme.count
        network = UNETR(VolumeViT(self.encoder), outputs, self.config.decoder)
        adapt(network.encoder, self.config.optim)
        return Segmentation(
            network, objective, len(self.values), regions=scheme, values=self.values
        )


class ClassifierBuilder:
    """Makes the supervised task of whole volumes."""

    def __init__(
        self, config: FinetunePlanConfig, encoder: EncoderConfig, table: Sequence[AskedTarget]
    ) -> None:
        # Shares of a blend are drawn by numbers of crops, and tokens by maps of cases, which have
        # no content here; nor has anything that would be air.
        plain = replace(config.classification, mixup=0.0, keep_by="chance", drop_air=False)
        self.config = replace(config, encoder=encoder, classification=plain)
        self.encoder, self.table = encoder, tuple(table)

    @property
    def kinds(self) -> tuple[Builder, ...]:
        """Itself: all steps are of one kind."""
        return (self,)

    def with_encoder(self, encoder: EncoderConfig) -> ClassifierBuilder:
        """The same with another encoder."""
        return ClassifierBuilder(self.config, encoder, self.table)

    def __call__(self) -> Task:
        """A fresh task."""
        network = classifier_network(self.config, self.table)
        adapt(network.encoder, self.config.optim)
        return Classification(network, self.config.classification, self.table)


def _segmenter(
    config: FinetunePlanConfig, encoder: EncoderConfig, store: Store | None, assumed: list[str]
) -> Builder:
    return SegmenterBuilder(_traceable(config, assumed), encoder, _values(config, store, assumed))


def _classifier(
    config: FinetunePlanConfig, encoder: EncoderConfig, store: Store | None, assumed: list[str]
) -> Builder:
    if config.classification.drop_air:
        assumed.append("`classification.drop_air` drops nothing")
    if store is not None:
        return ClassifierBuilder(config, encoder, planned_table(config, store))
    classes = config.plan.classes or FEWEST_CLASSES
    values = None if config.task == "regression" else tuple(map(float, range(classes)))
    assumed.append(f"one target of {classes} classes" if values else "one number to predict")
    # As many cases of each class, so that any weights can be made of them.
    table = AskedTarget("target", values, counts=(1,) * len(values or ()))
    return ClassifierBuilder(config, encoder, [replace(table, is_sigmoid=_is_sigmoid(config))])


def _is_sigmoid(config: FinetunePlanConfig) -> bool:
    return config.classification.loss == "bce"


FINETUNED: dict[
    str, Callable[[FinetunePlanConfig, EncoderConfig, Store | None, list[str]], Builder]
] = {"segmentation": _segmenter, "classification": _classifier, "regression": _classifier}
"""What makes the task, by the config's word."""


def _traceable(config: FinetunePlanConfig, assumptions: list[str]) -> FinetunePlanConfig:
    """With a loss whose step can be taken without numbers: MONAI's pick out voxels by content."""
    loss = config.objective.loss
    if loss in TRACEABLE:
        return config
    assumptions.append(f"loss `{TRACEABLE[0]}` in place of `{loss}`, which costs about as much")
    objective: SegmentationConfig = replace(config.objective, loss=TRACEABLE[0])
    return replace(config, objective=objective)


def _values(
    config: FinetunePlanConfig, store: Store | None, assumptions: list[str]
) -> tuple[int, ...]:
    """The label value of every class."""
    if config.plan.classes is not None:
        return tuple(range(config.plan.classes))
    if store is not None and store.classes is not None:
        return tuple(store.classes.values)
    if config.objective.regions is not None:
        scheme = region_scheme(config.objective.regions)
        return tuple(sorted({0, *(v for values in scheme.regions.values() for v in values)}))
    assumptions.append(f"{CLASSES} classes (`--plan.classes` or a store says)")
    return tuple(range(CLASSES))
