"""What a plan warns of, and what to change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mim3d.workflows.plan.arithmetic import Sharing
from mim3d.workflows.plan.facts import Counts, counted, memory_facts, micro_batch, traced
from mim3d.workflows.plan.machines import Hardware
from mim3d.workflows.plan.subject import Subject
from mim3d.workflows.throughput.table import digits


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
        found.append(_slow_disk(facts))
    if facts["feed"]["resident"] is not None:
        found += _residence(subject, facts["feed"]["resident"], sharing)
    if subject.training.precision == "bf16" and not hardware.has_bf16:
        found.append(f"{hardware.name} has no bf16: use `--training.precision fp32`")
    return found


def _slow_disk(facts: dict[str, Any]) -> str:
    share = facts["time"]["compute_seconds"] / facts["feed"]["feed_seconds"]
    head = f"the disk delivers {share:.0%} of what the step needs"
    resident = facts["feed"]["resident"]
    if resident is not None:
        return f"{head}; `--data.max_crops_per_visit {resident['least_crops_per_visit']}` suffices"
    return (
        f"{head}; `--data.feed resident` reads each volume once for many crops, "
        "`--data.origin_grid 32` fewer chunks a crop"
    )


def _residence(subject: Subject, resident: dict[str, Any], sharing: Sharing) -> list[str]:
    """What the feed would refuse, and a window that devices do not share out."""
    found: list[str] = []
    owner = "device" if resident["is_on_device"] else "process"
    window, volumes = resident["window_cases"], subject.cohort.volumes
    if not resident["fits"]:
        held = f"without `--data.window_cases` each {owner} keeps the whole cohort: it"
        if window is not None:
            held = (
                f"`--data.window_cases {window}` takes {counted(resident['places'], 'place')} for "
                f"the largest volume of each {owner}: it"
            )
        needs, has = digits(resident["reserved_gb"]), digits(resident["free_gb"])
        found.append(
            f"{held} needs {needs} GB and has {has}, so the feed refuses to begin; "
            f"{_window(resident, sharing)}"
        )
    elif not resident["is_shared_out"] and sharing.devices <= volumes:
        shared = max(window // sharing.devices, 1) * sharing.devices
        found.append(
            f"`--data.window_cases {window}` is no multiple of {sharing.devices} devices, which "
            f"do not share it out: each reads {resident['residence']['volumes']:,} of its volumes; "
            f"take `--data.window_cases {shared}`"
        )
    return found


def _window(resident: dict[str, Any], sharing: Sharing) -> str:
    count, most = resident["advised_window"], resident["advised_crops_per_visit"]
    if count is None:
        return "no window fits either: `--data.feed store` reads each crop from disk"
    shared = ", which devices share out," if sharing.devices > 1 else ""
    return (
        f"draw from a window{shared} with `--data.window_cases {count} "
        f"--data.max_crops_per_visit {most}`; with fewer crops a visit the step "
        f"{'waits' if most <= resident['least_crops_per_visit'] else 'may wait'} for the disk"
    )


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
