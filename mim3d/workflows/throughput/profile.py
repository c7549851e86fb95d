"""The table of a machine: each stage's time, its share, the limit it runs against, and MONAI's."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from mim3d.config.verbs import StageName
from mim3d.foundation.reporting import Reporter
from mim3d.foundation.versions import versions
from mim3d.workflows.throughput.ceilings import Ceilings
from mim3d.workflows.throughput.machine import machine
from mim3d.workflows.throughput.predicting import evaluate_stage, window_stage
from mim3d.workflows.throughput.race import Disagreement, race
from mim3d.workflows.throughput.reading import (
    augment_stage,
    crop_stage,
    prepare_stage,
    read_stage,
    workers_stage,
)
from mim3d.workflows.throughput.stage import Scene, Stage
from mim3d.workflows.throughput.table import digits
from mim3d.workflows.throughput.training import finetune_stage, pretrain_stage, simmim_stage

STAGES: dict[StageName, Callable[[Scene], Iterator[Stage]]] = {
    "read": read_stage,
    "prepare": prepare_stage,
    "crop": crop_stage,
    "augment": augment_stage,
    "workers": workers_stage,
    "pretrain": pretrain_stage,
    "simmim": simmim_stage,
    "finetune": finetune_stage,
    "window": window_stage,
    "evaluate": evaluate_stage,
}
"""By the word for `--stages`, in the order of a project."""
QUICK_SECONDS: dict[StageName, float] = {
    "read": 3, "prepare": 4, "crop": 8, "augment": 4, "workers": 3,
    "pretrain": 30, "simmim": 6, "finetune": 20, "window": 20, "evaluate": 6,
}  # fmt: skip
"""What a stage takes with `--quick` on one core of a server of 2024, MONAI's side included."""
FULL_FACTOR = 12
"""How many times as long it takes without."""
CEILINGS_SECONDS = 5.0


@dataclass(frozen=True)
class Line:
    """One stage as it was measured.

    Args:
        stage: its word.
        what: sizes and networks.
        ms: of one thing, one a repeat.
        share: of the time of a pre-training step that is read from the store, 0 to 1; None where it
            takes no part in one.
        limit: which ceiling bounds it.
        limit_ms: the time at that ceiling.
        monai: MONAI as shipped / ours, one a repeat.
        equality: how the results compare.
    """

    stage: str
    what: str
    ms: list[float]
    share: float | None
    limit: str | None
    limit_ms: float | None
    monai: list[float]
    equality: str

    @property
    def median(self) -> float:
        """Milliseconds."""
        return statistics.median(self.ms)

    @property
    def of_limit(self) -> float | None:
        """The time at the ceiling / the time, 0 to 1: 1 cannot be improved."""
        return None if self.limit_ms is None else self.limit_ms / self.median


def expected_seconds(stages: Sequence[StageName], *, quick: bool) -> float:
    """How long the profile takes, about."""
    seconds = sum(QUICK_SECONDS[stage] for stage in stages)
    return CEILINGS_SECONDS + seconds * (1 if quick else FULL_FACTOR)


def profile(
    scene: Scene,
    ceilings: Ceilings,
    stages: Sequence[StageName],
    reporter: Reporter,
    *,
    repeats: int,
) -> list[Line]:
    """Times stages one after the other; MONAI's side in turns with ours."""
    lines: list[Line] = []
    parts: list[float] = []
    with torch.random.fork_rng():
        for place, name in enumerate(stages):
            reporter.progress(place, len(stages), f"stage {place + 1} of {len(stages)}: {name}")
            torch.manual_seed(0)
            try:
                for stage in STAGES[name](scene):
                    line = _timed(stage, ceilings, repeats, scene.device)
                    lines.append(line)
                    parts.append(stage.a_step * line.median)
                    # Before the next one begins, this one's networks must be gone.
                    del stage
                    gc.collect()
            except Disagreement as error:
                reporter.warn(f"stage `{name}`: {error}")
    reporter.progress(len(stages), len(stages), "all stages timed")
    if "pretrain" not in stages:  # a share of nothing
        return lines
    whole = sum(parts)
    return [replace(line, share=part / whole if part else None)
            for line, part in zip(lines, parts, strict=True)]  # fmt: skip


