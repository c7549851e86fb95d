"""From a store to the batches of a step: one face, whoever reads the voxels and wherever.

A feed executes the sampling plan. What a batch holds depends on (seed, step, index, purpose) and
the config alone; workers, ranks, accumulation and where voxels are kept change only its speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from mim3d.config.sections import AugmentationConfig, DataConfig
from mim3d.data import augment
from mim3d.data.batch import IGNORE_INDEX, BatchNeeds, CropBatch
from mim3d.data.batched import Volumes, cut_batch, to_device
from mim3d.data.batched_intensity import change_intensities
from mim3d.data.crops import FIXED_STEP, Crop, CropPlan, SamplingPlan, cut_crop
from mim3d.data.numbers import CropNumbers, draw_numbers
from mim3d.data.residency import Residency, fitting, flat_memory, free_bytes, present_device
from mim3d.data.sources import CaseSource, Sources
from mim3d.data.store import Store
from mim3d.data.visits import Visit
from mim3d.data.workers import SLOTS, batch_memory, made_ahead
from mim3d.foundation.errors import ConfigError, UserError
from mim3d.foundation.randomness import RandomStream

OpenVisit = Callable[[Visit], CaseSource]
Made = TypeVar("Made")


def make_feed(
    store: Store,
    cases: Sequence[str],
    data: DataConfig,
    augmentation: AugmentationConfig,
    needs: BatchNeeds,
    batch_size: int,
    seed: int,
    device: torch.device | None = None,
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
        device: the training's; volumes can live there. None is the CPU.

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
    if data.feed != "resident" and data.resident_on != "auto":
        raise _refused("data.resident_on", "needs `data.feed resident`")
    if needs.labels or data.placement == "label":
        _check_labels(store, cases)
    augment.check(augmentation, data.crop_size)
    return Feed(store, tuple(cases), data, augmentation, needs, batch_size, seed, device)


class Feed:
    """Batches of crops by step; made by `make_feed`.

    Args:
        store, cases, data, augmentation, needs, batch_size, seed, device: as `make_feed` takes
            them.
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
        device: torch.device | None = None,
    ) -> None:
        self.needs = needs
        self.batch_size = batch_size
        self.seed = seed
        self.data = data
        self._augmentation = augmentation
        self._store = store
        self._sources = Sources(store, data, labels=needs.labels)
        self._device = _device_of_volumes(data, device)
        self.plan = SamplingPlan(
            cases,
            data,
            seed=seed,
            batch_size=batch_size,
            open_case=self._sources.outline if self._streams else self._sources.open,
        )
        self._channels = store.channels
        self._kept: Tensor | None = None
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
        if self._streams:
            yield from self._streamed(range(start, stop), shares)
            return
        if self.data.feed == "resident":
            self._sources.load(self.plan.cases)  # before workers are forked, which then share it
        make = partial(self._step, shares)
        if self.data.workers == 0:
            for step in range(start, stop):
                yield step, make(step)
            return
        yield from self._made_ahead(make, range(start, stop), shares)

    def _streamed(
        self, steps: range, shares: tuple[range, ...]
    ) -> Iterator[tuple[int, list[CropBatch]]]:
        """Batches of volumes that a thread brings into memory ahead of need."""
        on_device, workers = self._device is not None, self.data.workers
        in_flight = 1 if on_device or workers == 0 else SLOTS * workers + 1
        residency = self._residency(steps, shares, in_flight)
        try:
            if not on_device:
                make = partial(self._resident_step, shares, residency.volumes)
                if workers:
                    made = self._made_ahead(make, steps, shares, admit=residency.admit)
                else:
                    made = ((step, make((step, residency.admit(step)))) for step in steps)
                for step, batches in made:
                    residency.release(step)
                    yield step, batches
                return
            draw = partial(self._numbers, shares)
            drawn: Iterator[tuple[int, list[CropNumbers]]]
            if workers:
                drawn = self._made_ahead(draw, steps, shares)
            else:
                drawn = ((step, draw(step)) for step in steps)
            for step, numbers in drawn:
                places = residency.admit(step)
                batches = [self._cut(residency.volumes, places, one) for one in numbers]
                residency.release(step)
                yield step, batches
        finally:
            residency.close()

    def _made_ahead(
        self,
        make: Callable[[Any], list[Made]],
        steps: range,
        shares: tuple[range, ...],
        admit: Callable[[int], Any] | None = None,
    ) -> Iterator[tuple[int, list[Made]]]:
        crops = sum(map(len, shares)) * self.needs.views
        return made_ahead(
            make,
            steps,
            workers=self.data.workers,
            slot_bytes=crops * self._crop_bytes(),
            describe=partial(self._describe, shares),
            admit=admit,
        )

    @property
    def _streams(self) -> bool:
        """Whether a thread brings volumes in while batches are made."""
        windowed = self.data.window_cases is not None
        return self.data.feed == "resident" and (self._device is not None or windowed)

    @property
    def reuse(self) -> str | None:
        """How often a volume that is in memory is drawn from; None where nothing is streamed."""
        if not self._streams:
            return None
        where = f"`{self._device or 'cpu'}`"
        if self.plan.visits is None:
            return f"all {len(self.plan.cases)} volumes are kept in the memory of {where}"
        return (
            f"crops are drawn from {self.plan.visits.window} of {len(self.plan.cases)} volumes at "
            f"a time, in the memory of {where}; each is read anew after "
            f"{self.plan.visits.most} crops"
        )

    def _residency(self, steps: range, shares: tuple[range, ...], in_flight: int) -> Residency:
        places = range(shares[0].start, shares[-1].stop)
        visits = self.plan.visits
        channels, labels = self._channels, self.needs.labels
        device = present_device(self._device or torch.device("cpu"))
        room = fitting(
            [math.prod(self._store.entry(case_id).shape[1:]) for case_id in self.plan.cases],
            None if visits is None else visits.largest_need(in_flight, places),
            2 * channels + labels,
            free_bytes(device),
            f"the memory of `{device}`",
        )
        shared = self._device is None and self.data.workers > 0
        voxels = flat_memory(2 * room.size * channels, device, shared=shared).view(torch.int16)
        label_maps = flat_memory(room.size, device, shared=shared) if labels else None
        return Residency(
            Volumes(voxels, label_maps),
            room,
            steps,
            lambda step: [self.plan.visit(step, index) for part in shares for index in part],
            None if visits is None else visits.last_step,
            lambda visit: self._sources.fresh(self.plan.case_of(visit)),
        )

    def _numbers(self, shares: tuple[range, ...], step: int) -> list[CropNumbers]:
        views = self.needs.views
        return [
            draw_numbers(self.plan, self._augmentation, step, indices, views) for indices in shares
        ]

    def _cut(
        self, volumes: Volumes, places: Mapping[Visit, int], numbers: CropNumbers
    ) -> CropBatch:
        """One micro-batch in one pass on the device that holds the volumes."""
        device = volumes.voxels.device
        visits = [Visit(slot, number) for slot, number in numbers.visits.tolist()]
        facts = [self._sources.facts(self.plan.case_of(visit)) for visit in visits]
        cut = cut_batch(volumes, [places[v] for v in visits], facts, numbers, self.data.crop_size)
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
        if labels is None or (self._swaps is None and self._ignored is None):
            return labels
        table = torch.arange(256, dtype=torch.uint8)
        if self._ignored is not None:
            table[self._ignored] = IGNORE_INDEX
        swapped = table if self._swaps is None else self._swaps[table.int()]
        both = to_device(torch.cat((table, swapped)).numpy(), labels.device)
        second = to_device(mirrored.int().numpy() * 256, labels.device)
        return both[labels.int() + second[:, None, None, None]]

    def fixed(self, count: int) -> list[CropBatch]:
        """The same `count` crops at every call, not augmented: what validation looks at.

        They come from all cases in turn; `crop_ids` number them throughout.
        """
        if self.data.feed == "resident" and not self._streams:
            self._sources.load(self.plan.cases)
        places = [
            range(first, min(first + self.batch_size, count))
            for first in range(0, count, self.batch_size)
        ]
        return [self.batch(FIXED_STEP, indices) for indices in places]

    def batch(
        self, step: int, indices: Sequence[int], open_visit: OpenVisit | None = None
    ) -> CropBatch:
        """The crops at these places in the global batch of a step, one view after the other.

        Args:
            step: of the run, or `FIXED_STEP`.
            indices: places in the global batch.
            open_visit: gives the case of a visit; None reads it from its file.
        """
        samples = [(view, index) for view in range(self.needs.views) for index in indices]
        plans = [self.plan.draw(step, index) for index in indices] * self.needs.views
        # Crops are made in their places: memory of their own, and a copy, cost more than cutting.
        voxels = batch_memory((len(samples), self._channels, *self.data.crop_size))
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

    def _step(self, shares: tuple[range, ...], step: int) -> list[CropBatch]:
        return [self.batch(step, indices) for indices in shares]

    def _resident_step(
        self, shares: tuple[range, ...], volumes: Volumes, job: tuple[int, Mapping[Visit, int]]
    ) -> list[CropBatch]:
        step, places = job

        def open_visit(visit: Visit) -> CaseSource:
            return self._sources.outline(self.plan.case_of(visit)).within(volumes, places[visit])

        return [self.batch(step, indices, open_visit) for indices in shares]

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
                random = RandomStream(self.seed, step).generator(index, f"augment/{view}")
                change = augment.draw(self._augmentation, random)
            if open_visit is None:
                case = self._sources.open(plan.case_id)
            else:
                case = open_visit(self.plan.visit(step, index))
            first = self._scratch(out.shape) if augment.moves(change) else out
            crop = cut_crop(
                case, plan, labels=self.needs.labels, warp=change.warp_matrix, out=first
            )
            if self._ignored is not None and crop.labels is not None:
                labels = crop.labels.masked_fill(crop.labels == self._ignored, IGNORE_INDEX)
                crop = replace(crop, labels=labels)
            return augment.apply(change, crop, self._swaps, out)
        except (UserError, MemoryError):
            raise
        except Exception as error:
            what = f"cutting a crop at {plan.start} of case `{plan.case_id}` failed"
            raise RuntimeError(what) from error

    def _scratch(self, shape: Sequence[int]) -> Tensor:
        """Memory of one crop that is copied elsewhere at once."""
        if self._kept is None:
            self._kept = torch.empty(tuple(shape))
        return self._kept

    def _crop_bytes(self) -> int:
        voxels = math.prod(self.data.crop_size)
        # float32 voxels, labels and validity of one byte each; affine, ids, air and alignment
        return voxels * (4 * self._channels + 2) + 1024 + 64 * self._channels

    def _describe(self, shares: tuple[range, ...], step: int) -> str:
        names = {self.plan.case_id(step, index) for indices in shares for index in indices}
        listed = ", ".join(f"`{name}`" for name in sorted(names)[:8])
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        return f"the crops of step {step} from {listed}{more}"


def _device_of_volumes(data: DataConfig, device: torch.device | None) -> torch.device | None:
    """The device that keeps volumes and cuts whole batches, or None where neither is asked for."""
    chosen = device or torch.device("cpu")
    wanted = data.resident_on == "device" or (data.resident_on == "auto" and chosen.type == "cuda")
    return chosen if data.feed == "resident" and wanted else None


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
