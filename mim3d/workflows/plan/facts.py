"""The parts of a plan: parameters, memory, time and feed of one training, as plain numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from mim3d.foundation.errors import ConfigError
from mim3d.objectives.base import Task
from mim3d.training.optim import trainable
from mim3d.training.sharding import encoder_blocks
from mim3d.workflows.plan import arithmetic as reckon
from mim3d.workflows.plan.arithmetic import Sharing
from mim3d.workflows.plan.machines import Hardware
from mim3d.workflows.plan.measure import Measured
from mim3d.workflows.plan.resident import Resident, free_gb
from mim3d.workflows.plan.subject import Subject
from mim3d.workflows.plan.trace import Trace, averaged, trace_step

USABLE = 0.92
"""Of a device's memory: its context, the libraries' workspaces and fragments take the rest."""


@dataclass(frozen=True)
class Counts:
    """Parameters of a task: numel of the real modules.

    Args:
        total: all of them.
        trained: that learn.
        encoder: of the encoder.
        gathered: that FSDP has whole on a device at a time: all that is no block of the encoder,
            and two of those (one computes, the next is fetched).
    """

    total: int
    trained: int
    encoder: int
    gathered: int


def micro_batch(subject: Subject, devices: int) -> int:
    """Crops that pass a device at once.

    Raises:
        ConfigError: the batch does not divide.
    """
    parts = devices * subject.training.accumulation
    size = subject.training.batch_size
    if size % parts:
        raise ConfigError(
            f"`training.batch_size` {size} does not divide into {counted(devices, 'device')} x "
            f"{counted(subject.training.accumulation, 'accumulation step')}",
            remedy=f"use a multiple of {parts} for `--training.batch_size`",
            code="batch-size",
        )
    return size // parts


def counted(number: int, thing: str) -> str:
    """`1 device`, `64 devices`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def count_parameters(task: Task) -> Counts:
    """Of a task, with or without content."""

    def size(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    total, blocks = size(task), [size(block) for block in encoder_blocks(task)]
    encoder: Any = task.encoder
    return Counts(
        total=total,
        trained=sum(parameter.numel() for parameter in trainable(task).values()),
        encoder=size(encoder),
        gathered=total - sum(blocks) + sum(sorted(blocks)[-2:]),
    )


def traced(subject: Subject, crops: int, precision: Any, *, is_cpu: bool) -> Trace:
    """The step of a micro-batch without numbers, on average where steps are of several kinds."""
    each = [
        trace_step(
            build,
            crops=crops,
            channels=subject.channels,
            crop_size=subject.crop_size,
            precision=precision,
            on_gpu=not is_cpu,
        )
        for build in subject.build.kinds
    ]
    return averaged(each)


def memory_facts(
    subject: Subject, counts: Counts, trace: Trace, sharing: Sharing, hardware: Hardware
) -> dict[str, Any]:
    """What one device holds at the step's worst moment, in GB."""
    standing = reckon.standing_bytes(
        counts.total, counts.trained, counts.gathered, sharing, has_mean=subject.optim.ema > 0
    )
    step = float(trace.peak_bytes)
    if sharing.is_sharded and sharing.devices > 1:
        # Whole gradients live for a block at a time.
        step -= 4 * (1 - 1 / sharing.devices) * max(0, counts.trained - counts.gathered)
    if subject.training.accumulation > 1:
        # Gradients of the earlier micro-batches wait through the whole pass.
        step = max(step, trace.saved_bytes + 4.0 * counts.trained / _parts(sharing))
    step *= hardware.allocator
    needed = standing + step
    return {
        "standing_gb": standing / 1e9,
        "step_gb": step / 1e9,
        "saved_per_crop_mb": trace.saved_bytes / trace.crops / 1e6,
        "needed_gb": needed / 1e9,
        "usable_gb": USABLE * hardware.memory / 1e9,
        "fits": needed <= USABLE * hardware.memory,
    }


def _parts(sharing: Sharing) -> int:
    return sharing.devices if sharing.is_sharded else 1


def reckoned_seconds(
    subject: Subject, trace: Trace, hardware: Hardware, precision: str, counts: Counts, passes: int
) -> float:
    """What the arithmetic says of an update of so many micro-batches."""
    return reckon.step_seconds(
        trace.ops,
        hardware,
        precision,
        passes=passes / trace.kinds,
        parameters=counts.trained,
        is_compiled=subject.training.compile,
    )


def time_facts(
    subject: Subject,
    counts: Counts,
    trace: Trace,
    sharing: Sharing,
    hardware: Hardware,
    precision: str,
    measured: tuple[Measured, float] | None,
) -> dict[str, Any]:
    """Seconds of an update, without waiting for data."""
    passes = subject.training.accumulation
    seconds = reckoned_seconds(subject, trace, hardware, precision, counts, passes)
    correction = 1.0 if measured is None else measured[0].seconds / measured[1]
    computing = seconds * correction
    exposed = reckon.exposed_seconds(counts.trained, sharing, hardware, computing / passes)
    flop = trace.model_flop * passes
    return {
        "compute_seconds": computing,
        "exposed_seconds": exposed,
        "crops_per_second": subject.training.batch_size / (computing + exposed),
        "mfu": flop / computing / hardware.peak(precision),
        "measured": None if measured is None else asdict(measured[0]),
        "correction": correction,
    }


def feed_facts(
    subject: Subject,
    sharing: Sharing,
    hardware: Hardware,
    memory: dict[str, Any],
    time: dict[str, Any],
    *,
    disk_mb_s: float,
    resident_gb: float | None,
    is_cpu: bool,
) -> dict[str, Any]:
    """What the step needs of disk and memory, and whether it waits for them."""
    cohort, disk = subject.cohort, disk_mb_s * 1e6
    rate = time["crops_per_second"] / sharing.devices
    facts = {
        "kind": subject.data.feed,
        "volumes": cohort.volumes,
        "volume_shape": list(cohort.volume_shape),
        "cohort_gb": cohort.cohort_bytes / 1e9,
        "store_gb": cohort.cohort_bytes / cohort.compression / 1e9,
        "crops_per_second_per_device": rate,
        "crop_gb_s": rate * cohort.crop_bytes / 1e9,
        "store_read_gb_s": rate * cohort.read_bytes / cohort.compression / 1e9,
        "disk_gb_s": disk / 1e9,
        "resident": None,
    }
    if subject.data.feed == "store":
        crops = subject.training.batch_size // sharing.devices
        return facts | {"feed_seconds": reckon.read_seconds(cohort, crops, disk)}
    kept = subject.data.resident_on
    is_on_device = kept == "device" or (kept == "auto" and not is_cpu)
    room = resident_gb
    if is_on_device or is_cpu:  # the memory of a machine around GPUs is not known
        free = free_gb(
            hardware.memory / 1e9, memory["standing_gb"], memory["needed_gb"],
            memory["usable_gb"], is_cpu=is_cpu,
        )  # fmt: skip
        room = free if resident_gb is None else min(free, resident_gb)
    feed = Resident(
        cohort, subject.data, subject.training.batch_size, subject.training.seed, sharing.devices,
        is_on_device,
    )  # fmt: skip
    computed = subject.training.batch_size / time["compute_seconds"]
    facts["resident"] = _resident_facts(feed, room, computed, disk)
    return facts | {"feed_seconds": feed.feed_seconds(feed.visits(), disk)}


def _resident_facts(
    feed: Resident, room_gb: float | None, rate: float, disk: float
) -> dict[str, Any]:
    """What the feed takes of the memory, and its steady state in a window, or the advised one."""
    visits = feed.visits()
    room = None if room_gb is None else room_gb * 1e9
    reserved = feed.reserve(visits, room)
    advised = None
    least = feed.least_crops(visits, rate, disk)
    if room is not None and not reserved.fits:
        advised = feed.advised(room, least if visits is None else visits.most)
    shown = advised or visits
    return {
        "is_on_device": feed.is_on_device,
        "reserved_gb": reserved.bytes / 1e9,
        "places": reserved.places,
        "free_gb": room_gb,
        "fits": reserved.fits,
        "window_cases": None if visits is None else visits.window,
        "is_shared_out": visits is None or feed.slots(visits) * feed.devices == visits.window,
        "least_crops_per_visit": least,
        "advised_window": None if advised is None else advised.window,
        "advised_crops_per_visit": None if advised is None else advised.most,
        "residence": None if shown is None else asdict(feed.residence(shown, rate, disk)),
    }
