"""What a training will hold in memory, said before its first step, and what is said if it lacks.

The figure is the planner's: the real task's step on tensors without content, beside weights,
optimiser and running mean. A training on the CPU that cannot fit is refused before it begins, for
where memory runs out later the system may end the process without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from mim3d.config.plan import FinetunePlanConfig, PretrainPlanConfig
from mim3d.config.verbs import FinetuneConfig, PretrainConfig
from mim3d.foundation.errors import ResourceError
from mim3d.foundation.machine import available_bytes
from mim3d.foundation.memory import gigabytes, lack_told
from mim3d.foundation.reporting import Reporter
from mim3d.training.fabric import choose_device, choose_precision, processes
from mim3d.workflows.plan.arithmetic import Sharing, checkpoint_bytes
from mim3d.workflows.plan.facts import count_parameters, memory_facts, micro_batch, traced
from mim3d.workflows.plan.machines import Hardware, memory_bytes
from mim3d.workflows.plan.subject import Subject, subject_of
from mim3d.workflows.plan.trace import Trace, without_content

CPU_ALLOCATOR = 1.1
"""As in the planner: bytes held over bytes that live during a step."""
SLACK = 0.9
"""A training is refused where less than this part of what it needs is free: the figure is right
within about a tenth."""
REMEDY = (
    "pass fewer crops at a time with `--training.accumulation 2` (4, 8 ...), or take "
    "`--encoder.checkpointing`, a smaller `--training.batch_size` or `--data.crop_size`"
)


@dataclass(frozen=True)
class TrainingNeed:
    """Memory of one process of a training, in bytes.

    Args:
        standing: weights, moments, running mean.
        step: at the worst moment of a step, crops included.
        checkpoint: of its copy while it is written.
        free: that the process may still take; None where that is not known.
        device: `cpu` or `cuda`.
    """

    standing: float
    step: float
    checkpoint: float
    free: float | None
    device: str

    @property
    def total(self) -> float:
        """At most, beside the program itself."""
        return self.standing + max(self.step, self.checkpoint)

    def __str__(self) -> str:
        where = "the GPU" if self.device == "cuda" else "memory"
        free = "" if self.free is None else f" of {gigabytes(self.free)} free"
        return (
            f"about {gigabytes(self.total)} of {where} are needed{free}: weights and optimiser "
            f"{gigabytes(self.standing)}, step {gigabytes(self.step)}"
        )


def training_need(config: PretrainConfig | FinetuneConfig) -> TrainingNeed:
    """Reckons one process of a training.

    Raises:
        ConfigError: the batch does not divide among processes and accumulation steps.
    """
    plan = PretrainPlanConfig if isinstance(config, PretrainConfig) else FinetunePlanConfig
    subject = subject_of(plan(**vars(config)))
    device = choose_device(config.training.device)
    is_cpu = device.type == "cpu"
    precision = choose_precision(config.training.precision, device)
    found = processes()
    sharing = Sharing(found.world, found.local_world, config.training.strategy == "fsdp")
    counts = count_parameters(without_content(subject.build))
    trace = _trace(config, subject, micro_batch(subject, found.world), precision, is_cpu=is_cpu)
    machine = Hardware(
        device.type, "limits", None, 1.0, 1.0, memory_bytes(),
        allocator=CPU_ALLOCATOR if is_cpu else 1.0,
    )  # fmt: skip
    facts = memory_facts(subject, counts, trace, sharing, machine)
    free = available_bytes() if is_cpu else torch.cuda.mem_get_info(device)[0]
    written = checkpoint_bytes(counts.total, counts.trained, has_mean=subject.optim.ema > 0)
    return TrainingNeed(
        1e9 * facts["standing_gb"], 1e9 * facts["step_gb"], written if is_cpu else 0.0, free,
        device.type,
    )  # fmt: skip


_TRACES: dict[str, Trace] = {}
"""Of this process: a benchmark trains the same network many times."""


def _trace(
    config: PretrainConfig | FinetuneConfig,
    subject: Subject,
    crops: int,
    precision: Literal["fp32", "bf16"],
    *,
    is_cpu: bool,
) -> Trace:
    decoder = config.decoder if isinstance(config, FinetuneConfig) else None
    values = getattr(subject.build, "values", None)
    whole = None
    if isinstance(config, FinetuneConfig):
        whole = (config.task, config.classification, getattr(subject.build, "table", None))
    optim = subject.optim
    learning = (optim.adapt, optim.lora_rank, optim.lora_on)
    key = repr((subject.verb, subject.encoder, config.objective, decoder, values, whole, learning,
                subject.crop_size, crops, precision, is_cpu))  # fmt: skip
    if key not in _TRACES:
        _TRACES[key] = traced(subject, crops, precision, is_cpu=is_cpu)
    return _TRACES[key]


@contextmanager
def within_memory(config: PretrainConfig | FinetuneConfig, reporter: Reporter) -> Iterator[None]:
    """Says what a training needs, and turns a lack of memory in the block into one sentence.

    Raises:
        ResourceError: it cannot fit, or memory ran out; checkpoints stay as they are.
    """
    need = training_need(config)
    reporter.say(str(need))
    if need.device == "cpu" and need.free is not None and need.free < SLACK * need.total:
        raise ResourceError(f"memory does not suffice: {need}", remedy=REMEDY, code="out-of-memory")
    with lack_told(
        lambda: ResourceError(
            f"memory ran out, the last checkpoint stays: {need}",
            remedy=REMEDY,
            code="out-of-memory",
        )
    ):
        yield
