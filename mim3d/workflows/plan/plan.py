"""`mim3d plan`: what a training will need in time, memory and data, told before it begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch

from mim3d.foundation.atomic import write_json
from mim3d.foundation.reporting import PlainReporter, Reporter
from mim3d.foundation.versions import versions
from mim3d.training.fabric import choose_precision, threads
from mim3d.workflows.plan.advice import warnings_of
from mim3d.workflows.plan.arithmetic import Sharing, checkpoint_bytes
from mim3d.workflows.plan.facts import (
    Counts,
    count_parameters,
    feed_facts,
    memory_facts,
    micro_batch,
    reckoned_seconds,
    time_facts,
    traced,
)
from mim3d.workflows.plan.machines import Hardware, known_gpu, this_machine
from mim3d.workflows.plan.measure import Measured, measure_step
from mim3d.workflows.plan.subject import AnyPlanConfig, Subject, subject_of
from mim3d.workflows.plan.table import as_text
from mim3d.workflows.plan.trace import Trace, without_content
from mim3d.workflows.result import Result

MEASURED_SECONDS = 6.0
"""A real step is taken on as many crops as are expected to last this long, one at least."""
HOURS = 3600


def plan(
    config: AnyPlanConfig,
    *,
    out: str | None = None,
    reporter: Reporter | None = None,
    assumed: Sequence[str] = (),
) -> Result:
    """Reckons one training.

    Args:
        config: the training's config with a `plan` section.
        out: file for the JSON; none writes nothing.
        reporter: where progress goes.
        assumed: what was assumed to come to this config.

    Returns:
        A table as text and the same as facts.

    Raises:
        ConfigError: the batch does not divide.
        UserError: store or run are not there.
    """
    reporter = reporter or PlainReporter()
    with threads(config.training.threads):
        facts = _facts(config, reporter)
    facts["assumptions"] = [*assumed, *facts["assumptions"]]
    files: tuple[Path, ...] = ()
    if out is not None:
        write_json(Path(out), facts)
        files = (Path(out),)
    return Result(text=as_text(facts), facts=facts, files=files)


def _facts(config: AnyPlanConfig, reporter: Reporter) -> dict[str, Any]:
    subject, said = subject_of(config), config.plan
    sharing = Sharing(said.devices, said.devices_per_node, config.training.strategy == "fsdp")
    gpu = said.gpu.lower()
    is_cpu = gpu == "cpu"
    if is_cpu:
        reporter.say("measuring this machine for a few seconds")
    hardware = this_machine() if is_cpu else known_gpu(gpu)
    if is_cpu:
        # Processes of one machine share its memory.
        here = min(said.devices, said.devices_per_node)
        hardware = replace(hardware, memory=hardware.memory / here)
    precision = _precision(subject, hardware, is_cpu)
    crops = micro_batch(subject, said.devices)
    counts = count_parameters(without_content(subject.build))
    trace = traced(subject, crops, precision, is_cpu=is_cpu)

    memory = memory_facts(subject, counts, trace, sharing, hardware)
    measured = None
    if is_cpu and said.measure and memory["needed_gb"] < 0.8 * memory["usable_gb"]:
        measured = _measured(subject, trace, hardware, precision, counts)
    time = time_facts(subject, counts, trace, sharing, hardware, precision, measured)
    feed = feed_facts(
        subject, sharing, hardware, memory, time,
        disk_mb_s=said.disk_mb_s, resident_gb=said.resident_gb, is_cpu=is_cpu,
    )  # fmt: skip
    time |= _total(subject, time, feed, said.epochs)
    facts = {
        "verb": subject.verb,
        "machine": {**asdict(hardware), "devices": said.devices, "precision": precision,
                    "strategy": _strategy(sharing)},
        "parameters": asdict(counts) | {"decoder": counts.total - counts.encoder},
        "tokens": subject.tokens,
        "batch": {"global": subject.training.batch_size, "micro": crops,
                  "accumulation": subject.training.accumulation},
        "flop": {"gflop_per_crop": trace.model_flop / crops / 1e9,
                 "tflop_per_step": trace.model_flop / crops * subject.training.batch_size / 1e12},
        "memory": memory,
        "time": time,
        "feed": feed,
        "checkpoint_mb": checkpoint_bytes(
            counts.total, counts.trained, has_mean=subject.optim.ema > 0) / 1e6,
        "assumptions": list(subject.assumptions),
        "versions": versions(),
    }  # fmt: skip
    facts["warnings"] = warnings_of(subject, facts, counts, sharing, hardware, is_cpu=is_cpu)
    return facts


def _strategy(sharing: Sharing) -> str:
    if sharing.devices == 1:
        return "one device"
    return "fsdp" if sharing.is_sharded else "ddp"


def _precision(subject: Subject, hardware: Hardware, is_cpu: bool) -> Literal["fp32", "bf16"]:
    asked = subject.training.precision
    if is_cpu:
        return choose_precision(asked, torch.device("cpu"))
    if asked == "auto":
        return "bf16" if hardware.has_bf16 else "fp32"
    return asked


def _measured(
    subject: Subject, trace: Trace, hardware: Hardware, precision: Any, counts: Counts
) -> tuple[Measured, float]:
    """A real step, and what was reckoned for as many crops."""
    whole = reckoned_seconds(subject, trace, hardware, precision, counts, passes=1)
    crops = max(1, min(trace.crops, int(trace.crops * MEASURED_SECONDS / whole)))
    same = trace
    if crops != trace.crops or trace.kinds > 1:
        # Of steps of several kinds the first tells how far reality is from what was reckoned.
        subject = replace(subject, build=subject.build.kinds[0])
        same = traced(subject, crops, precision, is_cpu=True)
    expected = reckoned_seconds(subject, same, hardware, precision, counts, passes=1)
    return measure_step(subject, crops, precision), expected


def _total(
    subject: Subject, time: dict[str, Any], feed: dict[str, Any], epochs: float | None
) -> dict[str, Any]:
    """The step with its feed, and the whole run."""
    seconds = max(time["compute_seconds"], feed["feed_seconds"]) + time["exposed_seconds"]
    cohort, batch = subject.cohort, subject.training.batch_size
    epoch = cohort.volumes * cohort.disjoint_crops / batch
    steps = subject.training.steps if epochs is None else math.ceil(epochs * epoch)
    return {
        "step_seconds": seconds,
        "is_bound_by_feed": feed["feed_seconds"] > time["compute_seconds"],
        "steps": steps,
        "epochs": steps / epoch,
        "hours": steps * seconds / HOURS,
        "crops_per_second": batch / seconds,
    }
