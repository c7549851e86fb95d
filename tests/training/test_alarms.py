"""Not-a-number, and runs that learn nothing."""

from __future__ import annotations

import math

import pytest
import torch

from mim3d.foundation.errors import StoppedError
from mim3d.training.alarms import MeanPredictor, NonFinite


def test_so_many_skipped_steps_in_a_row_stop_the_run() -> None:
    count = NonFinite(3, 1000)
    for step, is_finite in enumerate((False, False, True, False, False)):
        count.note(is_finite=is_finite, step=step)

    with pytest.raises(StoppedError, match="3 steps in a row, 5 in all, the last at step 6"):
        count.note(is_finite=False, step=5)


def test_more_than_one_in_a_hundred_stop_the_run() -> None:
    count = NonFinite(10, 2000)
    for step in range(20):
        count.note(is_finite=False, step=2 * step)
        count.note(is_finite=True, step=2 * step + 1)

    with pytest.raises(StoppedError, match="21 in all"):
        count.note(is_finite=False, step=40)


def logs(loss: float, mean: float) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(loss), "mean_predictor": torch.tensor(mean)}


def test_a_run_at_the_mean_is_told_of_at_1_5_and_20_percent() -> None:
    alarm = MeanPredictor(10_000, 50)

    said = [s for s in range(1, 10_001) if alarm.note(logs(1.0, 1.0), s) is not None]

    assert said == [100, 500, 2000]


def test_nothing_is_expected_before_the_warm_up_ends() -> None:
    assert MeanPredictor(10_000, 700).looks == [720, 2000]
    assert MeanPredictor(50, 0).looks == [20]


def test_the_sentence_holds_both_numbers_over_the_last_twenty_steps() -> None:
    alarm = MeanPredictor(10_000, 0)
    for step in range(1, 81):
        alarm.note(logs(9.0, 1.0), step)
    for step in range(81, 100):
        alarm.note(logs(2.5, 2.0), step)

    text = alarm.note(logs(2.5, 2.0), 100)

    assert text is not None
    assert "at step 100 the loss 2.5 is not below 2, that of predicting the mean" in text


def test_a_run_that_learns_and_a_task_that_does_not_know_say_nothing() -> None:
    alarm = MeanPredictor(100, 0)

    said = [alarm.note(logs(0.9, 1.0), step) for step in range(1, 101)]
    silent = [alarm.note({"loss": torch.tensor(9.0)}, step) for step in range(1, 101)]

    assert {*said, *silent} == {None}


def test_a_loss_that_is_not_a_number_is_no_success() -> None:
    alarm = MeanPredictor(100, 0)

    texts = [alarm.note(logs(math.nan, 1.0), step) for step in range(1, 101)]

    assert any(texts)
