"""Prototypes, the teacher's centre and the cross-entropy between teacher and student."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mim3d.config.objective import TeacherConfig
from mim3d.foundation.errors import ConfigError
from mim3d.foundation.randomness import RandomStream
from mim3d.objectives.base import Moment
from mim3d.objectives.prototypes import (
    Centre,
    PrototypeHead,
    check_teacher,
    disagreement,
    entropy,
    taught,
    temperature_at,
)

CONFIG = TeacherConfig(prototypes=7, head_width=12, bottleneck=5, teacher_temperature=(0.04, 0.07))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moment(step: int = 0, steps: int = 30) -> Moment:
    return Moment(step, steps, RandomStream(0, step))


def test_the_head_gives_cosines_with_each_prototype() -> None:
    head = PrototypeHead(6, CONFIG)
    features = numbers(2, 3, 6)

    cosines = head(features)

    for place in [(0, 0), (1, 2)]:
        embedding = head.projector(features[place])
        for i, direction in enumerate(head.directions):
            lengths = embedding.norm() * direction.norm()
            expected = (embedding @ direction / lengths).item()
            assert cosines[place][i].item() == pytest.approx(expected, abs=1e-6)


def test_prototypes_have_no_length() -> None:
    head, features = PrototypeHead(6, CONFIG), numbers(4, 6)

    before = head(features)
    with torch.no_grad():
        head.directions *= torch.arange(1.0, 8.0)[:, None]

    torch.testing.assert_close(head(features), before)


def test_the_teachers_answer_is_sharp_and_centred() -> None:
    centre = Centre(7, 0.9)
    centre.mean.copy_(numbers(7, seed=1))
    cosines = numbers(2, 3, 7)

    answer = taught(cosines, centre, 0.05)

    for row, found in zip(cosines.flatten(0, 1), answer.flatten(0, 1), strict=True):
        weights = [math.exp((float(z) - float(c)) / 0.05)
                   for z, c in zip(row, centre.mean, strict=True)]  # fmt: skip
        expected = [weight / sum(weights) for weight in weights]
        assert found.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_disagreement_equals_torchs_cross_entropy_and_a_slow_sum() -> None:
    cosines, answer = numbers(2, 3, 7), numbers(2, 3, 7, seed=2).softmax(-1)

    found = disagreement(cosines, answer, 0.1)

    torchs = F.cross_entropy(cosines.flatten(0, 1) / 0.1, answer.flatten(0, 1), reduction="none")
    torch.testing.assert_close(found.flatten(), torchs)
    logits = [10 * float(z) for z in cosines[1, 2]]
    norm = math.log(sum(math.exp(z) for z in logits))
    slow = -sum(float(p) * (z - norm) for p, z in zip(answer[1, 2], logits, strict=True))
    assert found[1, 2].item() == pytest.approx(slow, rel=1e-5)


def test_disagreement_is_computed_in_float32_whatever_comes_in() -> None:
    cosines, answer = numbers(3, 7).bfloat16(), numbers(3, 7, seed=2).softmax(-1)

    found = disagreement(cosines, answer, 0.1)

    torch.testing.assert_close(found, disagreement(cosines.float(), answer, 0.1))


def test_entropy_is_one_where_undecided_and_zero_where_certain() -> None:
    assert entropy(torch.full((2, 3, 7), 1 / 7)).item() == pytest.approx(1)
    assert entropy(F.one_hot(torch.tensor([[1, 4]]), 7).float()).item() == 0
    half = torch.tensor([[0.5, 0.5, 0, 0]])
    assert entropy(half).item() == pytest.approx(0.5)  # 1 of 2 bits


def test_the_centre_moves_to_the_mean_of_what_the_teacher_said() -> None:
    centre = Centre(7, 0.9)
    centre.mean.fill_(1)
    cosines = numbers(2, 3, 7)

    centre.note(cosines, None, moment())
    centre.update()

    torch.testing.assert_close(centre.mean, 0.9 + 0.1 * cosines.flatten(0, 1).mean(0))


def test_answers_are_stretched_to_those_of_evenly_spread_embeddings() -> None:
    centre = PrototypeHead(6, CONFIG).centre(replace(CONFIG, centre_momentum=0.0))
    common, own = numbers(7), 0.01 * numbers(200, 1, 7, seed=4)

    for step in range(2):  # the variance is around the mean of the step before
        centre.note(common + own, None, moment(step))
        centre.update()
    found = centre.taken_off(common + own)

    assert found.mean().item() == pytest.approx(0, abs=1e-5)
    assert found.square().mean().item() == pytest.approx(1 / 5, rel=1e-4)
    expected = (own - own.mean(0)) * math.sqrt(0.2 / float((own - own.mean(0)).square().mean()))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_micro_batches_of_a_step_make_one_mean_by_weight() -> None:
    centre, whole = Centre(7, 0.5), Centre(7, 0.5)
    cosines, weights = numbers(5, 3, 7), numbers(5, 3, seed=3).abs()

    centre.note(cosines[:1], weights[:1], moment())
    centre.note(cosines[1:], weights[1:], moment())
    centre.update()
    whole.note(cosines, weights, moment())
    whole.update()

    mean = (cosines * weights[..., None]).sum((0, 1)) / weights.sum()
    torch.testing.assert_close(centre.mean, 0.5 * mean)
    torch.testing.assert_close(whole.mean, centre.mean)


def test_a_step_that_was_skipped_leaves_nothing_in_the_centre() -> None:
    centre, expected = Centre(7, 0.9), Centre(7, 0.9)
    centre.note(torch.full((1, 1, 7), torch.nan), None, moment(3))

    for each in (centre, expected):
        each.note(numbers(2, 3, 7), None, moment(4))
        each.update()

    assert torch.equal(centre.mean, expected.mean)


def test_a_look_from_outside_leaves_nothing_in_the_centre() -> None:
    centre = Centre(7, 0.9).eval()

    centre.note(numbers(2, 3, 7), None, moment())
    centre.update()

    assert not centre.mean.any()


def test_weights_that_are_all_zero_move_no_centre() -> None:
    centre = Centre(7, 0.9)
    centre.mean.fill_(1)

    centre.note(numbers(2, 3, 7), torch.zeros(2, 3), moment())
    centre.update()

    assert (centre.mean == 1).all()


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.04), (5, 0.055), (10, 0.07), (11, 0.07), (29, 0.07)]
)
def test_the_temperature_grows_for_a_third_of_the_run(step: int, expected: float) -> None:
    assert temperature_at(moment(step), CONFIG) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("views", 3), ("views", 0), ("prototypes", 1), ("bottleneck", 1), ("head_width", 0),
        ("head_depth", 0), ("student_temperature", 0.0), ("teacher_temperature", (0.0, 0.07)),
        ("teacher_temperature", (0.04, -1.0)), ("momentum", 1.1), ("centre_momentum", -0.1),
        ("voxel_weight", -1.0), ("token_weight", -1.0), ("global_weight", -1.0),
    ],
)  # fmt: skip
def test_numbers_that_teach_nothing_are_refused(name: str, value: Any) -> None:
    check_teacher(CONFIG)
    with pytest.raises(ConfigError, match=f"objective.teacher.{name}"):
        check_teacher(replace(CONFIG, **{name: value}))
