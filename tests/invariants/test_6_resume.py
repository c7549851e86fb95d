"""Invariant 6, resume: on a CPU an interrupted run, continued, has an undisturbed one's bits.

Tried with these breaks, each of which fails a test here: the seeding of torch's generator left out
(dropout differs), the running mean or its count not restored, a moment of AdamW not restored, the
feed started at step 0, what a validator does to buffers kept, a validation that an interruption
left out not made up for, later lines of the log kept, the means of a half log interval or the best
value so far forgotten.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from loop_fakes import FakeFeed, FakeTask, optim_config, training_config
from safetensors.torch import load_file

from mim3d.data.batch import CropBatch
from mim3d.foundation.errors import Interrupted
from mim3d.foundation.reporting import Silent
from mim3d.objectives.base import Moment, Outcome, Task
from mim3d.training.loop import fit
from mim3d.training.run import Run
from mim3d.training.standing import FitResult
from mim3d.training.validation import Validator

STEPS = 12


class Killed(BaseException):
    """What `kill -9` looks like from inside: nothing is caught, nothing is written."""


class DyingTask(FakeTask):
    """Dies in, or asks to be stopped in, the forward pass of one micro-batch."""

    def __init__(self, at_call: int | None, action: Callable[[], None]) -> None:
        super().__init__()
        self.at_call = at_call
        self.action = action

    def forward(self, batch: CropBatch, moment: Moment) -> Outcome:
        outcome = super().forward(batch, moment)
        if len(self.calls) - 1 == self.at_call:
            self.action()
        return outcome


def die() -> None:
    raise Killed


def look(task: Task, moment: Moment) -> dict[str, float]:
    """A validator that draws, moves buffers and calls the task: all of it must be undone."""
    task.seen += 100
    noise = torch.rand(()).item()
    outcome = task(FakeFeed(4, seed=9).batch(0, range(4)), moment)
    return {"value": float(outcome.loss), "noise": noise}


def validators() -> list[Validator]:
    return [Validator("look", 3, look, best=("value", "min"))]


def train(folder: Path, task: FakeTask, *, precision: str = "fp32") -> FitResult:
    config = {"training": {"precision": precision}}
    with Run.create_or_continue(folder, config) as run:
        return fit(
            task,
            FakeFeed(4),
            optim_config(freeze_encoder_steps=2),
            training_config(precision=precision, steps=STEPS, checkpoint_every=4),
            run,
            validators=validators(),
            reporter=Silent(),
        )


def everything(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint: weights, means, moments, buffers."""
    last = folder / "checkpoints" / "last"
    assert last.resolve().name == str(STEPS)
    return load_file(last / "state.safetensors") | {
        f"exported/{name}": tensor
        for name, tensor in load_file(last / "weights.safetensors").items()
    }


def log_without_times(folder: Path) -> list[dict[str, object]]:
    clocks = ("time", "crops_per_second", "seconds_a_step", "data_share")
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in clocks} for line in lines]


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Nothing here cuts the power: what is renamed is seen, flushed or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mim3d.foundation.atomic.sync", lambda path: None)
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run of each precision that nothing disturbed."""
    folders = {p: tmp_path_factory.mktemp(p) / "run" for p in ("fp32", "bf16")}
    for precision, folder in folders.items():
        train(folder, FakeTask(), precision=precision)
    return folders


def assert_same_run(folder: Path, reference: Path) -> None:
    ours, theirs = everything(folder), everything(reference)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    assert log_without_times(folder) == log_without_times(reference)
    assert (folder / "checkpoints" / "best").resolve().name == (
        reference / "checkpoints" / "best"
    ).resolve().name


# Two micro-batches a step and one call a validation (after 3, 6, 9, 12 steps): call 4 is inside
# the accumulation of step 2, call 6 inside the first validation, 9 inside step 4.
KILLS = [("fp32", call) for call in (0, 1, 5, 6, 9, 10, 13, 21, 26, 27)] + [("bf16", 13)]
STOPS = [("SIGTERM", call) for call in (0, 1, 6, 12, 27)] + [("SIGUSR1", 4), ("SIGINT", 13)]


@pytest.mark.parametrize(("precision", "call"), KILLS)
def test_a_killed_run_ends_with_the_same_bits(
    precision: str, call: int, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    # The first checkpoint comes after 3 steps, when the first validation is the best so far. From
    # then on all comes from it, and a task with other weights must end the same.
    seed = 3 if call <= 6 else 99

    with pytest.raises(Killed):
        train(tmp_path / "run", DyingTask(call, die), precision=precision)
    train(tmp_path / "run", FakeTask(seed=seed), precision=precision)

    assert_same_run(tmp_path / "run", undisturbed[precision])


@pytest.mark.parametrize(("name", "call"), STOPS)
def test_a_run_that_was_asked_to_stop_ends_with_the_same_bits(
    name: str, call: int, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    number = getattr(signal, name)
    task = DyingTask(call, lambda: signal.raise_signal(number))

    with pytest.raises(Interrupted, match=name) as caught:
        train(tmp_path / "run", task)
    train(tmp_path / "run", FakeTask(seed=99))

    assert caught.value.exit_code == 75
    assert_same_run(tmp_path / "run", undisturbed["fp32"])


def test_interrupted_after_every_single_step_it_is_still_the_same_run(
    undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    for _ in range(STEPS):
        task = DyingTask(1, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(tmp_path / "run", task)

    train(tmp_path / "run", FakeTask(seed=99))

    assert_same_run(tmp_path / "run", undisturbed["fp32"])


def test_validation_leaves_no_trace_in_the_training(tmp_path: Path) -> None:
    digests = []
    for name, looks in (("with", validators()), ("without", [])):
        with Run.create_or_continue(tmp_path / name, {}) as run:
            config = training_config(steps=STEPS)
            done = fit(FakeTask(), FakeFeed(4), optim_config(), config, run, validators=looks)
        digests.append(done.digest)

    assert digests[0] == digests[1]
