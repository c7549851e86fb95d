"""From a store to the batches of a step: one face, whoever reads the voxels and wherever.

A feed executes the sampling plan. What a batch holds depends on (seed, step, index, purpose) and
the config alone; workers, ranks, accumulation and where voxels are kept change only its speed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import torch

from mim3d.config.data import AugmentationConfig, DataConfig
from mim3d.data import augment
from mim3d.data.batch import BatchNeeds, CropBatch, CropBatches, MicroBatch
from mim3d.data.batched import Volumes
from mim3d.data.cutting import CropCutter, label_changes
from mim3d.data.device import DeviceCutter
from mim3d.data.residency import Residency, flat_memory, present_device
from mim3d.data.room import fitting, free_bytes
from mim3d.data.sampling import FIXED_STEP, SamplingPlan
from mim3d.data.sources import Sources
from mim3d.data.store import Store
from mim3d.data.targets import TargetRows
from mim3d.data.workers import SLOTS, made_ahead
from mim3d.foundation.errors import ConfigError, UserError

Made = TypeVar("Made")


def make_feed(
    store: Store,
    cases: Sequence[str],
    *,
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
    if any(min(size) < 1 for size in data.crop_sizes):
        raise _refused("data.crop_sizes", "must be positive")
    if data.crop_sizes and not needs.several_sizes:
        raise _refused(
            "data.crop_sizes", "is for fine-tuning, and for pre-training by mae or simmim"
        )
    if len(data.crop_sizes) > batch_size:
        raise _refused(
            "data.crop_sizes",
            f"has {len(data.crop_sizes)} sizes, which take turns in a step's {batch_size} crops",
        )
    if not 0 <= data.label_share <= 1:
        raise _refused("data.label_share", f"must lie between 0 and 1, not {data.label_share}")
    if data.workers < 0:
        raise _refused("data.workers", f"must not be negative, not {data.workers}")
    if data.feed != "resident" and data.resident_on != "auto":
        raise _refused("data.resident_on", "needs `data.feed resident`")
    if needs.labels or data.placement == "label":
        _check_labels(store, cases)
    for size in (data.crop_size, *data.crop_sizes):
        augment.check(augmentation, size)
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
        self._store = store
        self._sources = Sources(store, data, labels=needs.labels)
        self._targets = TargetRows(store, cases, needs.targets)
        self._device = _device_of_volumes(data, device)
        self.plan = SamplingPlan(
            cases,
            data,
            seed=seed,
            batch_size=batch_size,
            open_case=self._sources.outline if self._streams else self._sources.open,
            min_overlap=needs.min_overlap if needs.views > 1 else 1.0,
            strata=tuple(store.strata(cases).values()) if data.store_weights == "equal" else (),
        )
        changes = label_changes(store, data, augmentation)
        self._cutter = CropCutter(
            self.plan, self._sources, augmentation, needs, changes, store.channels
        )
        self._device_cutter = DeviceCutter(
            self.plan, self._sources, augmentation, needs.views, changes
        )

    def batches(
        self, start: int, stop: int, *, rank: int = 0, world: int = 1, accumulation: int = 1
    ) -> Iterator[tuple[int, list[MicroBatch]]]:
        """The micro-batches of one device, step by step.

        Args:
            start: first step.
            stop: step before which it ends.
            rank: which device.
            world: number of devices.
            accumulation: micro-batches of a step on each device.

        Yields:
            A step and its micro-batches in order; together the ranks have each crop once. Each is
            a `CropBatch`, or with `data.crop_sizes` a `CropBatches`.

        Raises:
            ConfigError: the batch does not divide by devices and accumulation steps.
        """
        shares = share(self.batch_size, rank, world, accumulation)
        parts = [self.plan.parts(one) for one in shares]
        flat = tuple(part for one in parts for part in one)
        steps = range(start, stop)
        made = self._streamed(steps, shares, flat) if self._streams else self._stored(steps, flat)
        with contextlib.closing(made):
            for step, batches in made:
                each = map(self._targets.added, batches)
                if not self.data.crop_sizes:
                    yield step, list(each)
                    continue
                yield step, [CropBatches(tuple(islice(each, len(one)))) for one in parts]

    def _stored(
        self, steps: range, parts: tuple[range, ...]
    ) -> Generator[tuple[int, list[CropBatch]], None, None]:
        """Batches read from the store, or from volumes that are all in memory."""
        if self.data.feed == "resident":
            self._sources.load(self.plan.cases)  # before workers are forked, which then share it
        make = partial(self._cutter.batches, parts)
        yield from self._made(make, steps, parts, self._cutter.batches_bytes(parts))

    def _streamed(
        self, steps: range, shares: tuple[range, ...], parts: tuple[range, ...]
    ) -> Generator[tuple[int, list[CropBatch]], None, None]:
        """Batches of volumes that a thread brings into memory ahead of need."""
        on_device, workers = self._device is not None, self.data.workers
        in_flight = 1 if on_device or workers == 0 else SLOTS * workers + 1
        residency = self._residency(steps, shares, in_flight)
        make = self._cut_on_device if on_device else self._cut_on_host
        try:
            for step, batches in make(residency, steps, parts):
                residency.release(step)
                yield step, batches
        finally:
            residency.close()

    def _cut_on_host(
        self, residency: Residency, steps: range, shares: tuple[range, ...]
    ) -> Iterator[tuple[int, list[CropBatch]]]:
        make = partial(self._cutter.resident_batches, shares, residency.volumes)
        return self._made(make, steps, shares, self._cutter.batches_bytes(shares), residency.admit)

    def _cut_on_device(
        self, residency: Residency, steps: range, shares: tuple[range, ...]
    ) -> Iterator[tuple[int, list[CropBatch]]]:
        cutter = self._device_cutter
        draw = partial(cutter.numbers, shares)
        for step, numbers in self._made(draw, steps, shares, cutter.numbers_bytes(shares)):
            places = residency.admit(step)
            yield step, [cutter.cut(residency.volumes, places, one) for one in numbers]

    def _made(
        self,
        make: Callable[[Any], list[Made]],
        steps: range,
        shares: tuple[range, ...],
        slot_bytes: int,
        admit: Callable[[int], Any] | None = None,
    ) -> Iterator[tuple[int, list[Made]]]:
        """What `make` gives for every step, here or by worker processes ahead of need."""
        if self.data.workers == 0:
            return ((step, make(step if admit is None else (step, admit(step)))) for step in steps)
        return made_ahead(
            make,
            steps,
            workers=self.data.workers,
            slot_bytes=slot_bytes,
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
        channels, labels = self._store.channels, self.needs.labels
        device = present_device(self._device or torch.device("cpu"))
        room = fitting(
            [math.prod(self._store.entry(case_id).shape[1:]) for case_id in self.plan.cases],
            None if visits is None else visits.largest_need(in_flight, places),
            2 * channels + labels,
            free_bytes(device),
            device,
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
        cut = [self._cutter.batch(FIXED_STEP, indices) for indices in places]
        return [self._targets.added(batch) for batch in cut]

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
    if accumulation < 1:
        raise _refused("training.accumulation", f"must be at least 1, not {accumulation}")
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


def _refused(key: str, why: str) -> ConfigError:
    return ConfigError(f"`{key}` {why}", code="feed")
