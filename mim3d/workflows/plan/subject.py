"""What is planned: from a config, and a store where one is named, to a task and its cohort."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from mim3d.config.plan import FinetunePlanConfig, PlanConfig, PretrainPlanConfig
from mim3d.config.sections import (
    DataConfig,
    EncoderConfig,
    GuideConfig,
    OptimConfig,
    PretextConfig,
    SegmentationConfig,
    TrainingConfig,
    Triple,
)
from mim3d.data.asked_target import FEWEST_CLASSES, AskedTarget
from mim3d.data.regions import region_scheme
from mim3d.data.store import Store
from mim3d.data.target_table import planned_table
from mim3d.foundation.errors import ConfigError
from mim3d.models.low_rank import adapt, check_learns_whole
from mim3d.models.presets import completed
from mim3d.models.unetr import UNETR
from mim3d.models.vit import VolumeViT
from mim3d.objectives.base import Task
from mim3d.objectives.classification import Classification
from mim3d.objectives.contrast_masks import masks_contrasts
from mim3d.objectives.drawn_patches import check_patches
from mim3d.objectives.masks import check_masks, ratio_range, resting_ratio
from mim3d.objectives.registry import PRETEXT_TASKS
from mim3d.objectives.segmentation import Segmentation
from mim3d.tokens.grid import TokenGrid
from mim3d.tokens.masking import count
from mim3d.training.loop import check_numbers
from mim3d.workflows.assembly import store_of
from mim3d.workflows.case_facts import with_classes
from mim3d.workflows.initial import adopted, encoder_for, is_fresh
from mim3d.workflows.loading import classifier_network, encoder_of
from mim3d.workflows.plan.arithmetic import Cohort
from mim3d.workflows.plan.resident import sampling
from mim3d.workflows.prepared_window import with_window

AnyPlanConfig = PretrainPlanConfig | FinetunePlanConfig
VOLUMES, CLASSES = 1000, 14
"""Where neither a store nor the plan says more: a middling cohort, the organs of BTCV."""
TRACEABLE: tuple[Literal["dice_ce"], Literal["dice"]] = ("dice_ce", "dice")
"""The library's own losses, whose shapes follow from shapes."""

_PATCHES = (
    "tokens, FLOP and time are means over `objective.patches`, memory is that of the patch with "
    "which most is held"
)


class Builder(Protocol):
    """Makes a task, and knows how to make it with another encoder."""

    def __call__(self) -> Task:
        """A fresh task."""

    @property
    def kinds(self) -> tuple[Builder, ...]:
        """What makes it as its steps are, which come in so many kinds, each equally often."""

    def with_encoder(self, encoder: EncoderConfig) -> Builder:
        """The same with another encoder."""


@dataclass(frozen=True)
class Subject:
    """A training that is to be planned.

    Args:
        verb: `pretrain` or `finetune`.
        build: makes the task.
        encoder: its config, complete.
        crop_size: voxels.
        tokens: of a crop; `visible` to the encoder, `decoded` by the decoder, `all`.
        cohort: what is read.
        optim: the config's section.
        training: the config's section.
        data: the config's section.
        assumptions: what nobody said.
    """

    verb: Literal["pretrain", "finetune"]
    build: Builder
    encoder: EncoderConfig
    crop_size: Triple
    tokens: dict[str, int]
    cohort: Cohort
    optim: OptimConfig
    training: TrainingConfig
    data: DataConfig
    assumptions: tuple[str, ...]

    @property
    def channels(self) -> int:
        """Of a volume."""
        return self.encoder.channels or 1


