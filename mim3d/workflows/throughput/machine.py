"""What times depend on besides versions: processor, threads, allocator, GPU."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch


def machine(device: torch.device) -> dict[str, Any]:
    """The facts that stand beside every result."""
    facts: dict[str, Any] = {
        "device": device.type,
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "allocator": allocator(),
        "clock": "CUDA events" if device.type == "cuda" else "CPU time of the process",
    }
    if hasattr(os, "sched_getaffinity"):
        facts["cores_allowed"] = len(os.sched_getaffinity(0))
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
    return facts


def processor_name() -> str:
    """The processor's name as its maker calls it."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def processor() -> str:
    """Name, family and model, and whether it multiplies bf16 in hardware."""
    found = _cpuinfo()
    if not found:
        return processor_name()
    family = f"family {found.get('cpu family')}, model {found.get('model')}"
    flags = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in found.get("flags", "").split()]
    return ", ".join([processor_name(), family, *flags])


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the last core; empty on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    return dict(re.findall(r"^(.+?)\s*: (.*)$", text, re.MULTILINE))


def allocator() -> str:
    """The setting that moves times on a CPU most; it counts only before torch is loaded."""
    on = os.environ.get("THP_MEM_ALLOC_ENABLE") == "1"
    return "THP_MEM_ALLOC_ENABLE=1" if on else "system"
