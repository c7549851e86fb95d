"""When the loop validates, and what becomes of the numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from loop_fakes import FakeFeed, FakeTask, training_config
from loop_runs import log, train

from mim3d.objectives.base import Moment
from mim3d.training.validation import Validator

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def test_micro_batches_and_validations_come_in_their_order(tmp_path: Path) -> None:
    task = FakeTask()
    batch = FakeFeed(4).batch(0, range(4))

    def look(task: FakeTask, moment: Moment) -> dict[str, float]:
        return {"x": float(task(batch, moment).loss)}

    result = train(
        tmp_path / "x",
        task=task,
        training=training_config(steps=5),
        validators=[Validator("every", 2, look), Validator("end", 0, look)],
    )

    expected = [(0, True)] * 2 + [(1, True)] * 2 + [(2, False)] + [(2, True)] * 2
    expected += [(3, True)] * 2 + [(4, False)] + [(4, True)] * 2 + [(5, False)] * 2
    assert task.calls == expected
    assert [line["step"] for line in log(tmp_path / "x", "validation")] == [2, 4, 5, 5]
    assert result.validation["every"] == result.validation["end"]


def test_best_points_at_the_best_validation(tmp_path: Path) -> None:
    values = {2: 0.3, 4: 0.7, 6: math.nan, 8: 0.7, 10: 0.6, 12: 0.1}

    def look(task: FakeTask, moment: Moment) -> dict[str, float]:
        return {"dice": values[moment.step], "other": -1.0}

    result = train(
        tmp_path / "x",
        validators=[Validator("dice", 2, look, best=("dice", "max"))],
        training=training_config(checkpoint_every=100),
    )

    links = {n: (tmp_path / "x" / "checkpoints" / n).resolve().name for n in ("best", "last")}
    assert links == {"best": "4", "last": "12"}
    assert (result.best, result.best_step) == (0.7, 4)
    assert log(tmp_path / "x", "validation")[2]["dice"] is None


def test_an_alarm_of_a_validator_is_a_notice_in_the_log(tmp_path: Path) -> None:
    def alarms(numbers: Mapping[str, float], moment: Moment) -> list[str]:
        return [f"{moment.step} of {moment.steps}: {numbers['x']}"] if moment.step == 4 else []

    look = Validator("x", 2, lambda task, moment: {"x": 0.5}, alarms=alarms)

    train(tmp_path / "x", validators=[look])

    notices = [(line["step"], line["text"]) for line in log(tmp_path / "x", "notice")]
    assert (4, "4 of 12: 0.5") in notices


def test_two_validators_cannot_both_choose(tmp_path: Path) -> None:
    look = Validator("x", 1, lambda task, moment: {"x": 1.0}, best=("x", "min"))

    with pytest.raises(ValueError, match="at most one"):
        train(tmp_path / "x", validators=[look, look])