def subject_of(config: AnyPlanConfig) -> Subject:
    """Reads config and store.

    Raises:
        ConfigError: a number with which nothing can be planned.
        UserError: the store or the initial run is not there, or something does not fit.
    """
    said, assumptions = config.plan, list[str]()
    _check(said, config.data)
    data = _of_one_size(config.data, assumptions)
    check_numbers(config.optim, config.training)
    named = data.store is not None or bool(data.stores)
    is_pretraining = isinstance(config, PretrainPlanConfig)
    if is_pretraining:
        check_learns_whole(config.optim)
    store = store_of(data, several=is_pretraining) if named else None
    if data.store_weights is not None:
        assumptions.append("every case is drawn from equally often")
    volumes = _volumes(said.volumes, store, assumptions)
    # Refuses a window and a grid that the feed refuses.
    sampling(data, volumes, config.training.batch_size, config.training.seed)
    encoder = _encoder(config, store)
    if isinstance(config, PretrainPlanConfig):
        verb: Literal["pretrain", "finetune"] = "pretrain"
        sizes = config.data.crop_sizes or (config.data.crop_size,)
        check_masks(config.objective)
        check_patches(config.objective, encoder, sizes)
        objective = with_window(config.objective, data, store)
        objective = _with_air(objective, assumptions)
        objective = _with_masks(objective, assumptions)
        objective = _with_classes(objective, store, assumptions)
        objective = _with_contrasts(objective, encoder, assumptions)
        if objective.patches:
            assumptions.append(_PATCHES)
        build: Builder = _Pretext(encoder, objective)
        tokens = _tokens(encoder, data.crop_size, objective)
    else:
        verb = "finetune"
        build = FINETUNED[config.task](config, encoder, store, assumptions)
        tokens = _tokens(encoder, data.crop_size, None)
    return Subject(
        verb=verb,
        build=build,
        encoder=encoder,
        crop_size=data.crop_size,
        tokens=tokens,
        cohort=Cohort(
            volumes=volumes,
            volume_shape=_shape(store) or said.volume_shape,
            channels=encoder.channels or 1,
            crop_size=data.crop_size,
            origin_grid=_triple(data.origin_grid),
            compression=said.compression,
            has_labels=isinstance(config, FinetunePlanConfig) and config.task == "segmentation",
            known_sizes=_sizes(store),
        ),
        optim=config.optim,
        training=config.training,
        data=data,
        assumptions=tuple(assumptions),
    )


def _check(said: PlanConfig, data: DataConfig) -> None:
    numbers = {
        "plan.devices": said.devices,
        "plan.devices_per_node": said.devices_per_node,
        "plan.volumes": said.volumes,
        "plan.volume_shape": min(said.volume_shape),
        "plan.epochs": said.epochs,
        "plan.disk_mb_s": said.disk_mb_s,
        "plan.compression": said.compression,
        "plan.resident_gb": said.resident_gb,
        "data.crop_size": min(data.crop_size),
    }
    for name, value in numbers.items():
        if value is not None and value <= 0:
            raise ConfigError(
                f"`{name}` is {value}, expected more than 0",
                remedy="`mim3d plan --help` says what it counts",
                code="range",
            )
    if said.classes is not None and said.classes < 2:
        raise ConfigError(
            f"`plan.classes` is {said.classes}, expected at least 2",
            remedy="background counts: write one more than there are structures",
            code="range",
        )
    if data.feed != "resident" and data.resident_on != "auto":
        raise ConfigError(
            "`data.resident_on` needs `data.feed resident`",
            remedy="add `--data.feed resident`",
            code="feed",
        )


def _traceable(config: FinetunePlanConfig, assumptions: list[str]) -> FinetunePlanConfig:
    """With a loss whose step can be taken without numbers: MONAI's pick out voxels by content."""
    loss = config.objective.loss
    if loss in TRACEABLE:
        return config
    assumptions.append(f"loss `{TRACEABLE[0]}` in place of `{loss}`, which costs about as much")
    objective: SegmentationConfig = replace(config.objective, loss=TRACEABLE[0])
    return replace(config, objective=objective)


def _of_one_size(data: DataConfig, assumptions: list[str]) -> DataConfig:
    """Crops of several sizes as if all had the largest: what they need at most."""
    if not data.crop_sizes:
        return data
    assumptions.append("every crop has the largest of `data.crop_sizes`")
    return replace(data, crop_size=max(data.crop_sizes, key=math.prod), crop_sizes=())


