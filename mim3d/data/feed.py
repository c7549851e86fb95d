"""From a store to the batches of a step: one face, whoever reads the voxels and wherever.

A feed executes the sampling plan. What a batch holds depends on (seed, step, index, purpose) and
the config alone; workers, ranks, accumulation and where voxels are kept change only its speed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mim3d.config.sections import AugmentationConfig, DataConfig
from mim3d.data import augment
from mim3d.data.batch import IGNORE_INDEX, BatchNeeds, CropBatch
from mim3d.data.crops import FIXED_STEP, Crop, CropPlan, SamplingPlan, cut_crop
from mim3d.data.sources import Sources
from mim3d.data.store import Store
from mim3d.data.workers import made_ahead
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.randomness import RandomStream


def make_feed(
    store: Store,
    cases: Sequence[str],
    data: DataConfig,
    augmentation: AugmentationConfig,
    needs: BatchNeeds,
    batch_size: int,
    seed: int,
) -> Feed:
    """The feed of one cohort.

    Args:
        store: where the cases lie.
        cases: ids of the cases to draw from.
        data: crops, placement, and how voxels are read.
        augmentation: what happens to crops.
        needs: what the task asks for.
        batch_size: crops of one step over all devices and accumulation steps.
        seed: the run's.

    Raises:
        UserError: there are no cases, or labels are needed where there are none.
        ConfigError: numbers that cannot be.
    """
    if not cases:
        raise UserError("there is no case to draw crops from", code="empty-cohort")
    if batch_size < 1:
        raise _refused("training.batch_size", f"must be at least 1, not {batch_size}")
    if min(data.crop_size) < 1 or min(data.overhang) < 0:
        raise _refused("data.crop_size", "must be positive and `data.overhang` not negative")
    if not 0 <= data.label_share <= 1:
        raise _refused("data.label_share", f"must lie between 0 and 1, not {data.label_share}")
    if data.workers < 0:
        raise _refused("data.workers", f"must not be negative, not {data.workers}")
    if needs.labels or data.placement == "label":
        _check_labels(store, cases)
    augment.check(augmentation, data.crop_size)
    return Feed(store, tuple(cases), data, augmentation, needs, batch_size, seed)


class Feed:
    """Batches of crops by step; made by `make_feed`.

    Args:
        store, cases, data, augmentation, needs, batch_size, seed: as `make_feed` takes them.
    """

    def __init__(
        self,
        store: Store,
        cases: tuple[str, ...],
        data: DataConfig,
        augmentation: AugmentationConfig,
        needs: BatchNeeds,
        batch_size: int,
        seed: int,
    ) -> None:
        self.needs = needs
        self.batch_size = batch_size
        self.seed = seed
        self.data = data
        self._augmentation = augmentation
        self._sources = Sources(store, data, labels=needs.labels)
        self.plan = SamplingPlan(
            cases,
            data,
            seed=seed,
            batch_size=batch_size,
            open_case=self._sources.open,
        )
        self._channels = store.channels
        self._ignored = _ignored_index(store, data)
        self._swaps = augment.swap_table(
            (
                _index(store, left, "augmentation.swap_on_flip"),
                _index(store, right, "augmentation.swap_on_flip"),
            )
            for left, right in augmentation.swap_on_flip
        )

    def batches(
        self, start: int, stop: int, *, rank: int = 0, world: int = 1, accumulation: int = 1
    ) -> Iterator[tuple[int, list[CropBatch]]]:
        """The micro-batches of one device, step by step.

        Args:
            start: first step.
            stop: step before which it ends.
            rank: which device.
            world: number of devices.
            accumulation: micro-batches of a step on each device.

        Yields:
            A step and its micro-batches in order; together the ranks have each crop once.

        Raises:
            ConfigError: the batch does not divide by devices and accumulation steps.
        """
        shares = share(self.batch_size, rank, world, accumulation)
        if self.data.feed == "resident":
            self._sources.load(self.plan.cases)  # before workers are forked, which then share it
        if self.data.workers == 0:
            for step in range(start, stop):
                yield step, self._step(shares, step)
            return
        crops = self.batch_size // world * self.needs.views
        yield from made_ahead(
            partial(self._step, shares),
            range(start, stop),
            workers=self.data.workers,
            slot_bytes=crops * self._crop_bytes(),
            describe=partial(self._describe, shares),
        )

    def fixed(self, count: int) -> list[CropBatch]:
        """The same `count` crops at every call, not augmented: what validation looks at.

        They come from all cases in turn; `crop_ids` number them throughout.
        """
        if self.data.feed == "resident":
            self._sources.load(self.plan.cases)
        places = [
            range(first, min(first + self.batch_size, count))
            for first in range(0, count, self.batch_size)
        ]
        return [self.batch(FIXED_STEP, indices) for indices in places]

    def batch(self, step: int, indices: Sequence[int]) -> CropBatch:
        """The crops at these places in the global batch of a step, one view after the other."""
        samples = [(view, index) for view in range(self.needs.views) for index in indices]
        plans = [self.plan.draw(step, index) for index in indices] * self.needs.views
        crops = [
            self._crop(plan, step, index, view)
            for plan, (view, index) in zip(plans, samples, strict=True)
        ]
        return CropBatch(
            voxels=torch.stack([crop.voxels for crop in crops]),
            affine=torch.from_numpy(np.stack([crop.affine for crop in crops])),
            case_ids=tuple(plan.case_id for plan in plans),
            crop_ids=torch.tensor([index for _, index in samples], dtype=torch.int64),
            labels=_stacked([crop.labels for crop in crops]),
            valid=_stacked_valid(crops),
            air=_stacked([crop.air for crop in crops]),
        )

    def _step(self, shares: tuple[range, ...], step: int) -> list[CropBatch]:
        return [self.batch(step, indices) for indices in shares]

    def _crop(self, plan: CropPlan, step: int, index: int, view: int) -> Crop:
        try:
            change = augment.AugmentationPlan()
            if step != FIXED_STEP:
                random = RandomStream(self.seed, step).generator(index, f"augment/{view}")
                change = augment.draw(self._augmentation, random)
            case = self._sources.open(plan.case_id)
            crop = cut_crop(case, plan, labels=self.needs.labels, warp=change.warp_matrix)
            if self._ignored is not None and crop.labels is not None:
                labels = crop.labels.masked_fill(crop.labels == self._ignored, IGNORE_INDEX)
                crop = replace(crop, labels=labels)
            return augment.apply(change, crop, self._swaps)
        except (UserError, MemoryError):
            raise
        except Exception as error:
            what = f"cutting a crop at {plan.start} of case `{plan.case_id}` failed"
            raise RuntimeError(what) from error

    def _crop_bytes(self) -> int:
        voxels = math.prod(self.data.crop_size)
        # float32 voxels, labels and validity of one byte each; affine, ids, air and alignment
        return voxels * (4 * self._channels + 2) + 1024 + 64 * self._channels

    def _describe(self, shares: tuple[range, ...], step: int) -> str:
        names = {self.plan.case_id(step, index) for indices in shares for index in indices}
        listed = ", ".join(f"`{name}`" for name in sorted(names)[:8])
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        return f"the crops of step {step} from {listed}{more}"


def share(batch_size: int, rank: int, world: int, accumulation: int) -> tuple[range, ...]:
    """Which places of the global batch a device works through, one range a micro-batch."""
    parts = world * accumulation
    if batch_size % parts:
        raise _refused(
            "training.batch_size",
            f"{batch_size} does not divide by {world} devices x {accumulation} accumulation steps",
        )
    size = batch_size // parts
    first = rank * accumulation
    return tuple(
        range(part * size, (part + 1) * size) for part in range(first, first + accumulation)
    )


def _check_labels(store: Store, cases: Sequence[str]) -> None:
    without = [case_id for case_id in cases if not store.entry(case_id).has_label]
    if without:
        listed = ", ".join(f"`{case_id}`" for case_id in without[:5])
        raise UserError(
            f"labels are needed but {len(without)} of {len(cases)} cases have none: {listed}",
            where=str(store.path),
            remedy="leave them out of the training list; without any labels pre-train with "
            "`--data.placement uniform` or `body`",
            code="no-labels",
        )


def _ignored_index(store: Store, data: DataConfig) -> int | None:
    """The class that `data.ignore_label` names; None where the store leaves it out already."""
    known = None if store.classes is None else store.classes.ignore_value
    if data.ignore_label is None or data.ignore_label == known:
        return None
    return _index(store, data.ignore_label, "data.ignore_label")


def _index(store: Store, value: int, key: str) -> int:
    values = () if store.classes is None else store.classes.values
    if value not in values:
        listed = ", ".join(map(str, values)) or "no labels"
        raise _refused(key, f"names the label value {value}, the store has {listed}")
    return values.index(value)


def _refused(key: str, why: str) -> ConfigError:
    return ConfigError(f"`{key}` {why}", code="feed")


def _stacked(tensors: list[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if len(present) == len(tensors) else None


def _stacked_valid(crops: list[Crop]) -> Tensor | None:
    if all(crop.valid is None for crop in crops):
        return None
    whole = torch.ones(crops[0].voxels.shape[1:], dtype=torch.bool)
    return torch.stack([whole if crop.valid is None else crop.valid for crop in crops])
