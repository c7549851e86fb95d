"""Looking at a task without leaving a trace."""

from __future__ import annotations

import math

import pytest
import torch
from loop_fakes import FakeFeed, FakeTask

from mim3d.foundation.randomness import RandomStream
from mim3d.objectives.base import Moment
from mim3d.training.ema import MeanWeights
from mim3d.training.optim import trainable
from mim3d.training.validation import Validator, is_better, spoken, undisturbed


def nothing(task: object, moment: object) -> dict[str, float]:
    return {}


def test_a_validator_is_due_on_its_grid_and_at_the_end() -> None:
    grid = Validator("x", 4, nothing, at=(0, 3))
    at_end = Validator("y", 0, nothing)

    assert [s for s in range(11) if grid.is_due(s, 10)] == [0, 3, 4, 8, 10]
    assert [s for s in range(11) if at_end.is_due(s, 10)] == [10]


def test_of_many_numbers_those_named_are_said_in_that_order() -> None:
    values = {"a": 0.12345, "b": 41.0, "c": math.nan}

    assert spoken(values, None) == "a 0.1235  b 41  c nan"
    assert spoken(values, ("b", "missing", "a")) == "b 41  a 0.1235"


@pytest.mark.parametrize(
    ("new", "old", "direction", "expected"),
    [
        (0.5, None, "max", True),
        (0.5, 0.5, "max", False),
        (0.6, 0.5, "max", True),
        (0.6, 0.5, "min", False),
        (0.4, 0.5, "min", True),
        (math.nan, None, "max", False),
    ],
)
def test_better_is_strict_and_nan_never_is(
    new: float, old: float | None, direction: str, expected: bool
) -> None:
    assert is_better(new, old, direction) is expected


def test_inside_there_are_mean_weights_eval_mode_and_no_gradient() -> None:
    task = FakeTask()
    task.train()
    mean = MeanWeights(trainable(task), 0.9)
    with torch.no_grad():
        task.decoder.weight.mul_(2)
    batch, moment = FakeFeed(4).batch(0, range(4)), Moment(0, 1, RandomStream(0, 0))

    with undisturbed(task, mean, 0):
        weight = task.decoder.weight.clone()
        mode = task.encoder.training
        loss = task(batch, moment).loss

    assert torch.equal(weight, mean.tensors["decoder.weight"])
    assert not mode
    assert not loss.requires_grad


def test_weights_buffers_modes_and_generators_come_back_even_after_an_error() -> None:
    task = FakeTask()
    task.train()
    task.teacher.eval()
    mean = MeanWeights(trainable(task), 0.9)
    with torch.no_grad():
        task.decoder.weight.mul_(2)
    state = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    generator = torch.get_rng_state()

    with pytest.raises(RuntimeError, match="look"), undisturbed(task, mean, 0):
        torch.rand(3)
        task.seen += 1
        task.train()
        raise RuntimeError("look")

    assert all(torch.equal(tensor, state[name]) for name, tensor in task.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert task.encoder.training
    assert not task.teacher.training
    assert torch.is_grad_enabled()


def test_numbers_drawn_inside_are_the_same_at_every_validation() -> None:
    task = FakeTask()
    drawn = []
    for seed in (0, 0, 1):
        torch.rand(3)
        with undisturbed(task, None, seed):
            drawn.append(torch.rand(()).item())

    assert drawn[0] == drawn[1] != drawn[2]