def _with_air(objective: PretextConfig, assumptions: list[str]) -> PretextConfig:
    """How much of the crops is air nobody knows beforehand."""
    if not objective.drop_air:
        return objective
    assumptions.append("`objective.drop_air` drops nothing")
    return replace(objective, drop_air=False)


def _with_masks(objective: PretextConfig, assumptions: list[str]) -> PretextConfig:
    """Masks that cost as every step's: unguided, at the ratio with most tokens to encode."""
    lowest, highest = ratio_range(objective)
    if lowest < highest:
        assumptions.append(f"every step has the lowest mask ratio, {lowest:g}")
    if objective.guide.by != "none":
        assumptions.append("guided masks cost nothing")
    return replace(objective, mask_ratio=lowest, mask_ratio_end=None, guide=GuideConfig())


def _with_classes(
    objective: PretextConfig, store: Store | None, assumptions: list[str]
) -> PretextConfig:
    """With the classes of a supervised target; without a store two stand for them."""
    supervised = objective.supervised
    if supervised.target is None or supervised.classes is not None:
        return objective
    if store is not None:
        return with_classes(objective, store)
    assumptions.append("the supervised target has two classes")
    return replace(objective, supervised=replace(supervised, classes=(0.0, 1.0)))


def _with_contrasts(
    objective: PretextConfig, encoder: EncoderConfig, assumptions: list[str]
) -> PretextConfig:
    """Masks of each contrast as masks of tokens: hidden are those that show none."""
    if not masks_contrasts(objective):
        return objective
    assumptions.append("no contrast is dropped; every token is decoded")
    ratio = resting_ratio(objective)
    if objective.masks_per_contrast:
        ratio = round(ratio ** (encoder.channels or 1), 6)
        assumptions.append(f"{ratio:.0%} of the tokens show no contrast")
    return replace(
        objective, mask_ratio=ratio, masks_per_contrast=False, contrast_dropout=0.0,
        visible_weight=1.0,
    )  # fmt: skip


class _Pretext:
    """Makes the pretext task."""

    def __init__(self, encoder: EncoderConfig, objective: PretextConfig) -> None:
        self.encoder, self.objective = encoder, objective

    @property
    def kinds(self) -> tuple[Builder, ...]:
        """One for each patch that is drawn, which is then the only one."""
        each = tuple(replace(self.objective, patches=(one,)) for one in self.objective.patches)
        return tuple(_Pretext(self.encoder, one) for one in each) or (self,)

    def with_encoder(self, encoder: EncoderConfig) -> _Pretext:
        return _Pretext(encoder, self.objective)

    def __call__(self) -> Task:
        return PRETEXT_TASKS[self.objective.name](VolumeViT(self.encoder), self.objective)


class _Segmenter:
    """Makes the supervised task."""

    def __init__(
        self, config: FinetunePlanConfig, encoder: EncoderConfig, values: Sequence[int]
    ) -> None:
        self.config, self.encoder, self.values = config, encoder, values

    @property
    def kinds(self) -> tuple[Builder, ...]:
        return (self,)

    def with_encoder(self, encoder: EncoderConfig) -> _Segmenter:
        return _Segmenter(self.config, encoder, self.values)

    def __call__(self) -> Task:
        objective = self.config.objective
        scheme = None if objective.regions is None else region_scheme(objective.regions)
        outputs = len(self.values) if scheme is None else scheme.count
        network = UNETR(VolumeViT(self.encoder), outputs, self.config.decoder)
        adapt(network.encoder, self.config.optim)
        return Segmentation(
            network, objective, len(self.values), regions=scheme, values=self.values
        )


class _Answerer:
    """Makes the supervised task of whole volumes."""

    def __init__(
        self, config: FinetunePlanConfig, encoder: EncoderConfig, table: Sequence[AskedTarget]
    ) -> None:
        # Shares of a blend are drawn by numbers of crops, which have no content here.
        plain = replace(config.classification, mixup=0.0)
        self.config = replace(config, encoder=encoder, classification=plain)
        self.encoder, self.table = encoder, tuple(table)

    @property
    def kinds(self) -> tuple[Builder, ...]:
        return (self,)

    def with_encoder(self, encoder: EncoderConfig) -> _Answerer:
        return _Answerer(self.config, encoder, self.table)

    def __call__(self) -> Task:
        network = classifier_network(self.config, self.table)
        adapt(network.encoder, self.config.optim)
        return Classification(network, self.config.classification, self.table)


