"""What each process of the tests of gathering runs."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from loop_fakes import optim_config, training_config
from view_crops import ALL, ENCODER, ViewFeed, batch, made

from mim3d.foundation.reporting import Silent
from mim3d.models.gathering import gathered, rank_offset, world
from mim3d.objectives.base import Moment, Task
from mim3d.training.loop import fit
from mim3d.training.run import Run
from mim3d.training.validation import Validator


def look(name: str) -> Validator:
    """Called in the first process alone: a task that waited for the others would never end."""

    def loss(task: Task, moment: Moment) -> dict[str, float]:
        return {"loss": float(task(batch(name, range(4)), moment).loss)}

    return Validator("look", 3, loss)


def train(folder: Path, name: str, strategy: str) -> None:
    """A few steps, with frozen first ones; a bias of keys has no gradient but rounding."""
    with Run.create_or_continue(folder / name, {"training": {"device": "cpu"}}) as run:
        fit(
            made(name, replace(ENCODER, qkv_bias=False)),
            ViewFeed(name, 8),
            optim_config(freeze_encoder_steps=1, lr=2e-3),
            training_config(batch_size=8, steps=5, accumulation=1, strategy=strategy, log_every=1),
            run,
            validators=[look(name)],
            reporter=Silent(),
        )


def gather(folder: Path) -> None:
    """Rows, offsets and gradients, as this process sees them."""
    rank = int(os.environ.get("RANK", "0"))
    x = (torch.arange(6.0).reshape(3, 2) + 10 * rank).requires_grad_()
    rows = gathered(x)
    # A loss of each process's own: rank + 1 times the rows, squared.
    ((rank + 1) * rows.square()).sum().backward()
    assert x.grad is not None
    facts = {
        "world": world(),
        "offset": rank_offset(3),
        "rows": rows.tolist(),
        "whole": gathered(torch.tensor([rank, 7])).tolist(),
        "gradient": x.grad.tolist(),
    }
    (folder / f"gathered_{rank}.json").write_text(json.dumps(facts))


def main(folder: Path, strategy: str) -> None:
    """All objectives one after the other, and rows."""
    for name in ALL:
        train(folder, name, strategy)
    gather(folder)
