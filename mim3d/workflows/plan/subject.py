"""What is planned: from a config, and a store where one is named, to a task and its cohort."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from mim3d.config.data import DataConfig, Triple
from mim3d.config.encoder import EncoderConfig
from mim3d.config.plan import FinetunePlanConfig, PlanConfig, PretrainPlanConfig
from mim3d.config.training import OptimConfig, TrainingConfig
from mim3d.data.store import Store
from mim3d.foundation.errors import ConfigError
from mim3d.models.low_rank import check_learns_whole
from mim3d.models.presets import completed
from mim3d.objectives.drawn_patches import check_patches
from mim3d.objectives.masks import check_masks
from mim3d.training.loop import check_numbers
from mim3d.workflows.assembly import store_of
from mim3d.workflows.initial import adopted, encoder_for, is_fresh
from mim3d.workflows.plan.arithmetic import Cohort
from mim3d.workflows.plan.builders import FINETUNED, Builder, PretextBuilder
from mim3d.workflows.plan.reckoned import of_one_size, reckoned
from mim3d.workflows.plan.resident import sampling
from mim3d.workflows.plan.token_counts import tokens_of
from mim3d.workflows.prepared_window import with_window
from mim3d.workflows.run_weights import encoder_of

AnyPlanConfig = PretrainPlanConfig | FinetunePlanConfig
VOLUMES = 1000
"""Where neither a store nor the plan says more: a middling cohort."""


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
    data = of_one_size(config.data, assumptions)
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
        objective = reckoned(objective, encoder, store, assumptions)
        build: Builder = PretextBuilder(encoder, objective)
        tokens = tokens_of(encoder, data.crop_size, objective)
    else:
        verb = "finetune"
        build = FINETUNED[config.task](config, encoder, store, assumptions)
        tokens = tokens_of(encoder, data.crop_size, None)
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


def _encoder(config: AnyPlanConfig, store: Store | None) -> EncoderConfig:
    if store is not None:
        return encoder_for(config, store)
    encoder = config.encoder
    if not is_fresh(config):
        encoder = adopted(config, encoder_of(str(config.init), config.init_checkpoint))
    crop_size, spacing_mm = config.data.crop_size, (1.0, 1.0, 1.0)
    return completed(encoder, channels=1, crop_size=crop_size, spacing_mm=spacing_mm)


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