def _segmenter(
    config: FinetunePlanConfig, encoder: EncoderConfig, store: Store | None, assumed: list[str]
) -> Builder:
    return _Segmenter(_traceable(config, assumed), encoder, _values(config, store, assumed))


def _answerer(
    config: FinetunePlanConfig, encoder: EncoderConfig, store: Store | None, assumed: list[str]
) -> Builder:
    if store is not None:
        return _Answerer(config, encoder, planned_table(config, store))
    classes = config.plan.classes or FEWEST_CLASSES
    values = None if config.task == "regression" else tuple(map(float, range(classes)))
    assumed.append(f"one target of {classes} classes" if values else "one number to predict")
    # As many cases of each class, so that any weights can be made of them.
    table = AskedTarget("target", values, counts=(1,) * len(values or ()))
    return _Answerer(config, encoder, [replace(table, is_sigmoid=_is_sigmoid(config))])


def _is_sigmoid(config: FinetunePlanConfig) -> bool:
    return config.classification.loss == "bce"


FINETUNED: dict[
    str, Callable[[FinetunePlanConfig, EncoderConfig, Store | None, list[str]], Builder]
] = {"segmentation": _segmenter, "classification": _answerer, "regression": _answerer}
"""What makes the task, by the config's word."""


def _encoder(config: AnyPlanConfig, store: Store | None) -> EncoderConfig:
    if store is not None:
        return encoder_for(config, store)
    encoder = config.encoder
    if not is_fresh(config):
        encoder = adopted(config, encoder_of(str(config.init), config.init_checkpoint))
    crop_size, spacing_mm = config.data.crop_size, (1.0, 1.0, 1.0)
    return completed(encoder, channels=1, crop_size=crop_size, spacing_mm=spacing_mm)


def _tokens(
    encoder: EncoderConfig, crop: Triple, objective: PretextConfig | None
) -> dict[str, int]:
    if objective is not None and objective.patches:
        return _mean_tokens(encoder, crop, objective)
    n = TokenGrid.over(crop, encoder.patch).n
    if objective is None or objective.name not in ("mae", "simmim", "smit"):
        return {"all": n, "visible": n, "decoded": n}
    masked = count(resting_ratio(objective), n, objective.rounding)
    decoded = count(objective.decode_fraction, masked)
    there = n - count(objective.drop_ratio, n, objective.rounding)
    if objective.visible_weight > 0:
        decoded += there - masked
    return {"all": n, "visible": there - masked if objective.name == "mae" else there,
            "decoded": decoded}  # fmt: skip


def _mean_tokens(encoder: EncoderConfig, crop: Triple, objective: PretextConfig) -> dict[str, int]:
    """Over the patches that are drawn, rounded."""
    alone = replace(objective, patches=())
    each = [_tokens(replace(encoder, patch=one), crop, alone) for one in objective.patches]
    return {name: round(sum(one[name] for one in each) / len(each)) for name in each[0]}


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


def _volumes(said: int | None, store: Store | None, assumptions: list[str]) -> int:
    if said is not None:
        return said
    if store is not None:
        return len(store.ids("training"))
    assumptions.append(f"{VOLUMES:,} volumes (`--plan.volumes` or a store says)")
    return VOLUMES


def _shape(store: Store | None) -> Triple | None:
    """The median volume of a store."""
    return None if store is None else store.median_shape


def _sizes(store: Store | None) -> tuple[int, ...]:
    """Voxels of every volume that is trained on."""
    if store is None:
        return ()
    return tuple(math.prod(store.entry(case).shape[1:]) for case in store.ids("training"))


def _triple(grid: Any) -> Triple | None:
    return (grid,) * 3 if isinstance(grid, int) else grid
