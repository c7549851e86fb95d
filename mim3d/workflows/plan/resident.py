"""What a resident feed reserves and reads, by the feed's own rules, before there is a feed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from mim3d.config.data import DataConfig
from mim3d.data.crops import OpenCase
from mim3d.data.feed import share
from mim3d.data.room import AHEAD, RESERVE, Room, fitting
from mim3d.data.sampling import SamplingPlan
from mim3d.data.visits import VisitPlan
from mim3d.data.workers import SLOTS
from mim3d.foundation.errors import ResourceError
from mim3d.workflows.plan.arithmetic import Cohort

ANY = torch.device("cpu")
"""Named in a message of the feed that nobody reads here."""
MOST_CROPS = 10**6
"""Of a visit that is advised; a disk that needs more feeds nothing."""


@dataclass(frozen=True)
class Residence:
    """The steady state of a window.

    Args:
        window: volumes that crops are drawn from, over all devices.
        volumes: of them, those that one device draws from.
        arrival_seconds: between two volumes that the disk delivers to a device.
        crops_per_visit: drawn from a volume before the next takes its place.
        reuse: those over the crops that fill a volume once.
        stay_seconds: of a volume.
        pass_seconds: until the whole cohort has been in memory.
    """

    window: int
    volumes: int
    arrival_seconds: float
    crops_per_visit: int
    reuse: float
    stay_seconds: float
    pass_seconds: float


@dataclass(frozen=True)
class Reserved:
    """Memory that one device's process takes for volumes.

    Args:
        places: for volumes of the largest size; without a window one for each volume, of its own.
        bytes: of all.
        fits: whether the feed would begin.
    """

    places: int
    bytes: int
    fits: bool


@dataclass(frozen=True)
class Resident:
    """The resident feed of one training.

    Args:
        cohort: what is read.
        data: the config's section.
        batch_size: crops of a step over all devices.
        seed: the run's.
        devices: that share the batch.
        is_on_device: whether volumes lie in the memory of the training device.
    """

    cohort: Cohort
    data: DataConfig
    batch_size: int
    seed: int
    devices: int
    is_on_device: bool

    def visits(self) -> VisitPlan | None:
        """The visits of the run; None where all volumes stay.

        Raises:
            ConfigError: numbers of the window that the feed refuses.
        """
        return sampling(self.data, self.cohort.volumes, self.batch_size, self.seed).visits

    def window(self, count: int, most: int) -> VisitPlan:
        """The visits of another window."""
        return VisitPlan(self.cohort.volumes, count, most, self.batch_size, self.seed)

    def slots(self, visits: VisitPlan) -> int:
        """Slots of the window that one device draws from; its share where devices divide it."""
        first, last = max(self._groups(visits), key=lambda groups: groups[1] - groups[0])
        return (last - first + 1) * (visits.window // visits.groups)

    def need(self, visits: VisitPlan) -> int:
        """Volumes one device has at once: its slots, and visits that begin before others end."""
        steps = 1
        if not self.is_on_device and self.data.workers:
            steps = SLOTS * self.data.workers + 1
        places = self.batch_size // visits.groups
        return max(
            visits.largest_need(steps, range(first * places, (last + 1) * places))
            for first, last in self._groups(visits)
        )

    def _groups(self, visits: VisitPlan) -> set[tuple[int, int]]:
        """First and last group of places of every device; only different ones, for speed."""
        places = self.batch_size // visits.groups
        parts = [share(self.batch_size, rank, self.devices, 1)[0] for rank in range(self.devices)]
        return {(part.start // places, (part.stop - 1) // places) for part in parts}

    def reserve(self, visits: VisitPlan | None, free: float | None) -> Reserved:
        """What the feed takes of so many free bytes; None is unknown."""
        sizes, a_voxel = self.cohort.sizes, self.cohort.bytes_a_voxel
        need = None if visits is None else self.need(visits)
        fits = True
        try:
            room = fitting(sizes, need, a_voxel, None if free is None else int(free), ANY)
        except ResourceError:
            room, fits = Room(sizes, need), False
        places = len(sizes) if need is None else room.size // room.largest
        return Reserved(places, room.size * a_voxel, fits)

    def advised(self, free: float, most: int) -> VisitPlan | None:
        """The largest window that fits and that devices share out, or None where none does.

        A multiple of the batch is one for any number of devices, a multiple of the devices for
        theirs.

        Args:
            free: bytes.
            most: crops of a visit.
        """
        if not 1 <= most <= MOST_CROPS:
            return None
        many = int(free / (max(self.cohort.sizes) * self.cohort.bytes_a_voxel) + 1e-6)
        for unit in (self.batch_size, self.devices):
            count = min(many * self.devices, self.cohort.volumes) // unit * unit
            while count >= unit:
                visits = self.window(count, most)
                need = self.need(visits) + AHEAD
                if need <= many:
                    return visits
                count = min(count - unit, count * many // need // unit * unit)
        return None

    def arrival_seconds(self, disk: float) -> float:
        """Between two volumes that a disk of so many compressed bytes a second delivers."""
        return self.cohort.volume_bytes / self.cohort.compression / disk

    def least_crops(self, visits: VisitPlan | None, crops_a_second: float, disk: float) -> int:
        """Crops of a visit with which no step waits for the disk.

        Args:
            visits: of the window; None is one that devices share out.
            crops_a_second: of all devices together.
            disk: compressed bytes a second, each device's.
        """
        part = 1 / self.devices if visits is None else self.slots(visits) / visits.window
        return max(1, math.ceil(crops_a_second * part * self.arrival_seconds(disk)))

    def residence(self, visits: VisitPlan, crops_a_second: float, disk: float) -> Residence:
        """The steady state of a window; arguments as of `least_crops`."""
        slots = self.slots(visits)
        arrival = self.arrival_seconds(disk)
        interval = max(arrival, visits.most * visits.window / slots / crops_a_second)
        return Residence(
            window=visits.window,
            volumes=slots,
            arrival_seconds=arrival,
            crops_per_visit=visits.most,
            reuse=visits.most / self.cohort.disjoint_crops,
            stay_seconds=slots * interval,
            pass_seconds=self.cohort.volumes * slots / visits.window * interval,
        )

    def feed_seconds(self, visits: VisitPlan | None, disk: float) -> float:
        """Time the disk needs for one device's update; none once all volumes are there."""
        if visits is None:
            return 0.0
        begun = self.batch_size / visits.most * self.slots(visits) / visits.window
        return begun * self.arrival_seconds(disk)


def free_gb(memory: float, standing: float, needed: float, usable: float, *, is_cpu: bool) -> float:
    """GB of a device that volumes may take: what training leaves, and the feed accepts.

    Args:
        memory: of the device.
        standing: weights and what stays beside them; they are there before the volumes.
        needed: by training in all.
        usable: by training and volumes.
        is_cpu: whether the device is a CPU, of which the feed leaves no part alone.
    """
    left = usable - needed
    return max(0.0, left if is_cpu else min(left, (1 - RESERVE) * memory - standing))


def sampling(data: DataConfig, volumes: int, batch_size: int, seed: int) -> SamplingPlan:
    """The sampling plan of a cohort of so many cases, none of which is opened.

    Raises:
        ConfigError: numbers of window or grid that the feed refuses.
    """
    cases = [f"{number:09}" for number in range(volumes)]
    return SamplingPlan(cases, data, seed=seed, batch_size=batch_size, open_case=_never)


def _never(case_id: str) -> OpenCase:
    raise AssertionError(f"a plan opens no case, not even {case_id}")
