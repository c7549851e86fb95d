"""What a plan warns of, and what to change."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from mim3d.workflows.plan.arithmetic import Sharing
from mim3d.workflows.plan.facts import Counts, memory_facts, micro_batch, traced
from mim3d.workflows.plan.machines import Hardware
from mim3d.workflows.plan.subject import Subject


def warnings_of(
    subject: Subject,
    facts: dict[str, Any],
    counts: Counts,
    sharing: Sharing,
    hardware: Hardware,
    *,
    is_cpu: bool,
) -> list[str]:
    """What the user can act on: a step that does not fit, a disk that is too slow.

    Args:
        subject: the training.
        facts: of its plan.
        counts: of its parameters.
        sharing: among devices.
        hardware: one device.
        is_cpu: whether it is this machine's.
    """
    found: list[str] = []
    if not facts["memory"]["fits"]:
        found.append(_remedy(subject, facts, counts, sharing, hardware, is_cpu=is_cpu))
    if facts["time"]["is_bound_by_feed"]:
        needed = facts["feed"]["feed_seconds"] / facts["time"]["compute_seconds"]
        found.append(
            f"the disk delivers {1 / needed:.0%} of what the step needs; `--data.feed resident` "
            "reads each volume once for many crops, `--data.origin_grid 32` fewer chunks a crop"
        )
    stay = facts["feed"]["residence"]
    if subject.is_resident and stay is not None and subject.window_cases is None:
        window, batch = stay["volumes"] * sharing.devices, subject.training.batch_size
        found.append(
            "the cohort does not fit into memory: draw from a window with `--data.window_cases "
            f"{max(window // batch * batch, min(window, batch))} --data.max_crops_per_visit "
            f"{math.ceil(stay['crops_per_visit'])}`; with fewer crops a visit the step waits for "
            "the disk"
        )
    if subject.is_resident and facts["feed"]["resident_gb"] > facts["feed"]["free_gb"]:
        found.append(
            f"resident volumes take {facts['feed']['resident_gb']:.1f} GB of a device, training "
            f"leaves {facts['feed']['free_gb']:.1f}: use fewer `--data.window_cases`, or "
            "`--data.resident_on host`"
        )
    if subject.training.precision == "bf16" and not hardware.has_bf16:
        found.append(f"{hardware.name} has no bf16: use `--training.precision fp32`")
    return found


def _remedy(
    subject: Subject,
    facts: dict[str, Any],
    counts: Counts,
    sharing: Sharing,
    hardware: Hardware,
    *,
    is_cpu: bool,
) -> str:
    """The first of a few changes with which a step fits."""
    needed, usable = facts["memory"]["needed_gb"], facts["memory"]["usable_gb"]
    head = f"a step needs {needed:.1f} GB, {hardware.name} offers {usable:.1f} GB"
    precision, micro = facts["machine"]["precision"], facts["batch"]["micro"]
    changes: list[tuple[str, Subject, Sharing]] = []
    accumulation = subject.training.accumulation
    for factor in (2, 4, 8, 16):
        if micro % factor == 0:
            training = replace(subject.training, accumulation=accumulation * factor)
            word = f"--training.accumulation {training.accumulation}"
            changes.append((word, replace(subject, training=training), sharing))
    changes.append(("--encoder.checkpointing", checkpointed(subject), sharing))
    if sharing.devices > 1 and not sharing.is_sharded:
        split = replace(sharing, is_sharded=True)
        changes.append(("--training.strategy fsdp", subject, split))
        both = "--training.strategy fsdp --encoder.checkpointing"
        changes.append((both, checkpointed(subject), split))
    for word, other, shared in changes:
        trace = traced(other, micro_batch(other, sharing.devices), precision, is_cpu=is_cpu)
        if memory_facts(other, counts, trace, shared, hardware)["fits"]:
            return f"{head}; `{word}` fits"
    return f"{head}; neither accumulation, `--encoder.checkpointing` nor `fsdp` alone is enough"


def checkpointed(subject: Subject) -> Subject:
    """The same training with the encoder's blocks computed again in the backward pass."""
    encoder = replace(subject.encoder, checkpointing=True)
    return replace(subject, encoder=encoder, build=subject.build.with_encoder(encoder))
