"""What each process of the tests of gathering runs; started by `torchrun`, not by pytest."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from loop_fakes import optim_config, training_config  # noqa: E402
from view_crops import ENCODER, ViewFeed, batch, made  # noqa: E402

from mim3d.foundation.reporting import Silent  # noqa: E402
from mim3d.models.gathering import gathered, rank_offset, world  # noqa: E402
from mim3d.objectives.base import Moment, Task  # noqa: E402
from mim3d.training.loop import fit  # noqa: E402
from mim3d.training.run import Run  # noqa: E402
from mim3d.training.validation import Validator  # noqa: E402


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


if __name__ == "__main__":
    for word in sys.argv[3].split(","):
        train(Path(sys.argv[1]), word, sys.argv[2])
    gather(Path(sys.argv[1]))
