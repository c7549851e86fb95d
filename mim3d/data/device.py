"""Batches cut on the device that holds the volumes: numbers are drawn anywhere, carried out there.

What `cutting` does crop by crop on the CPU, this does for a whole batch in one pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mim3d.config.data import AugmentationConfig
from mim3d.data.batch import CropBatch
from mim3d.data.batched import Volumes, cut_batch, to_device
from mim3d.data.batched_intensity import change_intensities
from mim3d.data.classes import IGNORE_INDEX
from mim3d.data.cutting import LabelChanges
from mim3d.data.numbers import CropNumbers, draw_numbers, numbers_bytes
from mim3d.data.sampling import SamplingPlan
from mim3d.data.sources import Sources
from mim3d.data.visits import Visit


class DeviceCutter:
    """Draws the numbers of a sampling plan's crops, and cuts them where the volumes are.

    Args:
        plan: which case and place.
        sources: the cases.
        augmentation: what may happen to a crop.
        views: crops of one sample.
        changes: to labels.
    """

    def __init__(
        self,
        plan: SamplingPlan,
        sources: Sources,
        augmentation: AugmentationConfig,
        views: int,
        changes: LabelChanges,
    ) -> None:
        self._plan = plan
        self._sources = sources
        self._augmentation = augmentation
        self._views = views
        self._changes = changes

    def numbers(self, shares: Sequence[range], step: int) -> list[CropNumbers]:
        """The numbers of a step's micro-batches, of which each share is one."""
        return [
            draw_numbers(self._plan, self._augmentation, step, indices, self._views)
            for indices in shares
        ]

    def numbers_bytes(self, shares: Sequence[range]) -> int:
        """What those of a step need at most."""
        return sum(numbers_bytes(len(indices) * self._views) for indices in shares)

    def cut(self, volumes: Volumes, places: Mapping[Visit, int], numbers: CropNumbers) -> CropBatch:
        """One micro-batch.

        Args:
            volumes: on the device.
            places: where each visit's volume begins.
            numbers: of the crops.
        """
        device = volumes.voxels.device
        visits = [Visit(slot, number) for slot, number in numbers.visits.tolist()]
        facts = [self._sources.facts(self._plan.case_of(visit)) for visit in visits]
        size = self._plan.size(0, int(numbers.crop_ids[0]))  # of crops of a run, at any step
        cut = cut_batch(volumes, [places[visit] for visit in visits], facts, numbers, size)
        airs = [fact.air for fact in facts if fact.air is not None]
        air = to_device(np.stack(airs), device) if len(airs) == len(facts) else None
        voxels, air = change_intensities(cut.voxels, cut.valid, air, numbers)
        affines = np.stack([fact.affine for fact in facts]) @ numbers.to_volume.numpy()
        return CropBatch(
            voxels=voxels,
            affine=to_device(affines @ numbers.orientation.numpy(), device),
            case_ids=tuple(fact.case_id for fact in facts),
            crop_ids=numbers.crop_ids,
            labels=self._relabelled(cut.labels, numbers.mirrored),
            valid=cut.valid,
            air=air,
        )

    def _relabelled(self, labels: Tensor | None, mirrored: Tensor) -> Tensor | None:
        """Label maps without the ignored class, their sides exchanged where x was mirrored."""
        ignored, swaps = self._changes.ignored, self._changes.swaps
        if labels is None or (swaps is None and ignored is None):
            return labels
        table = torch.arange(256, dtype=torch.uint8)
        if ignored is not None:
            table[ignored] = IGNORE_INDEX
        swapped = table if swaps is None else swaps[table.int()]
        both = to_device(torch.cat((table, swapped)).numpy(), labels.device)
        second = to_device(mirrored.int().numpy() * 256, labels.device)
        return both[labels.int() + second[:, None, None, None]]