def _timed(stage: Stage, ceilings: Ceilings, repeats: int, device: torch.device) -> Line:
    ours = race(stage.job(), repeats, device)[-1]
    limit_ms = None
    if stage.work is not None:
        limit_ms = 1e3 * stage.work.seconds(ceilings) / stage.of_a_call
    return Line(
        stage=stage.name,
        what=stage.what,
        ms=[ms / stage.of_a_call for ms in ours.ms],
        share=None,
        limit=None if stage.work is None else stage.work.limit,
        limit_ms=limit_ms,
        monai=ours.s,
        equality=stage.equality,
    )


def as_json(
    lines: Sequence[Line], ceilings: Ceilings, device: torch.device, repeats: int
) -> dict[str, Any]:
    """The result file: what was measured, where and with which versions."""
    return {
        "machine": machine(device),
        "versions": versions(),
        "ceilings": ceilings.as_json(),
        "repeats": repeats,
        "stages": [{**asdict(line), "of_limit": line.of_limit} for line in lines],
    }


def as_markdown(content: dict[str, Any], lines: Sequence[Line]) -> str:
    """The head and the table of a result file."""
    return f"{_head(content)}\n\n{_table(lines)}\n\n{_notes(lines)}\n"


def _head(content: dict[str, Any]) -> str:
    facts, found, limits = content["machine"], content["versions"], content["ceilings"]
    where = facts.get("gpu", facts["processor"])
    packages = ", ".join(f"{name} {found[name]}" for name in ("mim3d", "torch", "monai", "python"))
    bf16 = "none" if limits["bf16"] is None else f"{limits['bf16'] / 1e9:,.0f}"
    lines = [
        f"machine    {where}; {facts['threads']} of {facts['cores']} threads, "
        f"allocator {facts['allocator']}, {facts['clock']}",
        f"versions   {packages}, commit {found['commit']}",
        f"limits     GFLOP/s: bf16 {bf16}, fp32 {limits['fp32'] / 1e9:,.0f} "
        f"(`medium` {limits['fp32_medium'] / 1e9:,.0f}, error {limits['fp32_medium_error']:.0e})",
        f"           GB/s: copy {limits['copy'] / 1e9:,.1f}, read {limits['read'] / 1e9:,.1f}, "
        f"write {limits['write'] / 1e9:,.1f}, inflate {limits['inflate'] / 1e9:,.2f}",
    ]
    if limits["host_to_device"] is not None:
        lines.append(
            f"           host to device {limits['host_to_device'] / 1e9:,.0f} GB/s, "
            f"a launch {1e6 * limits['launch_seconds']:.1f} us"
        )
    return "\n".join(lines)


def _table(lines: Sequence[Line]) -> str:
    rows = [
        "| stage | what | ms | share | limit | of the limit | MONAI / mim3d | results |",
        "|---|---|---:|---:|---|---:|---:|---|",
    ]
    for line in lines:
        limit = "" if line.limit_ms is None else f"{digits(line.limit_ms)} ms, {line.limit}"
        cells = (
            line.stage, line.what, digits(line.median), _percent(line.share), limit,
            _percent(line.of_limit),
            f"{statistics.median(line.monai):.2f}" if line.monai else "", line.equality,
        )  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _notes(lines: Sequence[Line]) -> str:
    notes = ["ms is the median of the repeats; limit is the time at the measured ceiling."]
    if any(line.share is not None for line in lines):
        notes.append(
            "share is of one pre-training step whose crops are cut and augmented in the same "
            "process."
        )
    if any(line.monai for line in lines):
        notes.append(
            "MONAI as shipped (fp32, its optimiser), in turns with ours in one process; results "
            "were compared first."
        )
    return " ".join(notes)


def _percent(share: float | None) -> str:
    if share is None:
        return ""
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"
