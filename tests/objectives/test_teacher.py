"""The running mean that teaches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mim3d.foundation.errors import ConfigError
from mim3d.foundation.randomness import RandomStream
from mim3d.objectives.base import Moment
from mim3d.objectives.teacher import Teacher, momentum_at


def at(step: int, steps: int = 10) -> Moment:
    return Moment(step, steps, RandomStream(0, step))


class Student(nn.Module):
    """A layer, dropout and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.layer(x))


def test_it_follows_by_the_cosine_of_the_whole_run() -> None:
    torch.manual_seed(0)
    student = Student()
    teacher = Teacher(student, 0.9)
    expected = student.layer.weight.detach().clone()

    for step in range(10):
        with torch.no_grad():
            student.layer.weight.add_(0.1 * (step + 1))
            student.seen += 1
        teacher.update(student, at(step))
        m = 1 - 0.1 * (math.cos(math.pi * step / 10) + 1) / 2
        expected = m * expected + (1 - m) * student.layer.weight.detach()

    torch.testing.assert_close(teacher.module.layer.weight, expected)
    assert torch.equal(teacher.module.seen, student.seen)


def test_the_momentum_grows_from_its_start_to_1_and_only_the_moment_matters() -> None:
    """SMIT's published schedule began anew in each epoch: it never grew."""
    momenta = [momentum_at(at(step, 300), 0.99) for step in range(301)]

    assert momenta[0] == pytest.approx(0.99)
    assert momenta[150] == pytest.approx(0.995)
    assert momenta[300] == pytest.approx(1)
    assert momenta == sorted(momenta)


def test_its_answers_are_its_own_without_gradient_and_without_dropout() -> None:
    student = Student()
    teacher = Teacher(student, 0.9)
    teacher.train()
    x = torch.randn(4, 3, requires_grad=True)
    expected = x.detach() @ student.layer.weight.T.detach() + student.layer.bias.detach()

    with torch.no_grad():
        student.layer.weight.zero_()
    answer = teacher(x)

    assert not answer.requires_grad
    torch.testing.assert_close(answer, expected)
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_frozen_student_leaves_it_bit_by_bit_equal() -> None:
    student = Student()
    teacher = Teacher(student, 0.3)

    for step in range(3):
        teacher.update(student, at(step))

    assert torch.equal(teacher.module.layer.weight, student.layer.weight)


def test_it_lies_in_the_state_and_comes_back_from_it() -> None:
    student = Student()
    teacher, other = Teacher(student, 0.5), Teacher(Student(), 0.5)
    with torch.no_grad():
        student.layer.weight.add_(1.0)
    teacher.update(student, at(3))

    other.load_state_dict(teacher.state_dict())

    assert set(teacher.state_dict()) == {
        "module.layer.weight", "module.layer.bias", "module.seen"
    }  # fmt: skip
    x = torch.randn(2, 3)
    assert torch.equal(teacher(x), other(x))


@pytest.mark.parametrize("momentum", [-0.1, 1.1])
def test_a_momentum_outside_of_0_to_1_is_refused(momentum: float) -> None:
    with pytest.raises(ConfigError, match="momentum"):
        Teacher(Student(), momentum)
