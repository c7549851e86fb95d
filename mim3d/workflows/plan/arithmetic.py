"""The arithmetic of a plan: from counted work and known rates to seconds, bytes and hours.

Nothing here knows a network. All rates are a second, all sizes bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice

from mim3d.config.data import Triple
from mim3d.workflows.plan.machines import Hardware
from mim3d.workflows.plan.trace import Op

COMPILED_BYTES = 0.5
"""What `torch.compile` leaves of the bytes that elementwise ops move: it fuses them."""
STORE_CHUNK = 32
"""Voxels along each side of the box that a store compresses by itself."""
VOXEL_BYTES = 2
"""A store keeps int16."""
ADAM_BYTES = 28
"""Moved a parameter by the fused update: weight, gradient and two moments read, three written."""
BACKWARD_SHARE = 2 / 3
"""Of a step; behind it gradients are sent."""


@dataclass(frozen=True)
class Sharing:
    """How processes share a run.

    Args:
        devices: number of them.
        per_node: that share a machine.
        is_sharded: FSDP2, else DDP.
    """

    devices: int = 1
    per_node: int = 8
    is_sharded: bool = False


@dataclass(frozen=True)
class Cohort:
    """What is read.

    Args:
        volumes: number.
        volume_shape: voxels.
        channels: of a volume.
        crop_size: voxels of a crop.
        origin_grid: voxels between places where crops may begin; None is free.
        compression: of the store.
        has_labels: whether label maps are read too.
        known_sizes: voxels of each volume of a store; without any all have `volume_shape`. Where
            there are more volumes than sizes, these come again.
    """

    volumes: int
    volume_shape: Triple
    channels: int
    crop_size: Triple
    origin_grid: Triple | None
    compression: float
    has_labels: bool = False
    known_sizes: tuple[int, ...] = ()

    @cached_property
    def sizes(self) -> list[int]:
        """Voxels of every volume, in one channel."""
        known = self.known_sizes or (math.prod(self.volume_shape),)
        return list(islice(cycle(known), self.volumes))

    @property
    def bytes_a_voxel(self) -> int:
        """In memory, over channels and labels."""
        return VOXEL_BYTES * self.channels + self.has_labels

    @property
    def cohort_bytes(self) -> int:
        """Of all decoded volumes, without labels."""
        return sum(self.sizes) * self.channels * VOXEL_BYTES

    @property
    def volume_bytes(self) -> float:
        """Of a decoded volume on average, without labels, which compress to almost nothing."""
        return self.cohort_bytes / self.volumes

    @property
    def crop_bytes(self) -> int:
        """Of a decoded crop."""
        return math.prod(self.crop_size) * self.channels * VOXEL_BYTES

    @property
    def disjoint_crops(self) -> float:
        """Crops that fill a volume once."""
        return max(1.0, math.prod(self.volume_shape) / math.prod(self.crop_size))

    @property
    def read_bytes(self) -> float:
        """Decoded bytes of the chunks that one crop touches, on average over its places."""
        boxes = 1.0
        grids = self.origin_grid or (1, 1, 1)
        for size, step in zip(self.crop_size, grids, strict=True):
            starts = range(0, STORE_CHUNK * step, step)
            touched = [(s % STORE_CHUNK + size - 1) // STORE_CHUNK + 1 for s in starts]
            boxes *= sum(touched) / len(touched)
        return boxes * STORE_CHUNK**3 * self.channels * VOXEL_BYTES


def step_seconds(
    ops: Sequence[Op],
    hardware: Hardware,
    precision: str,
    *,
    passes: float,
    parameters: int,
    is_compiled: bool,
) -> float:
    """Time of one update on one device, without waiting for data or other devices.

    Each op takes the longer of its arithmetic and its memory traffic (roofline); a GPU whose
    kernels are shorter than their launches waits for the host.

    Args:
        ops: of one micro-batch.
        hardware: one device.
        precision: of the products.
        passes: times that these ops are done in an update; one over the number of kinds where they
            are of micro-batches of several kinds, of which an update does one.
        parameters: that AdamW updates.
        is_compiled: whether elementwise ops are fused.
    """
    peak = hardware.peak(precision)
    shares = {"product": hardware.product, "attention": hardware.attention,
              "convolution": hardware.convolution}  # fmt: skip
    fused = COMPILED_BYTES if is_compiled else 1.0
    working = 0.0
    for op in ops:
        moving = op.bytes / hardware.bandwidth * (fused if op.kind == "other" else 1.0)
        working += max(moving, op.flop / (peak * shares[op.kind])) if op.flop else moving
    launching = len(ops) * hardware.launch_seconds * fused
    updating = parameters * ADAM_BYTES / hardware.bandwidth
    return passes * max(working, launching) + updating


def exchanged_bytes(parameters: int, sharing: Sharing) -> float:
    """Bytes each device sends in an update: gradients all-reduced, or weights gathered twice too.

    DDP: a ring moves `2 (g - 1) / g` of the fp32 gradients. FSDP: `(g - 1) / g` for each of two
    gathers of the weights and one scatter of the gradients.
    """
    g = sharing.devices
    return (3 if sharing.is_sharded else 2) * (g - 1) / g * 4 * parameters


def exposed_seconds(
    parameters: int, sharing: Sharing, hardware: Hardware, last_pass_seconds: float
) -> float:
    """Time an update waits for other devices: what its last backward pass does not hide.

    Args:
        parameters: of the model.
        sharing: among devices.
        hardware: one device and its links.
        last_pass_seconds: of the last micro-batch, whose backward pass gradients travel behind.
    """
    if sharing.devices == 1:
        return 0.0
    is_near = sharing.devices <= sharing.per_node
    link = hardware.node_link if is_near else hardware.network_link
    sending = exchanged_bytes(parameters, sharing) / link
    return max(0.0, sending - BACKWARD_SHARE * last_pass_seconds)


def standing_bytes(
    parameters: int, trained: int, largest_block: int, sharing: Sharing, *, has_mean: bool
) -> float:
    """Weights, AdamW's moments and the running mean, all fp32, of one device.

    Gradients come and go with a step and stand in its trace.

    Args:
        parameters: of the model.
        trained: of them, those that learn.
        largest_block: parameters that FSDP gathers at once, and what it keeps whole.
        sharing: among devices.
        has_mean: whether `optim.ema` is on.
    """
    total = 4.0 * parameters + 8.0 * trained + (4.0 * trained if has_mean else 0.0)
    if not sharing.is_sharded or sharing.devices == 1:
        return total
    return total / sharing.devices + 4.0 * largest_block


def checkpoint_bytes(parameters: int, trained: int, *, has_mean: bool) -> int:
    """Of one checkpoint: what prediction uses, and the state with weights, moments and mean."""
    return 4 * (2 * parameters + 2 * trained + (trained if has_mean else 0))


def read_seconds(cohort: Cohort, crops: int, disk: float) -> float:
    """Time the disk needs for the crops of one device's update, each read from the store.

    Args:
        cohort: what is read.
        crops: of the device.
        disk: compressed bytes a second.
    """
    return crops * cohort.read_bytes / cohort.compression / disk
