"""What devices can do: known GPUs as data, and this machine by measurement."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from mim3d.config.tree import similar
from mim3d.foundation.errors import ConfigError
from mim3d.workflows.throughput.ceilings import STEP_SHAPES, memory_rates, product_rate

SECONDS = 0.3
"""Spent on each measurement of this machine."""
COPIED_BYTES = 2**27
"""Of the buffers that are copied: several times the largest cache."""


@dataclass(frozen=True)
class Hardware:
    """One device, in FLOP, bytes and seconds.

    Args:
        name: for the table.
        source: `measured` or `datasheet`.
        bf16: peak of matrix products with operands in bf16, FLOP a second; None without.
        fp32: the same in fp32 as torch multiplies by default (no TF32).
        bandwidth: of its memory, bytes a second, read plus written.
        memory: bytes.
        product: share of the peak that matrix products of a step reach.
        attention: likewise fused attention.
        convolution: likewise convolutions in three dimensions.
        launch_seconds: host time of a kernel.
        node_link: bytes a second between devices of one node, each.
        network_link: bytes a second between nodes, each device's share.
        allocator: bytes held over bytes that live during a step.
    """

    name: str
    source: str
    bf16: float | None
    fp32: float
    bandwidth: float
    memory: float
    product: float = 0.8
    attention: float = 0.5
    convolution: float = 0.4
    launch_seconds: float = 5e-6
    node_link: float = 300e9
    network_link: float = 50e9
    allocator: float = 1.0

    @property
    def has_bf16(self) -> bool:
        """Whether it multiplies bf16 in hardware."""
        return self.bf16 is not None

    def peak(self, precision: str) -> float:
        """FLOP a second of matrix products."""
        return self.bf16 if precision == "bf16" and self.bf16 is not None else self.fp32


# The shares are predictions: 0.8 for products and 5 us a launch are what eager bf16 is expected to
# reach on an H200. Its peak and bandwidth are measured (random 8192 cubed product, copy of 8 GB);
# the others' are their makers' (dense, without sparsity), scaled by what the H200 reaches of its
# own: 0.80 of the datasheet's 989 TFLOP/s and 0.90 of its 4.8 TB/s.
_REACHED, _REACHED_BANDWIDTH = 0.80, 0.90


def _datasheet(
    name: str, bf16: float | None, fp32: float, bandwidth: float, memory: float, **links: float
) -> Hardware:
    return Hardware(
        name,
        "datasheet",
        None if bf16 is None else bf16 * _REACHED * 1e12,
        fp32 * _REACHED * 1e12,
        bandwidth * _REACHED_BANDWIDTH * 1e12,
        memory * 1e9,
        **links,
    )


GPUS: dict[str, Hardware] = {
    "h200": Hardware("H200", "measured", 790e12, 50e12, 4.3e12, 141e9),
    "h100": _datasheet("H100 SXM", 989, 67, 3.35, 80),
    "a100": _datasheet("A100 80 GB", 312, 19.5, 2.04, 80, node_link=240e9, network_link=25e9),
    "l40s": _datasheet("L40S", 362, 91.6, 0.864, 48, node_link=25e9, network_link=12e9),
    "rtx4090": _datasheet("RTX 4090", 165, 82.6, 1.01, 24, node_link=20e9, network_link=1e9),
    "v100": _datasheet("V100 32 GB", None, 15.7, 0.9, 32, node_link=120e9, network_link=12e9),
}
"""By the config's word."""


def known_gpu(word: str) -> Hardware:
    """One of the known GPUs, by its word in any case.

    Raises:
        ConfigError: none of that name.
    """
    if word.lower() in GPUS:
        return GPUS[word.lower()]
    meant = similar(word.lower(), GPUS)
    raise ConfigError(
        f"`plan.gpu` is `{word}`, expected `cpu` or one of {', '.join(f'`{g}`' for g in GPUS)}",
        remedy=f"did you mean `--gpu {meant}`?" if meant else "take the one that is most like it",
        code="gpu",
    )


def memory_bytes(system: Path = Path("/")) -> float:
    """Memory that this process may take: the machine's, or less where a control group says so.

    Args:
        system: root of the file system.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder, name in _control_groups(system):
        # A group is held to the limits of those around it. In a container its path may not be seen.
        for place in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):  # absent, or `max`
                limits.append(int((place / name).read_text(encoding="ascii")))
    return float(min(limits))


def _control_groups(system: Path) -> list[tuple[Path, str]]:
    """Folders of this process's control groups for memory, versions 1 and 2, and their limits."""
    base, found = system / "sys/fs/cgroup", []
    try:
        lines = (system / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in ("0::/", "0:memory:/", *lines):
        _, kinds, path = line.split(":", 2)
        if not kinds:
            found.append((base / path.lstrip("/"), "memory.max"))
        elif "memory" in kinds.split(","):
            found.append((base / "memory" / path.lstrip("/"), "memory.limit_in_bytes"))
    return found


def this_machine() -> Hardware:
    """The CPU, by matrix products of a step's shapes and a copy; takes seconds.

    Between processes the memory is the link: gloo copies.
    """
    device = torch.device("cpu")

    def best(dtype: torch.dtype) -> float:
        return max(product_rate(shape, dtype, device, SECONDS) for shape in STEP_SHAPES)

    copy, _, _ = memory_rates(device, COPIED_BYTES, SECONDS)
    threads = torch.get_num_threads()
    # Its clock adds up the time of all threads.
    return Hardware(
        name=f"this CPU, {threads} thread{'s' if threads > 1 else ''}",
        source="measured now",
        bf16=threads * best(torch.bfloat16),
        fp32=threads * best(torch.float32),
        bandwidth=threads * copy,
        memory=memory_bytes(),
        product=0.9,
        attention=0.6,
        convolution=0.5,
        launch_seconds=0.0,
        node_link=copy / 4,
        network_link=1e9,
        allocator=1.1,  # plan_check.py: at 1, planned / measured is 0.8 to 0.95
    )
