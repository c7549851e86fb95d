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
from mim3d.workflows.plan.subject import Subject
from mim3d.workflows.plan.trace import Trace, trace_step

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
            f"`training.batch_size` {size} does not divide into {devices} devices x "
            f"{subject.training.accumulation} accumulation steps",
            remedy=f"use a multiple of {parts} for `--training.batch_size`",
            code="batch-size",
        )
    return size // parts


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
    """The step of a micro-batch without numbers."""
    return trace_step(
        subject.build,
        crops=crops,
        channels=subject.channels,
        crop_size=subject.crop_size,
        precision=precision,
        on_gpu=not is_cpu,
    )


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
        step -= 4 * (1 - 1 / sharing.devices) * (counts.trained - counts.gathered)
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
        passes=passes,
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
    disk_mb_s: float,
    resident_gb: float | None,
) -> dict[str, Any]:
    """What the step needs of disk and memory, and whether it waits for them."""
    cohort, disk = subject.cohort, disk_mb_s * 1e6
    rate = time["crops_per_second"] / sharing.devices
    free = max(0.0, memory["usable_gb"] - memory["needed_gb"])
    room = free if resident_gb is None else resident_gb
    if subject.window_cases is not None:
        room = subject.window_cases / sharing.devices * cohort.volume_bytes / 1e9
    stay = reckon.residence(cohort, sharing, rate, room * 1e9, disk)
    share = cohort.volumes / sharing.devices
    fits = room * 1e9 >= share * cohort.volume_bytes
    waiting = reckon.feed_seconds(
        cohort,
        subject.training.batch_size // sharing.devices,
        disk,
        is_resident=subject.is_resident,
        fits=fits,
        crops_per_visit=subject.crops_per_visit,
    )
    return {
        "kind": "resident" if subject.is_resident else "store",
        "volumes": cohort.volumes,
        "volume_shape": list(cohort.volume_shape),
        "cohort_gb": cohort.volumes * cohort.volume_bytes / 1e9,
        "store_gb": cohort.volumes * cohort.volume_bytes / cohort.compression / 1e9,
        "crops_per_second_per_device": rate,
        "crop_gb_s": rate * cohort.crop_bytes / 1e9,
        "store_read_gb_s": rate * cohort.read_bytes / cohort.compression / 1e9,
        "disk_gb_s": disk / 1e9,
        "resident_gb": min(room, share * cohort.volume_bytes / 1e9),
        "resident_holds_share": fits,
        "free_gb": free,
        "window_cases": subject.window_cases,
        "residence": None if stay is None else asdict(stay),
        "max_crops_per_visit": subject.crops_per_visit,
        "feed_seconds": waiting,
    }
