"""Trainings of the tiny task in run folders, and what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loop_fakes import FakeFeed, FakeTask, optim_config, training_config

from mim3d.config.training import OptimConfig, TrainingConfig
from mim3d.foundation.reporting import Silent
from mim3d.training.loop import fit
from mim3d.training.run import Run
from mim3d.training.standing import FitResult


class Spoken:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)

    def progress(self, done: int, total: int, text: str) -> None:
        self.lines.append(text)


def train(
    folder: Path,
    *,
    task: FakeTask | None = None,
    feed: FakeFeed | None = None,
    optim: OptimConfig | None = None,
    training: TrainingConfig | None = None,
    **options: Any,
) -> FitResult:
    """Trains in a folder, or goes on there; without a word, what the fakes give."""
    with Run.create_or_continue(folder, {}) as run:
        return fit(
            task or FakeTask(),
            feed or FakeFeed(4),
            optim or optim_config(),
            training or training_config(),
            run,
            **{"reporter": Silent(), **options},
        )


def log(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of a kind in the log of a run."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]
