"""Batches cut crop by crop on the CPU, from files or from volumes in its memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mim3d.config.data import AugmentationConfig, DataConfig
from mim3d.data import augment
from mim3d.data.batch import BatchNeeds, CropBatch
from mim3d.data.batched import Volumes
from mim3d.data.classes import IGNORE_INDEX
from mim3d.data.crop_reading import cut_crop
from mim3d.data.crops import Crop, CropPlan
from mim3d.data.sampling import FIXED_STEP, SamplingPlan
from mim3d.data.sources import CaseSource, Sources
from mim3d.data.store import Store
from mim3d.data.visits import Visit
from mim3d.data.workers import batch_memory
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.randomness import RandomStream

OpenVisit = Callable[[Visit], CaseSource]


@dataclass(frozen=True)
class LabelChanges:
    """What happens to class indices.

    Args:
        ignored: the class that becomes `IGNORE_INDEX`, or None.
        swaps: `256`, uint8, classes after x was mirrored, or None where none has a side.
    """

    ignored: int | None
    swaps: Tensor | None


def label_changes(store: Store, data: DataConfig, augmentation: AugmentationConfig) -> LabelChanges:
    """The classes that the config names by their values.

    Raises:
        ConfigError: the store has no such value.
    """
    pairs = [
        [_index(store, value, "augmentation.swap_on_flip") for value in pair]
        for pair in augmentation.swap_on_flip
    ]
    # The store leaves out already what it knows to be ignored.
    known = None if store.classes is None else store.classes.ignore_value
    ignored = None
    if data.ignore_label is not None and data.ignore_label != known:
        ignored = _index(store, data.ignore_label, "data.ignore_label")
    return LabelChanges(ignored, augment.swap_table((left, right) for left, right in pairs))


class CropCutter:
    """Cuts, augments and stacks the crops of a sampling plan.

    Args:
        plan: which case and place.
        sources: the cases.
        augmentation: what may happen to a crop.
        needs: views and labels.
        changes: to labels.
        channels: of every case.
    """

    def __init__(
        self,
        plan: SamplingPlan,
        sources: Sources,
        augmentation: AugmentationConfig,
        needs: BatchNeeds,
        changes: LabelChanges,
        channels: int,
    ) -> None:
        self._plan = plan
        self._sources = sources
        self._augmentation = augmentation
        self._needs = needs
        self._changes = changes
        self._channels = channels
        self._kept: Tensor | None = None

    def batches_bytes(self, shares: Sequence[range]) -> int:
        """What the batches of a step need at most, of which each share is one of one size."""
        voxels = sum(len(part) * math.prod(self._plan.size(0, part[0])) for part in shares)
        # float32 voxels, labels and validity of one byte each; affine, ids, air and alignment
        crops = sum(map(len, shares))
        bytes_ = voxels * (4 * self._channels + 2) + crops * (1024 + 64 * self._channels)
        return bytes_ * self._needs.views

    def batches(self, shares: Sequence[range], step: int) -> list[CropBatch]:
        """The batches of a step, of which each share is one of one size."""
        return [self.batch(step, indices) for indices in shares]

    def resident_batches(
        self, shares: Sequence[range], volumes: Volumes, job: tuple[int, Mapping[Visit, int]]
    ) -> list[CropBatch]:
        """The same from flat memory; a job is a step and where each of its visits begins."""
        step, places = job

        def open_visit(visit: Visit) -> CaseSource:
            return self._sources.outline(self._plan.case_of(visit)).within(volumes, places[visit])

        return [self.batch(step, indices, open_visit) for indices in shares]

    def batch(
        self, step: int, indices: Sequence[int], open_visit: OpenVisit | None = None
    ) -> CropBatch:
        """The crops at these places in the global batch of a step, one view after the other.

        Args:
            step: of the run, or `FIXED_STEP`.
            indices: places in the global batch, of crops of one size.
            open_visit: gives the case of a visit; None reads it from its file.
        """
        samples = [(view, index) for view in range(self._needs.views) for index in indices]
        plans = [self._plan.draw(step, index, view) for view, index in samples]
        # Crops are made in their places: memory of their own, and a copy, cost more than cutting.
        size = self._plan.size(step, indices[0])
        voxels = batch_memory((len(samples), self._channels, *size))
        crops = [
            self._crop(plan, step, index, view, out, open_visit)
            for plan, (view, index), out in zip(plans, samples, voxels, strict=True)
        ]
        return CropBatch(
            voxels=voxels,
            affine=torch.from_numpy(np.stack([crop.affine for crop in crops])),
            case_ids=tuple(plan.case_id for plan in plans),
            crop_ids=torch.tensor([index for _, index in samples], dtype=torch.int64),
            labels=_stacked([crop.labels for crop in crops]),
            valid=_stacked_valid(crops),
            air=_stacked([crop.air for crop in crops]),
        )

    def _crop(
        self,
        plan: CropPlan,
        step: int,
        index: int,
        view: int,
        out: Tensor,
        open_visit: OpenVisit | None,
    ) -> Crop:
        try:
            change = augment.AugmentationPlan()
            if step != FIXED_STEP:
                random = RandomStream(self._plan.seed, step).generator(index, f"augment/{view}")
                change = augment.draw(self._augmentation, random)
            if open_visit is None:
                case = self._sources.open(plan.case_id)
            else:
                case = open_visit(self._plan.visit(step, index))
            first = self._scratch(out.shape) if augment.moves(change) else out
            crop = cut_crop(
                case,
                plan,
                labels=self._needs.labels,
                warp=change.warp_matrix,
                rescale=change.rescale,
                out=first,
            )
            if self._changes.ignored is not None and crop.labels is not None:
                labels = crop.labels.masked_fill(crop.labels == self._changes.ignored, IGNORE_INDEX)
                crop = replace(crop, labels=labels)
            return augment.apply(change, crop, self._changes.swaps, out)
        except (UserError, MemoryError):
            raise
        except Exception as error:
            what = f"cutting a crop at {plan.start} of case `{plan.case_id}` failed"
            raise RuntimeError(what) from error

    def _scratch(self, shape: Sequence[int]) -> Tensor:
        """Memory of one crop that is copied elsewhere at once."""
        if self._kept is None or self._kept.shape != tuple(shape):
            self._kept = torch.empty(tuple(shape))
        return self._kept


def _index(store: Store, value: int, key: str) -> int:
    values = () if store.classes is None else store.classes.values
    if value not in values:
        listed = ", ".join(map(str, values)) or "no labels"
        raise ConfigError(
            f"`{key}` names the label value {value}, the store has {listed}", code="feed"
        )
    return values.index(value)


def _stacked(tensors: list[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if len(present) == len(tensors) else None


def _stacked_valid(crops: list[Crop]) -> Tensor | None:
    if all(crop.valid is None for crop in crops):
        return None
    whole = torch.ones(crops[0].voxels.shape[1:], dtype=torch.bool)
    return torch.stack([whole if crop.valid is None else crop.valid for crop in crops])
